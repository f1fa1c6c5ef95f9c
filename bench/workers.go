package main

import (
	"context"
	"errors"
	"fmt"
)

// twoWorkers is two processes on one database, against one. They share the machine with the database: more machines
// would help, but not here.
func (b *bench) twoWorkers(ctx context.Context) error {
	n := b.scaled(100_000)
	one, err := b.contestOf(ctx, "accounts_1000", n, b.accepting(accounts, 1))
	if err != nil {
		return err
	}
	two, err := b.together(ctx, 1, n, func(ctx context.Context, d []*database) ([]*contestant, error) {
		first, err := startWorker(ctx, d)
		if err != nil {
			return nil, err
		}
		second, err := startWorker(ctx, d)
		if err != nil {
			return []*contestant{first}, err
		}
		return []*contestant{first, second}, nil
	})
	if err != nil {
		return err
	}
	b.report.add("two-workers", "one worker, "+number(float64(n))+" events", "deliveries/s", one.rate)
	b.report.add("two-workers", "two worker processes", "deliveries/s", two.rate)
	b.report.atLeast(0.95, "two-workers", "two : one", two.rate/one.rate)
	return nil
}

// fourDatabases is one process for four databases, against one with as many events as all of them.
func (b *bench) fourDatabases(ctx context.Context) error {
	n := b.scaled(100_000)
	one, err := b.contestOf(ctx, "accounts_1000", n, b.accepting(accounts, 1))
	if err != nil {
		return err
	}
	four, err := b.together(ctx, 4, n/4, func(ctx context.Context, d []*database) ([]*contestant, error) { return aWorker(d...)(ctx) })
	if err != nil {
		return err
	}
	b.report.add("four-databases", "one database, "+number(float64(n))+" events", "deliveries/s", one.rate)
	b.report.add("four-databases", "four databases, "+number(float64(n/4))+" events each, one process", "deliveries/s", four.rate)
	b.report.atLeast(0.9, "four-databases", "four : one", four.rate/one.rate)
	b.report.add("four-databases", "memory of the process, most", "MB", megabytes(four.memory))
	return nil
}

// together drains some databases at one time, with n events in each.
func (b *bench) together(ctx context.Context, databases, n int, workers func(context.Context, []*database) ([]*contestant, error)) (drained, error) {
	var all []*database
	for range databases {
		d, err := b.cluster.installed(ctx, "accounts_1000", b.accepting(accounts, 1))
		if err != nil {
			return drained{}, err
		}
		defer d.drop(ctx)
		if err := d.insertEvents(ctx, n, accounts); err != nil {
			return drained{}, err
		}
		all = append(all, d)
	}
	r, err := b.drain(ctx, drain{
		deliveries: int64(databases * n),
		workers:    func(ctx context.Context) ([]*contestant, error) { return workers(ctx, all) },
		done: func(ctx context.Context) error {
			var err error
			for _, d := range all {
				err = errors.Join(err, d.recorded(ctx))
			}
			return err
		},
	})
	if err != nil {
		return r, fmt.Errorf("%d databases: %w", databases, err)
	}
	return r, nil
}
