package worker

import (
	"context"
	"time"

	"mailhook/db"
)

const (
	// smallBatch is how many rows one background statement touches.
	smallBatch = 1000
	// cancelWindow: subscriptions changed within it are looked at every second, all others every ten minutes.
	cancelWindow = time.Hour
	cancelAll    = 10 * time.Minute
)

// cancel ends the deliveries of inactive and deleted subscriptions in the background, in small batches.
func (w *Worker) cancel(ctx context.Context) {
	var lastAll time.Time
	every(ctx, time.Second, func(ctx context.Context) {
		since := time.Now().Add(-cancelWindow)
		if all := time.Since(lastAll) > cancelAll; all {
			since, lastAll = time.Unix(0, 0), time.Now()
		}
		w.drain(ctx, "cancel deliveries", func(ctx context.Context) (int64, error) {
			return w.q.CancelDeliveries(ctx, db.CancelDeliveriesParams{ChangedSince: since, MaxRows: smallBatch})
		})
		w.drain(ctx, "cancel dead letters", func(ctx context.Context) (int64, error) {
			return w.q.CancelDeadLetters(ctx, db.CancelDeadLettersParams{ChangedSince: since, MaxRows: smallBatch})
		})
	})
}

// drain repeats f until it finds less than a small batch.
func (w *Worker) drain(ctx context.Context, what string, f func(context.Context) (int64, error)) {
	for ctx.Err() == nil {
		var n int64
		err := call(ctx, func(ctx context.Context) (err error) {
			n, err = f(ctx)
			return err
		})
		w.complain(ctx, what, err)
		if err != nil || n < smallBatch {
			return
		}
	}
}
