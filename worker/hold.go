package worker

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

// expireInterval is how often held deliveries are looked at: by how much the bounds of holding may be passed.
const expireInterval = time.Minute

// hold keeps what is held within its bounds, by age and by number, and ends the releases that are through. Holding itself
// is nobody's work: dispatch and claim leave alone what is closed off.
func (w *Worker) hold(ctx context.Context) {
	var expiredAt time.Time
	every(ctx, time.Second, func(ctx context.Context) {
		w.complain(ctx, "end releases", call(ctx, func(ctx context.Context) error {
			_, err := w.q.EndReleases(ctx)
			return err
		}))
		if time.Since(expiredAt) < expireInterval {
			return
		}
		expiredAt = time.Now()
		if w.mayExpire(ctx) {
			keep := w.cfg.Retention
			slow := withTimeout(ctx, slowTimeout)
			w.drain(slow, "expire held deliveries", func(ctx context.Context) (int64, error) {
				return w.slowQ.ExpireHeld(ctx, db.ExpireHeldParams{MaxAge: keep.Held, MaxHeld: int32(keep.MaxHeld), MaxRows: smallBatch}) //nolint:gosec // validated
			})
			w.drain(slow, "expire blocked deliveries", func(ctx context.Context) (int64, error) {
				return w.slowQ.ExpireBlocked(ctx, db.ExpireBlockedParams{MaxAge: keep.Held, MaxRows: smallBatch})
			})
			w.sweepAll.Store(true) // they may have been heads
		}
	})
}

// mayExpire says whether it is this worker's turn: one of them is enough.
func (w *Worker) mayExpire(ctx context.Context) bool {
	err := call(ctx, func(ctx context.Context) error {
		_, err := w.q.LeaseTask(ctx, db.LeaseTaskParams{Task: "expire", WorkerID: w.identity.get(), Seconds: expireInterval.Seconds()})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return false
	}
	w.complain(ctx, "lease expiry", err)
	return err == nil
}
