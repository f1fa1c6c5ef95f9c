package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	retainInterval = 10 * time.Minute
	day            = 24 * time.Hour
)

// retain keeps the tables small: partitions are made ahead and dropped behind (partition.go), and what is past its time
// goes in batches. One worker does it at a time, behind an expiring lease; nothing breaks if two do. What is past its time
// is decided by the database's clock.
func (w *Worker) retain(ctx context.Context) {
	ctx = withTimeout(ctx, slowTimeout)
	every(ctx, retainInterval, func(ctx context.Context) {
		var now time.Time
		err := call(ctx, func(ctx context.Context) (err error) {
			now, err = w.slowQ.LeaseTask(ctx, db.LeaseTaskParams{Task: "retain", WorkerID: w.identity.get(), Seconds: (retainInterval / 2).Seconds()})
			return err
		})
		if err == pgx.ErrNoRows { //nolint:errorlint // pgx answers it bare
			return
		}
		w.complain(ctx, "lease retention", err)
		if err == nil {
			w.retainOnce(ctx, now.UTC())
		}
	})
}

func (w *Worker) retainOnce(ctx context.Context, now time.Time) {
	w.makePartitions(ctx, now)
	w.expire(ctx)
	w.dropPartitions(ctx, now)
	w.complain(ctx, "look at partitions", w.alarm(ctx))
}

// expire removes what is past its time from the tables that have no partitions.
func (w *Worker) expire(ctx context.Context) {
	keep := w.cfg.Retention
	for _, task := range []struct {
		what string
		f    func(context.Context) (int64, error)
	}{
		{"drop dead letters", func(ctx context.Context) (int64, error) {
			return w.slowQ.DropDeadLetters(ctx, db.DropDeadLettersParams{MaxAge: keep.DeadLetters, MaxRows: smallBatch})
		}},
		{"drop quarantine", func(ctx context.Context) (int64, error) {
			return w.slowQ.DropQuarantine(ctx, db.DropQuarantineParams{MaxAge: keep.Quarantine, MaxRows: smallBatch})
		}},
		{"drop audit log", func(ctx context.Context) (int64, error) {
			return w.slowQ.DropAuditLog(ctx, db.DropAuditLogParams{MaxAge: keep.AuditLog, MaxRows: smallBatch})
		}},
		{"drop dedupe keys", func(ctx context.Context) (int64, error) { return w.slowQ.DropDedupeKeys(ctx, smallBatch) }},
		{"drop test deliveries", func(ctx context.Context) (int64, error) { return w.slowQ.DropTestDeliveries(ctx, smallBatch) }},
		{"drop expired secrets", func(ctx context.Context) (int64, error) { return w.slowQ.DropExpiredSecrets(ctx, smallBatch) }},
		{"drop replays", func(ctx context.Context) (int64, error) {
			return w.slowQ.DropReplays(ctx, db.DropReplaysParams{MaxAge: keep.Attempts, MaxRows: smallBatch})
		}},
		{"drop deleted subscriptions", func(ctx context.Context) (int64, error) {
			return w.slowQ.DropDeletedSubscriptions(ctx, db.DropDeletedSubscriptionsParams{MaxAge: keep.Attempts + day, MaxRows: smallBatch})
		}},
	} {
		w.drain(ctx, task.what, task.f)
	}
}
