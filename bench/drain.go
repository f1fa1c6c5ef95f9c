package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A drain is one measurement of a rate: something is committed before the contestants start, and they deliver it.
type drain struct {
	deliveries int64
	workers    func(context.Context) ([]*contestant, error)
	database   *database                   // whose usage counts; nil: none
	done       func(context.Context) error // waits until the last outcome is recorded, too
}

// drained is what came of it.
type drained struct {
	rate        float64 // deliveries a second, first receipt to last
	first, last float64 // over the first and the last tenth
	start       time.Duration
	connections int64
	used        usage
	memory      int64 // the most that a contestant took, in bytes
}

func (b *bench) drain(ctx context.Context, d drain) (r drained, err error) {
	reached := b.receiver.reset(d.deliveries)
	var before usage
	if d.database != nil {
		if before, err = d.database.usage(ctx); err != nil {
			return r, err
		}
	}
	began := time.Now()
	workers, err := d.workers(ctx)
	defer func() {
		for _, w := range workers {
			err = errors.Join(err, w.stop())
		}
	}()
	if err != nil {
		return r, err
	}
	if err := b.await(ctx, reached, workers); err != nil {
		return r, err
	}
	if d.done != nil {
		if err := d.done(ctx); err != nil {
			return r, err
		}
	}
	for _, w := range workers {
		r.used.contestantCPU += w.cpu()
		r.memory = max(r.memory, peakMemory(w.cmd.Process.Pid))
	}
	if d.database != nil {
		after, err := d.database.usage(ctx)
		if err != nil {
			return r, err
		}
		cpu := r.used.contestantCPU
		r.used = after.less(before)
		r.used.contestantCPU = cpu
	}
	r.rate, r.first, r.last = b.receiver.rate(0, 1), b.receiver.rate(0, 0.1), b.receiver.rate(0.9, 1)
	r.start = b.receiver.firstAt().Sub(began)
	r.connections = b.receiver.connections.Load()
	return r, nil
}

// await waits for the receiver, and gives up when a contestant has ended or nothing has come for half a minute.
func (b *bench) await(ctx context.Context, reached <-chan struct{}, workers []*contestant) error {
	for seen := int64(-1); ; {
		select {
		case <-reached:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Second):
			n := b.receiver.count.Load()
			if n == seen {
				return fmt.Errorf("%d deliveries came, and then no more", n)
			}
			seen = n
		}
		for _, w := range workers {
			select {
			case err := <-w.exited:
				return fmt.Errorf("a contestant ended by itself: %w", err)
			default:
			}
		}
	}
}

// recorded waits until nothing is left of n deliveries.
func (d *database) recorded(ctx context.Context) error {
	for {
		var left bool
		if err := d.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM mailhook.deliveries WHERE lease_id IS NOT NULL) OR EXISTS (SELECT FROM mailhook.outbox)").Scan(&left); err != nil || !left {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
