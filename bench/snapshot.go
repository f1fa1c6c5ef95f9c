package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// heldSnapshot drains a backlog while a transaction keeps every row version that the drain leaves behind, and hosts commit
// late beside it; against the same without that transaction.
func (b *bench) heldSnapshot(ctx context.Context) error {
	without, _, err := b.drainBeside(ctx, false)
	if err != nil {
		return err
	}
	with, flat, err := b.drainBeside(ctx, true)
	if err != nil {
		return err
	}
	b.report.add("held-snapshot", number(float64(b.scaled(snapshotEvents)))+" events, no snapshot held", "deliveries/s", without)
	b.report.add("held-snapshot", "the same, a snapshot held", "deliveries/s", with)
	b.report.atLeast(0.9, "held-snapshot", "held : not held", with/without)
	b.report.atLeast(0.9, "held-snapshot", "held: the last 100,000 : the first 100,000", flat)
	return nil
}

const snapshotEvents = 1_000_000

// drainBeside answers the rate, and what it is in the last 100,000 deliveries by the first.
func (b *bench) drainBeside(ctx context.Context, held bool) (rate, flat float64, err error) {
	d, err := b.cluster.installed(ctx, "accounts_1000", b.accepting(accounts, 1))
	if err != nil {
		return 0, 0, err
	}
	defer d.drop(ctx)
	n := int64(b.scaled(snapshotEvents))
	if err := d.insertEvents(ctx, int(n), accounts); err != nil {
		return 0, 0, err
	}
	if held {
		release, holding := d.hold(ctx)
		if holding != nil {
			return 0, 0, holding
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	r, err := b.drain(ctx, drain{deliveries: n, workers: aWorker(d), done: d.recorded, beside: traffic{rate: 200, from: n + 1}.beside(d)})
	part := min(100_000, n/4)
	first, last := b.receiver.between(0, part), b.receiver.between(n-part, n)
	progress("  %.0f deliveries/s, %.0f first, %.0f last", r.rate, first, last)
	return r.rate, last / first, err
}

// hold keeps a snapshot of now until release.
func (d *database) hold(ctx context.Context) (release func() error, err error) {
	tx, err := d.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, "SELECT count(*) FROM mailhook.installation")
	return func() error { return tx.Rollback(ctx) }, err
}
