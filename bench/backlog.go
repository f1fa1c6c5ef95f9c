package main

import (
	"context"
)

// backlog is a worker that starts late: 5,000,000 events wait. The first 500,000 deliveries are measured. And it is one
// transaction of the host with 1,000 events that 1,000 subscriptions match each, of which 100,000 are delivered.
func (b *bench) backlog(ctx context.Context) error {
	n, measured := b.scaled(5_000_000), b.scaled(500_000)
	short, err := b.contestOf(ctx, "accounts_1000", b.scaled(200_000), b.accepting(accounts, 1))
	if err != nil {
		return err
	}
	long, err := b.drainPart(ctx, "accounts_1000", b.accepting(accounts, 1), n, measured)
	if err != nil {
		return err
	}
	b.report.atMost(1, "backlog", number(float64(n))+" events: first delivery after the start", "s", long.start.Seconds())
	b.report.add("backlog", number(float64(b.scaled(200_000)))+" events", "deliveries/s", short.rate)
	b.report.add("backlog", number(float64(n))+" events, the first "+number(float64(measured)), "deliveries/s", long.rate)
	b.report.atLeast(0.9, "backlog", "long backlog : short", long.rate/short.rate)
	b.report.atMost(150, "backlog", number(float64(n))+" events: memory of the worker, most", "MB", megabytes(long.memory))

	wide, err := b.drainPart(ctx, "accounts_1_each_1000", b.accepting(1, 1000), 1000, b.scaled(100_000))
	if err != nil {
		return err
	}
	b.report.add("backlog", "1,000 events × 1,000 matches of one commit", "deliveries/s", wide.rate)
	b.report.atMost(150, "backlog", "1,000 events × 1,000 matches of one commit: memory of the worker, most", "MB", megabytes(wide.memory))
	return nil
}

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }

// drainPart measures the first deliveries of n events, and leaves the rest. What comes must not come twice.
func (b *bench) drainPart(ctx context.Context, name string, m market, n, deliveries int) (drained, error) {
	d, err := b.cluster.installed(ctx, name, m)
	if err != nil {
		return drained{}, err
	}
	defer d.drop(ctx)
	progress("  inserting %d events", n)
	if err := d.insertEvents(ctx, n, m.accounts); err != nil {
		return drained{}, err
	}
	return b.drain(ctx, drain{deliveries: int64(deliveries), workers: aWorker(d), kill: true})
}
