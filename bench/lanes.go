package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// complaintSQL inserts a complaint with a number.
const complaintSQL = `INSERT INTO mailhook.outbox (account_id, event_type, recipient, message_id, data)
	VALUES ('a' || $1::bigint % 1000, 'email.complained', 'user' || $1::bigint || '@example.com', 'message-' || $1::bigint, ('{"n":' || $1::bigint || ',` + eventDetails + `}')::json)`

const (
	// firstComplaint is the number of the first: opens have lower ones.
	firstComplaint = 1_000_000_000
	// complaintPause is what lies between two of them.
	complaintPause = 50 * time.Millisecond
)

// lanes is the latency of complaints, one at a time: to a worker that sleeps, and to the same worker with 1,000,000 opens in the
// outbox, which it delivers meanwhile to the same subscriptions. The two take turns, on a new database each time.
func (b *bench) lanes(ctx context.Context) error {
	var idle, loaded latencies
	var ratios50, ratios99, rates []float64
	opens, n := b.scaled(1_000_000), b.scaled(200)
	all := b.accepting(accounts, 1)
	all.eventType = "email"
	for range rounds {
		err := b.withWorker(ctx, "lanes", all, func(ctx context.Context, d *database) error {
			alone, err := b.complaints(ctx, d, n, d.asleepAndSettled)
			if err != nil {
				return err
			}
			if err := d.queueOpens(ctx, opens); err != nil {
				return err
			}
			b.receiver.reset(0)
			if err := b.allCame(ctx, 1000); err != nil { // it has begun
				return err
			}
			began := time.Now()
			beside, err := b.complaints(ctx, d, n, func(context.Context) error { time.Sleep(complaintPause); return nil })
			if err != nil {
				return err
			}
			rate := float64(b.receiver.tally().count) / time.Since(began).Seconds()
			left, err := d.opensLeft(ctx)
			if err != nil {
				return err
			}
			idle.add(alone)
			loaded.add(beside)
			last := len(idle.p50) - 1
			ratios50, ratios99, rates = append(ratios50, loaded.p50[last]/idle.p50[last]), append(ratios99, loaded.p99[last]/idle.p99[last]), append(rates, rate)
			progress("  idle p50 %.1f p99 %.1f ms; with opens p50 %.1f p99 %.1f ms, %.0f opens/s, %d left", idle.p50[last], idle.p99[last], loaded.p50[last], loaded.p99[last], rate, left)
			return d.exec(ctx, "TRUNCATE mailhook.outbox") // for the worker to stop
		})
		if err != nil {
			return err
		}
	}
	what := number(float64(opens)) + " opens queued: "
	b.report.add("lanes", "idle: complaint p50", "ms", idle.p50...)
	b.report.add("lanes", "idle: complaint p99", "ms", idle.p99...)
	b.report.add("lanes", what+"complaint p50", "ms", loaded.p50...)
	b.report.add("lanes", what+"complaint p99", "ms", loaded.p99...)
	b.report.add("lanes", what+"longest", "ms", loaded.most...)
	b.report.add("lanes", what+"delivered beside", "deliveries/s", rates...)
	b.report.add("lanes", what+"p50 : idle", "×", ratios50...)
	b.report.atMost(1.5, "lanes", what+"p99 : idle", "×", ratios99...)
	return nil
}

// complaints commits n of them, each after a pause, and answers how long each took from its COMMIT to its receipt.
func (b *bench) complaints(ctx context.Context, d *database, n int, rest func(context.Context) error) ([]time.Duration, error) {
	b.receiver.watch(firstComplaint)
	committed := make([]time.Time, n)
	for i := range n {
		if err := rest(ctx); err != nil {
			return nil, err
		}
		if err := d.exec(ctx, complaintSQL, firstComplaint+i); err != nil {
			return nil, err
		}
		committed[i] = time.Now()
	}
	for deadline := time.Now().Add(time.Minute); b.receiver.watched() < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d of %d complaints came, %d requests", b.receiver.watched(), n, b.receiver.tally().count)
		}
	}
	arrived := b.receiver.arrivals()
	took := make([]time.Duration, n)
	for i, at := range committed {
		took[i] = max(0, arrived[int64(firstComplaint+i)].Sub(at))
	}
	return took, nil
}

func (d *database) asleepAndSettled(ctx context.Context) error {
	err := d.asleep(ctx)
	time.Sleep(settling)
	return err
}

// queueOpens fills the outbox while delivery is off, and switches it on.
func (d *database) queueOpens(ctx context.Context, n int) error {
	if err := d.exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = false"); err != nil {
		return err
	}
	time.Sleep(time.Second) // the worker asks twice a second
	const step = 100_000
	for from := 1; from <= n; from += step {
		if err := d.exec(ctx, strings.ReplaceAll(fmt.Sprintf(bulkSQL, outbox), "email.delivered", "email.opened"), from, min(n, from+step-1), accounts); err != nil {
			return err
		}
	}
	return errors.Join(d.settle(ctx, "mailhook.outbox"), d.exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = true"))
}

func (d *database) opensLeft(ctx context.Context) (n int64, err error) {
	err = d.pool.QueryRow(ctx, "SELECT count(*) FROM mailhook.outbox").Scan(&n)
	if err == nil && n == 0 {
		err = errors.New("the opens were delivered before the complaints were")
	}
	return n, err
}
