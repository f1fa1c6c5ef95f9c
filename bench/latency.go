package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Latency is from the return of COMMIT to the receipt of the request.

// quantile of some durations, which it sorts.
func quantile(took []time.Duration, q float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[int(q*float64(len(took)-1))]
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// latencies are quantiles of rounds, in milliseconds.
type latencies struct{ p50, p99, most []float64 }

func (l *latencies) add(took []time.Duration) {
	l.p50 = append(l.p50, milliseconds(quantile(took, 0.5)))
	l.p99 = append(l.p99, milliseconds(quantile(took, 0.99)))
	l.most = append(l.most, milliseconds(quantile(took, 1)))
}

// withWorker runs a worker on a new database while measure measures.
func (b *bench) withWorker(ctx context.Context, name string, m market, measure func(context.Context, *database) error) (err error) {
	d, err := b.cluster.installed(ctx, name, m)
	if err != nil {
		return err
	}
	defer d.drop(ctx)
	w, err := startWorker(ctx, []*database{d})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	if err := d.asleep(ctx); err != nil {
		return err
	}
	return measure(ctx, d)
}

// asleep waits until the worker has armed the trigger.
func (d *database) asleep(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var armed bool
		if err := d.pool.QueryRow(ctx, "SELECT last_value > 0 FROM mailhook.wakeup").Scan(&armed); err != nil || armed {
			return err
		}
	}
	return errors.New("the worker does not fall asleep")
}

// settling is longer than the look that follows an arming: what comes after it comes to a worker that does nothing.
const settling = 20 * time.Millisecond

const emitSQL = `INSERT INTO mailhook.outbox (account_id, event_type, recipient, message_id, data)
	VALUES ('a' || $1::bigint % 1000, 'email.delivered', 'user' || $1::bigint || '@example.com', 'message-' || $1::bigint, ('{"n":' || $1::bigint || ',` + eventDetails + `}')::json)`

// one commits one event and waits for it: how long it took from the return of COMMIT to the receipt.
func (b *bench) one(ctx context.Context, commit func() error) (time.Duration, error) {
	came := b.receiver.expect(b.receiver.tally().count + 1)
	if err := commit(); err != nil {
		return 0, err
	}
	committed := time.Now()
	select {
	case <-came:
		return max(0, b.receiver.lastAt().Sub(committed)), nil
	case <-time.After(30 * time.Second):
		return 0, errors.New("an event did not come within 30 s")
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// latencyIdle is one event at a time to a worker that sleeps and is woken by NOTIFY.
func (b *bench) latencyIdle(ctx context.Context) error {
	var found latencies
	var fsyncs []float64
	n := b.scaled(100)
	err := b.withWorker(ctx, "accounts_1000", b.accepting(accounts, 1), func(ctx context.Context, d *database) error {
		for range rounds {
			b.receiver.reset(0)
			var took []time.Duration
			for i := range n {
				if err := d.asleep(ctx); err != nil {
					return err
				}
				time.Sleep(settling)
				one, err := b.one(ctx, func() error { return d.exec(ctx, emitSQL, i) })
				if err != nil {
					return err
				}
				took = append(took, one)
			}
			if err := errors.Join(d.recorded(ctx), b.receiver.check(int64(n))); err != nil {
				return err
			}
			found.add(took)
			fsync, err := b.fsync(ctx)
			if err != nil {
				return err
			}
			fsyncs = append(fsyncs, milliseconds(fsync))
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.report.atMost(3, "latency-idle", "p50", "ms", found.p50...)
	b.report.atMost(15, "latency-idle", "p99", "ms", found.p99...)
	b.report.add("latency-idle", "longest", "ms", found.most...)
	b.report.add("latency-idle", "a write of 8 KB with fsync, beside it", "ms", fsyncs...)
	return nil
}

// repeatableRead is a host whose snapshot is older than the worker's falling asleep.
func (b *bench) repeatableRead(ctx context.Context) error {
	return b.single(ctx, "repeatable-read", func(ctx context.Context, d *database, n int) (time.Duration, error) {
		if err := b.rouse(ctx, d, n); err != nil {
			return 0, err
		}
		return b.transact(ctx, d, n, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, d.asleep, nil)
	})
}

// beforeArming is a host that inserts while the worker is awake, and so does not notify, and commits when it sleeps.
func (b *bench) beforeArming(ctx context.Context) error {
	return b.single(ctx, "before-arming", func(ctx context.Context, d *database, n int) (time.Duration, error) {
		if err := b.rouse(ctx, d, n); err != nil {
			return 0, err
		}
		return b.transact(ctx, d, n, pgx.TxOptions{}, nil, d.asleep)
	})
}

// rouse sends an event, after which the worker is awake for a moment.
func (b *bench) rouse(ctx context.Context, d *database, n int) error {
	if err := d.asleep(ctx); err != nil {
		return err
	}
	_, err := b.one(ctx, func() error { return d.exec(ctx, emitSQL, 1_000_000+n) })
	return err
}

// transact commits one event, with something done before and after the insert: its latency.
func (b *bench) transact(ctx context.Context, d *database, n int, options pgx.TxOptions, before, after func(context.Context) error) (time.Duration, error) {
	tx, err := d.pool.BeginTx(ctx, options)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // committed below
	if _, err := tx.Exec(ctx, "SELECT count(*) FROM mailhook.installation"); err != nil {
		return 0, err
	}
	if before != nil {
		if err := before(ctx); err != nil {
			return 0, err
		}
	}
	if _, err := tx.Exec(ctx, emitSQL, n); err != nil {
		return 0, err
	}
	if after != nil {
		if err := after(ctx); err != nil {
			return 0, err
		}
	}
	return b.one(ctx, func() error { return tx.Commit(ctx) })
}

// single measures 30 events, one at a time, each after one that rouses the worker.
func (b *bench) single(ctx context.Context, row string, measure func(context.Context, *database, int) (time.Duration, error)) error {
	var found latencies
	n := b.scaled(30)
	err := b.withWorker(ctx, "accounts_1000", b.accepting(accounts, 1), func(ctx context.Context, d *database) error {
		b.receiver.reset(0)
		var took []time.Duration
		for i := range n {
			one, err := measure(ctx, d, i)
			if err != nil {
				return err
			}
			took = append(took, one)
		}
		found.add(took)
		return errors.Join(d.recorded(ctx), b.receiver.check(int64(2*n)))
	})
	if err != nil {
		return err
	}
	b.report.add(row, "p50", "ms", found.p50...)
	b.report.add(row, "p99", "ms", found.p99...)
	b.report.add(row, "longest", "ms", found.most...)
	return nil
}

// latencyLoad is 1,000 events a second from hosts that commit late.
func (b *bench) latencyLoad(ctx context.Context) error {
	var found latencies
	t := traffic{rate: 1000, lasts: b.seconds(20)}
	err := b.withWorker(ctx, "accounts_1000", b.accepting(accounts, 1), func(ctx context.Context, d *database) error {
		for range rounds {
			took, err := b.live(ctx, d, t, nil)
			if err != nil {
				return err
			}
			found.add(took)
			progress("  p50 %.1f ms, p99 %.1f ms", found.p50[len(found.p50)-1], found.p99[len(found.p99)-1])
		}
		return nil
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("1,000 events/s, %.0f s: ", t.lasts.Seconds())
	b.report.atMost(5, "latency-load", what+"p50", "ms", found.p50...)
	b.report.atMost(40, "latency-load", what+"p99", "ms", found.p99...)
	b.report.add("latency-load", what+"longest", "ms", found.most...)
	return nil
}
