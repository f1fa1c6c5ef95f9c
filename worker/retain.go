package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"mailhook/db"
)

const (
	retainInterval = 10 * time.Minute
	// daysAhead is how many days of partitions stand ready: a worker may be down for that long.
	daysAhead = 3
	day       = 24 * time.Hour
)

// retain keeps the tables small: partitions are made ahead and dropped behind, and what is past its time goes in
// batches. One worker does it at a time, behind an expiring lease; nothing breaks if two do.
func (w *Worker) retain(ctx context.Context) {
	every(ctx, retainInterval, func(ctx context.Context) {
		err := call(ctx, func(ctx context.Context) error {
			_, err := w.q.LeaseTask(ctx, db.LeaseTaskParams{Task: "retain", WorkerID: w.identity.get(), Seconds: (retainInterval / 2).Seconds()})
			return err
		})
		if err == pgx.ErrNoRows { //nolint:errorlint // pgx answers it bare
			return
		}
		w.complain(ctx, "lease retention", err)
		if err == nil {
			w.retainOnce(ctx, time.Now().UTC())
		}
	})
}

func (w *Worker) retainOnce(ctx context.Context, now time.Time) {
	keep := w.cfg.Retention
	for _, parent := range []string{"events", "attempts"} {
		w.complain(ctx, "make partitions", w.makePartitions(ctx, parent, now))
	}
	w.drain(ctx, "drop dead letters", func(ctx context.Context) (int64, error) {
		return w.q.DropDeadLetters(ctx, db.DropDeadLettersParams{MaxAge: keep.DeadLetters, MaxRows: smallBatch})
	})
	w.drain(ctx, "drop quarantine", func(ctx context.Context) (int64, error) {
		return w.q.DropQuarantine(ctx, db.DropQuarantineParams{MaxAge: keep.Quarantine, MaxRows: smallBatch})
	})
	w.drain(ctx, "drop dedupe keys", func(ctx context.Context) (int64, error) { return w.q.DropDedupeKeys(ctx, smallBatch) })
	for what, f := range map[string]func(context.Context) (int64, error){
		"drop test deliveries": w.q.DropTestDeliveries,
		"drop expired secrets": w.q.DropExpiredSecrets,
		"drop deleted subscriptions": func(ctx context.Context) (int64, error) {
			return w.q.DropDeletedSubscriptions(ctx, keep.Attempts+day)
		},
	} {
		w.complain(ctx, what, call(ctx, func(ctx context.Context) error { _, err := f(ctx); return err }))
	}
	w.complain(ctx, "drop partitions", w.dropPartitions(ctx, now))
	w.complain(ctx, "look into default partitions", w.alarm(ctx))
}

// makePartitions makes those of today and the days ahead.
func (w *Worker) makePartitions(ctx context.Context, parent string, now time.Time) error {
	var errs []error
	for ahead := range daysAhead + 1 {
		params := db.CreatePartitionParams{Parent: parent, Day: pgtype.Date{Time: now.AddDate(0, 0, ahead), Valid: true}}
		err := w.withShortLocks(ctx, func(q *db.Queries) error {
			_, err := q.CreatePartition(ctx, params)
			return err
		})
		errs = append(errs, err) // one day that fails does not keep back the next
	}
	return errors.Join(errs...)
}

// dropPartitions drops the days that nothing needs any more: an event stays for as long as an unfinished delivery or a
// kept dead letter is about it.
func (w *Worker) dropPartitions(ctx context.Context, now time.Time) error {
	var needed time.Time
	err := call(ctx, func(ctx context.Context) (err error) {
		needed, err = w.q.OldestNeededEvent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	before := now.Add(-w.cfg.Retention.Events)
	if needed.Before(before) {
		before = needed
	}
	attemptsBefore := now.Add(-w.cfg.Retention.Attempts)
	w.drain(ctx, "drop events in DEFAULT", func(ctx context.Context) (int64, error) {
		return w.q.DropDefaultEvents(ctx, db.DropDefaultEventsParams{Before: before, MaxRows: smallBatch})
	})
	w.drain(ctx, "drop attempts in DEFAULT", func(ctx context.Context) (int64, error) {
		return w.q.DropDefaultAttempts(ctx, db.DropDefaultAttemptsParams{Before: attemptsBefore, MaxRows: smallBatch})
	})
	return errors.Join(w.dropBefore(ctx, "events", before), w.dropBefore(ctx, "attempts", attemptsBefore))
}

// dropBefore drops the partitions of parent whose whole day lies before a time.
func (w *Worker) dropBefore(ctx context.Context, parent string, before time.Time) error {
	var names []string
	err := call(ctx, func(ctx context.Context) (err error) {
		names, err = w.q.ListPartitions(ctx, parent)
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		start, err := time.Parse("20060102", name[strings.LastIndexByte(name, '_')+1:])
		if err != nil || start.Add(day).After(before) {
			continue
		}
		err = w.withShortLocks(ctx, func(*db.Queries) error { return nil }, "DROP TABLE mailhook."+pgx.Identifier{name}.Sanitize())
		if err != nil {
			return fmt.Errorf("drop %s: %w", name, err)
		}
		w.cfg.Log.Info("dropped a day of history", "partition", name)
	}
	return nil
}

// withShortLocks runs DDL in a transaction that waits 100 ms for a lock at most, and tries again a few times: a DDL
// statement that queues for its lock stalls every INSERT behind it.
func (w *Worker) withShortLocks(ctx context.Context, f func(*db.Queries) error, statements ...string) error {
	var err error
	for range 20 {
		err = call(ctx, func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
				for _, statement := range append([]string{"SET LOCAL lock_timeout = '100ms'"}, statements...) {
					if _, err := tx.Exec(ctx, statement); err != nil {
						return err
					}
				}
				return f(w.q.WithTx(tx))
			})
		})
		if sqlState(err) != "55P03" { // lock_not_available
			return err
		}
		if !pause(ctx, 500*time.Millisecond) {
			return ctx.Err()
		}
	}
	return err
}

// alarm says that rows lie in a DEFAULT partition: partitions were not made ahead in time, or a host writes
// inserted_at by itself.
func (w *Worker) alarm(ctx context.Context) error {
	return call(ctx, func(ctx context.Context) error {
		rows, err := w.q.CountDefaultRows(ctx)
		if err != nil {
			return err
		}
		w.metrics.defaultRows.Set(float64(rows.Events + rows.Attempts))
		if rows.Events+rows.Attempts > 0 {
			w.cfg.Log.Error("rows lie in a DEFAULT partition", "events", rows.Events, "attempts", rows.Attempts)
		}
		return nil
	})
}
