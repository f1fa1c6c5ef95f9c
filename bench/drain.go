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
	done       func(context.Context) error // waits until the last outcome is recorded, too; nil: the rest is left undone
	beside     func(context.Context) (stop func() (more int64, err error))
	then       func(context.Context) error // with the same workers
	kill       bool                        // the contestants, for there is work left
}

// drained is what came of it.
type drained struct {
	rate        float64 // deliveries a second, first receipt to last
	first, last float64 // over the first and the last fifth
	start       time.Duration
	connections int64
	used        usage
	memory      int64 // the most that a contestant took, in bytes
}

// drain measures, and answers an error if a delivery is lost or comes twice.
func (b *bench) drain(ctx context.Context, d drain) (r drained, err error) {
	reached := b.receiver.reset(d.deliveries)
	before, err := d.usage(ctx, nil)
	if err != nil {
		return r, err
	}
	began := time.Now()
	workers, err := d.workers(ctx)
	defer func() { err = errors.Join(err, d.end(workers)) }()
	if err != nil {
		return r, err
	}
	more := func() (int64, error) { return 0, nil }
	if d.beside != nil {
		more = d.beside(ctx)
	}
	waited := b.await(ctx, reached, workers)
	r.rate, r.first, r.last = b.receiver.rate(), b.receiver.between(0, d.deliveries/5), b.receiver.between(d.deliveries*4/5, d.deliveries)
	r.start = b.receiver.firstAt().Sub(began)
	added, err := more()
	if err := errors.Join(waited, err); err != nil {
		return r, err
	}
	if err := b.settled(ctx, d, d.deliveries+added, workers); err != nil {
		return r, err
	}
	after, err := d.usage(ctx, workers)
	if err != nil {
		return r, err
	}
	r.used = after.less(before)
	r.connections = b.receiver.tally().connections
	for _, w := range workers {
		r.memory = max(r.memory, w.memory())
	}
	if d.then != nil {
		return r, d.then(ctx)
	}
	return r, nil
}

// settled waits until everything is recorded, and counts.
func (b *bench) settled(ctx context.Context, d drain, deliveries int64, workers []*contestant) error {
	if d.done == nil {
		if t := b.receiver.tally(); t.repeated > 0 {
			return fmt.Errorf("%d deliveries came more than once", t.repeated)
		}
		return nil
	}
	if err := b.await(ctx, b.receiver.expect(deliveries), workers); err != nil {
		return err
	}
	if err := d.done(ctx); err != nil {
		return err
	}
	return b.receiver.check(deliveries)
}

func (d drain) usage(ctx context.Context, workers []*contestant) (u usage, err error) {
	if d.database != nil {
		if u, err = d.database.usage(ctx); err != nil {
			return u, err
		}
	}
	for _, w := range workers {
		u.contestantCPU += w.cpu()
	}
	return u, nil
}

func (d drain) end(workers []*contestant) (err error) {
	for _, w := range workers {
		if d.kill {
			w.kill()
		} else {
			err = errors.Join(err, w.stop())
		}
	}
	return err
}

// await waits for the receiver, and gives up when a contestant has ended or nothing has come for half a minute.
func (b *bench) await(ctx context.Context, reached <-chan struct{}, workers []*contestant) error {
	seen, since := int64(-1), time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-reached:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		n := b.receiver.tally().count
		if n == seen && time.Since(since) > 30*time.Second {
			return fmt.Errorf("%d deliveries came, and then no more", n)
		}
		if n != seen {
			seen, since = n, time.Now()
		}
		for _, w := range workers {
			select {
			case <-w.ended:
				return fmt.Errorf("a contestant ended by itself: %w", w.err)
			default:
			}
		}
	}
}

// recorded waits until no event and no leased delivery is left, but for those of the accounts that are dead on purpose.
func (d *database) recorded(ctx context.Context) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var left bool
		err := d.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM mailhook.deliveries WHERE lease_id IS NOT NULL AND account_id NOT LIKE 'dead%')
			OR EXISTS (SELECT FROM mailhook.outbox)`).Scan(&left)
		if err != nil || !left {
			return err
		}
	}
	return errors.New("not everything was recorded within a minute")
}

// aWorker is the workers of a drain: one, for some databases.
func aWorker(d ...*database) func(context.Context) ([]*contestant, error) {
	return func(ctx context.Context) ([]*contestant, error) {
		c, err := startWorker(ctx, d)
		if err != nil {
			return nil, err
		}
		return []*contestant{c}, nil
	}
}
