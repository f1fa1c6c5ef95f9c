package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mailhook/db"
)

// pulseInterval is how soon a change of a subscription or of the installation is seen.
const pulseInterval = 500 * time.Millisecond

// stallLimit is how long a worker may go without a confirmed heartbeat and still start requests. It is less than
// what a rescuer waits for, so that two workers do not send the same delivery.
const stallLimit = 10 * time.Second

// longestTimeout is the most that a subscription's timeout can be.
const longestTimeout = time.Minute

// pulseState is what the pulse has learned, for all loops to read.
type pulseState struct {
	mu        sync.Mutex
	enabled   bool
	workers   int32
	joinedAt  time.Time // of this process: it registered, or the others began to count with it
	pulsedAt  time.Time // of this process, monotonic
	beatAt    time.Time
	recording bool // false while outcomes cannot be written
	inOrder   bool // some subscription has an order
	changed   chan struct{}
	// When the loops of pulse and heartbeat came round last, whatever the database answered; monotonic.
	pulseTurned, beatTurned time.Time
}

// alive is nil while requests may start.
func (s *pulseState) alive(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case now.Sub(s.beatAt) > stallLimit:
		return fmt.Errorf("no heartbeat for %v", now.Sub(s.beatAt).Round(time.Second))
	case now.Sub(s.pulsedAt) > stallLimit:
		return fmt.Errorf("subscriptions not seen for %v", now.Sub(s.pulsedAt).Round(time.Second))
	case !s.recording:
		return errors.New("outcomes cannot be recorded")
	}
	return nil
}

// stuckLimit is how long a loop that must always come round may take: some times longer than what it waits for.
const stuckLimit = time.Minute

// turning is nil while the loops come round, or before they begin to.
func (s *pulseState) turning(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for loop, at := range map[string]time.Time{"pulse": s.pulseTurned, "heartbeat": s.beatTurned} {
		if !at.IsZero() && now.Sub(at) > stuckLimit {
			return fmt.Errorf("the loop of the %s has stood still for %v: restart this process", loop, now.Sub(at).Round(time.Second))
		}
	}
	return nil
}

// sending says whether delivery is on.
func (s *pulseState) sending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enabled
}

// mayLease says whether this worker may take deliveries: delivery is on, and it is well.
func (w *Worker) mayLease() bool {
	return w.state.sending() && w.state.alive(time.Now()) == nil
}

// ordered says whether some subscription has an order.
func (s *pulseState) ordered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inOrder
}

// crew is how many workers there are.
func (s *pulseState) crew() int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(1, s.workers)
}

// isNew says whether other workers may still have requests under way that were leased before they knew of this one. Between lease and request
// there may be a stall.
func (s *pulseState) isNew() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers > 1 && time.Since(s.joinedAt) < longestTimeout+stallLimit
}

func (s *pulseState) set(f func(*pulseState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// pulse asks the database twice a second what all workers share, and which subscriptions have changed.
func (w *Worker) pulse(ctx context.Context) {
	since := time.Time{}
	every(ctx, pulseInterval, func(ctx context.Context) {
		err := callAgain(ctx, func(ctx context.Context) error {
			started := time.Now()
			row, err := w.genericQ.Pulse(ctx)
			if err != nil {
				return err
			}
			if since.IsZero() {
				since = row.Now
			}
			// A minute of overlap, for transactions that commit late.
			if err := w.cache.refresh(ctx, since.Add(-time.Minute)); err != nil {
				return err
			}
			since = row.Now
			w.notice(row, started)
			return nil
		})
		w.complain(ctx, "ask for changes", err)
		w.state.set(func(s *pulseState) { s.pulseTurned = time.Now() })
	})
}

func (w *Worker) notice(row db.PulseRow, started time.Time) {
	w.state.set(func(s *pulseState) {
		if s.enabled != row.DeliveryEnabled {
			s.enabled = row.DeliveryEnabled
			if s.pulsedAt.IsZero() {
				if !s.enabled {
					w.cfg.Log.Warn("delivery is off: events wait in the outbox (mailhook delivery on)")
				}
			} else {
				w.cfg.Log.Info("delivery switched", "delivery_enabled", s.enabled)
			}
			signal(s.changed)
		}
		s.workers, s.pulsedAt, s.inOrder = row.WorkerCount, started, row.HasOrdered
	})
	w.cache.share(row.WorkerCount)
	if row.TestWaits {
		signal(w.tests)
	}
}
