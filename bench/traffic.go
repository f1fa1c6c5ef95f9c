package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Traffic is hosts that work: 32 clients, each event in a transaction of its own, with up to 20 ms of other work between
// INSERT and COMMIT, so that events become visible in another order than that of their ids.
type traffic struct {
	rate  int           // events a second
	lasts time.Duration // 0: until the context ends
	from  int64         // number of the first event
}

const (
	trafficClients = 32
	lateBy         = 20 * time.Millisecond
)

// run commits events at their times; it answers when the commit of each came back.
func (t traffic) run(ctx context.Context, d *database) (committed map[int64]time.Time, err error) {
	committed = map[int64]time.Time{}
	var mu sync.Mutex
	var next atomic.Int64
	var group sync.WaitGroup
	var errs []error
	began := time.Now()
	for range trafficClients {
		group.Go(func() {
			for {
				i := next.Add(1) - 1
				due := time.Duration(i) * time.Second / time.Duration(t.rate)
				if t.lasts > 0 && due >= t.lasts {
					return
				}
				select {
				case <-time.After(time.Until(began.Add(due))):
				case <-ctx.Done():
					return
				}
				// Not with ctx: what has begun is committed, so that it is known what was.
				at, err := d.commitLate(context.WithoutCancel(ctx), t.from+i)
				mu.Lock()
				committed[t.from+i] = at
				errs = append(errs, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
	return committed, errors.Join(errs...)
}

// beside lets traffic run until it is stopped, and answers then how many events were committed.
func (t traffic) beside(d *database) func(context.Context) (stop func() (int64, error)) {
	return func(ctx context.Context) func() (int64, error) {
		running, cancel := context.WithCancel(ctx)
		var committed map[int64]time.Time
		var err error
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			committed, err = t.run(running, d)
		}()
		return func() (int64, error) {
			cancel()
			<-ended
			return int64(len(committed)), err
		}
	}
}

func (d *database) commitLate(ctx context.Context, n int64) (time.Time, error) {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return time.Time{}, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // committed below
	if _, err := tx.Exec(ctx, emitSQL, n); err != nil {
		return time.Time{}, err
	}
	time.Sleep(rand.N(lateBy)) //nolint:gosec // not a secret
	err = tx.Commit(ctx)
	return time.Now(), err
}

// live lets traffic run beside a worker that runs, and answers the latency of every event that counts. All of them must
// arrive, once.
func (b *bench) live(ctx context.Context, d *database, t traffic, counts func(n int64) bool) ([]time.Duration, error) {
	b.receiver.watch(0)
	committed, err := t.run(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := b.allCame(ctx, int64(len(committed))); err != nil {
		return nil, err
	}
	if err := errors.Join(d.recorded(ctx), b.receiver.check(int64(len(committed)))); err != nil {
		return nil, err
	}
	arrived := b.receiver.arrivals()
	var took []time.Duration
	for n, at := range committed {
		if counts == nil || counts(n) {
			took = append(took, max(0, arrived[n].Sub(at)))
		}
	}
	return took, nil
}

// allCame waits for n deliveries, slow ones or not, as long as some come.
func (b *bench) allCame(ctx context.Context, n int64) error {
	seen, since := int64(-1), time.Now()
	for {
		t := b.receiver.tally()
		if t.count+t.slow >= n {
			return nil
		}
		if t.count+t.slow != seen {
			seen, since = t.count+t.slow, time.Now()
		}
		if time.Since(since) > 30*time.Second {
			return fmt.Errorf("%d of %d deliveries came, and then no more", seen, n)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
