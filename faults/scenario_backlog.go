package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// snapshot holds a transaction's snapshot for minutes: dead rows stay, and nothing may slow down.
func snapshot() scenario {
	var before, held, released time.Time
	return scenario{
		name: "snapshot", what: "a snapshot held for three minutes under load",
		workers: 2, load: usualLoad(),
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			before = time.Now()
			pause(ctx, f.seconds(30))
			held = time.Now()
			tx, err := f.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx) //nolint:errcheck // nothing was written
			if _, err := tx.Exec(ctx, "SELECT count(*) FROM host.transactions"); err != nil {
				return err
			}
			pause(ctx, f.seconds(180))
			released = time.Now()
			return nil
		},
		verify: func(ctx context.Context, f *field, c *checker) error {
			last := released.Add(-f.seconds(30))
			f.compare("the last half minute of the held snapshot", p99(c.lateBetween(before, held)), p99(c.lateBetween(last, released)))
			size, err := f.count(ctx, "SELECT pg_total_relation_size('mailhook.outbox') + pg_total_relation_size('mailhook.deliveries')")
			f.note("outbox and deliveries %d MiB at the end", size>>20)
			return err
		},
	}
}

// million commits a million events of one account at once, among the live traffic of others.
func million() scenario {
	const big = "big"
	var before, began, ended time.Time
	return scenario{
		name: "million", what: "one host transaction of 1,000,000 events among live traffic of other accounts",
		workers: 2, load: load{connections: 4, rate: 100, most: 20}, drain: 20 * time.Minute,
		market: func(ctx context.Context, f *field) error {
			if err := f.populate(ctx); err != nil {
				return err
			}
			_, err := f.subscribe(ctx, &subscription{account: big, types: []string{"*"}, inFlight: 500})
			return err
		},
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			before = time.Now()
			pause(ctx, f.seconds(20))
			if err := f.host.bulk(ctx, big, int64(f.scaled(1_000_000, 1000))); err != nil {
				return err
			}
			began = time.Now()
			pause(ctx, f.seconds(60))
			ended = time.Now()
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			f.note("live traffic: p99 %v before, %v beside it; drained after %v", p99(c.lateBetween(before, began)).Round(time.Millisecond),
				p99(c.lateBetween(began, ended)).Round(time.Millisecond), f.drained.Round(time.Second))
			return nil
		},
	}
}
