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

// A queue is where opens wait, and how complaints fared beside them.
type queue struct {
	what, table              string
	insert                   string // those from $1 to $2, of $3 accounts
	loaded                   latencies
	ratios50, ratios99, rate []float64
}

// queues are the two places: before dispatch and after it, where they are due as retries and what was held are.
func queues() []*queue {
	return []*queue{
		{what: "opens queued: ", table: outbox, insert: strings.ReplaceAll(fmt.Sprintf(bulkSQL, outbox), "email.delivered", "email.opened")},
		{what: "opens due as deliveries: ", table: "mailhook.deliveries", insert: `WITH written AS (
			INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, message_id, data)
			SELECT now(), $2::bigint * 1000 + n, 'a' || n % $3::int, 'email.opened', now(), now(), 'user' || n || '@example.com', 'message-' || n, ('{"n":' || n || ',` + eventDetails + `}')::json
			FROM generate_series($1::int, $2::int) AS n
			RETURNING inserted_at, id, account_id, event_type)
			INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
			SELECT s.id, w.account_id, w.inserted_at, w.id, w.event_type, now(), now() FROM written AS w JOIN mailhook.subscriptions AS s USING (account_id)`},
	}
}

// lanes is the latency of complaints, one at a time: to a worker that sleeps, and to the same worker with 1,000,000 opens in the
// outbox, or with as many deliveries of opens that are due, which it delivers meanwhile to the same subscriptions. They take turns, on a new
// database each time.
func (b *bench) lanes(ctx context.Context) error {
	var idle latencies
	opens, n, all := b.scaled(1_000_000), b.scaled(200), queues()
	market := b.accepting(accounts, 1)
	market.eventType = "email"
	for i := range rounds * len(all) {
		err := b.withWorker(ctx, "lanes", market, func(ctx context.Context, d *database) error {
			alone, err := b.complaints(ctx, d, n, d.asleepAndSettled)
			if err != nil {
				return err
			}
			idle.add(alone)
			return b.complaintsBeside(ctx, d, all[i%len(all)], opens, n, &idle)
		})
		if err != nil {
			return err
		}
	}
	b.report.add("lanes", "idle: complaint p50", "ms", idle.p50...)
	b.report.add("lanes", "idle: complaint p99", "ms", idle.p99...)
	for _, q := range all {
		what := number(float64(opens)) + " " + q.what
		b.report.add("lanes", what+"complaint p50", "ms", q.loaded.p50...)
		b.report.add("lanes", what+"complaint p99", "ms", q.loaded.p99...)
		b.report.add("lanes", what+"longest", "ms", q.loaded.most...)
		b.report.add("lanes", what+"delivered beside", "deliveries/s", q.rate...)
		b.report.add("lanes", what+"p50 : idle", "×", q.ratios50...)
		b.report.atMost(1.5, "lanes", what+"p99 : idle", "×", q.ratios99...)
	}
	return nil
}

// complaintsBeside measures n complaints beside opens, and takes what is left of those away.
func (b *bench) complaintsBeside(ctx context.Context, d *database, q *queue, opens, n int, idle *latencies) error {
	if err := d.queueOpens(ctx, q, opens); err != nil {
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
	left, err := d.opensLeft(ctx, q)
	if err != nil {
		return err
	}
	q.loaded.add(beside)
	last := len(q.rate)
	idle50, idle99, p50, p99 := idle.p50[len(idle.p50)-1], idle.p99[len(idle.p99)-1], q.loaded.p50[last], q.loaded.p99[last]
	q.ratios50, q.ratios99, q.rate = append(q.ratios50, p50/idle50), append(q.ratios99, p99/idle99), append(q.rate, rate)
	progress("  idle p50 %.1f p99 %.1f ms; %sp50 %.1f p99 %.1f ms, %.0f deliveries/s, %d left", idle50, idle99, q.what, p50, p99, rate, left)
	return d.exec(ctx, "TRUNCATE "+q.table) // for the worker to stop
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

// queueOpens fills a queue while delivery is off, and switches it on.
func (d *database) queueOpens(ctx context.Context, q *queue, n int) error {
	if err := d.exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = false"); err != nil {
		return err
	}
	time.Sleep(time.Second) // the worker asks twice a second
	const step = 100_000
	for from := 1; from <= n; from += step {
		if err := d.exec(ctx, q.insert, from, min(n, from+step-1), accounts); err != nil {
			return err
		}
	}
	return errors.Join(d.settle(ctx, q.table), d.exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = true"))
}

func (d *database) opensLeft(ctx context.Context, q *queue) (n int64, err error) {
	err = d.pool.QueryRow(ctx, "SELECT count(*) FROM "+q.table+" WHERE event_type = 'email.opened'").Scan(&n)
	if err == nil && n == 0 {
		err = errors.New("the opens were delivered before the complaints were")
	}
	return n, err
}
