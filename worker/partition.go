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
	// daysAhead is how many days of partitions stand ready: all workers may be down for that long.
	daysAhead = 3
	// daysAlarm is how many days ahead are too few: something has kept the next ones from being made since yesterday.
	daysAlarm = 2
	// countSlice is how many events one statement counts: a second or two where each is a group of its own.
	countSlice = 20_000
	// countProgress is after how many events the log says how far a count is.
	countProgress = 1_000_000
)

// makePartitions makes those of today and the days ahead; of the days behind that the outbox still has events of, after
// an outage of all workers; and of the days that have rows in DEFAULT, which move. One day that fails does not keep back
// the next.
func (w *Worker) makePartitions(ctx context.Context, now time.Time) {
	oldest := now
	w.complain(ctx, "look for the oldest event", call(ctx, func(ctx context.Context) error {
		at, err := w.slowQ.OldestUndispatched(ctx)
		if err == nil && at.Before(now) {
			oldest = at.UTC()
		}
		return err
	}))
	for parent, kept := range map[string]time.Duration{"events": w.cfg.Retention.Events, "attempts": w.cfg.Retention.Attempts} {
		from := now.Truncate(day)
		if parent == "events" && oldest.Before(from) {
			from = latest(oldest.Truncate(day), now.Add(-kept))
		}
		end := now.Truncate(day).AddDate(0, 0, daysAhead+1)
		var days []time.Time
		for at := from; at.Before(end); at = at.AddDate(0, 0, 1) {
			days = append(days, at)
		}
		inDefault, err := w.defaultDays(ctx, parent, now.Add(-kept), end)
		w.complain(ctx, "look into default partitions", err)
		for _, at := range append(days, inDefault...) {
			err := w.withShortLocks(ctx, func(q *db.Queries) error {
				_, err := q.CreatePartition(ctx, db.CreatePartitionParams{Parent: parent, Day: dateOf(at)})
				return err
			})
			if err != nil {
				w.complain(ctx, "make partitions", fmt.Errorf("%s of %s: %w", parent, at.Format(time.DateOnly), err))
			}
		}
	}
}

// defaultDays are the days from since to before end that have rows in the DEFAULT partition of parent. Rows of a day
// beyond end stay there until it comes nearer: a host that writes any time it likes must not make a partition for each.
func (w *Worker) defaultDays(ctx context.Context, parent string, since, end time.Time) (days []time.Time, err error) {
	err = call(ctx, func(ctx context.Context) error {
		dates, err := w.slowQ.ListDefaultDays(ctx, db.ListDefaultDaysParams{Parent: parent, Since: since, Until: end})
		for _, date := range dates {
			days = append(days, date.Time)
		}
		return err
	})
	return days, err
}

// dropPartitions counts and drops the days of events that nothing needs any more, and drops those of attempts.
func (w *Worker) dropPartitions(ctx context.Context, now time.Time) {
	eventsBefore, attemptsBefore := now.Add(-w.cfg.Retention.Events), now.Add(-w.cfg.Retention.Attempts)
	w.complain(ctx, "drop rows in default partitions", w.dropDefaults(ctx, eventsBefore, attemptsBefore))
	w.complain(ctx, "detach a day of events", w.detachEvents(ctx, eventsBefore))
	w.complain(ctx, "count a day of events", w.countDetached(ctx))
	w.complain(ctx, "drop a day of attempts", w.dropAttempts(ctx, attemptsBefore))
}

// dropDefaults removes the rows in DEFAULT that are past their time, in batches; those of events are counted.
func (w *Worker) dropDefaults(ctx context.Context, eventsBefore, attemptsBefore time.Time) error {
	var old db.HasOldDefaultRowsRow
	err := call(ctx, func(ctx context.Context) (err error) {
		old, err = w.slowQ.HasOldDefaultRows(ctx, db.HasOldDefaultRowsParams{EventsBefore: eventsBefore, AttemptsBefore: attemptsBefore})
		return err
	})
	for n := int64(smallBatch); err == nil && old.Events && n >= smallBatch; {
		err = w.withShortLocks(ctx, func(q *db.Queries) (err error) {
			n, err = q.DropDefaultEvents(ctx, db.DropDefaultEventsParams{Before: eventsBefore, MaxRows: smallBatch})
			return err
		}, "LOCK TABLE ONLY mailhook.events_default IN ACCESS EXCLUSIVE MODE")
	}
	for n := int64(smallBatch); err == nil && old.Attempts && n >= smallBatch; {
		err = call(ctx, func(ctx context.Context) (err error) {
			n, err = w.slowQ.DropDefaultAttempts(ctx, db.DropDefaultAttemptsParams{Before: attemptsBefore, MaxRows: smallBatch})
			return err
		})
	}
	return err
}

// detachEvents takes the days before a time out of events, but for those that something needs.
func (w *Worker) detachEvents(ctx context.Context, before time.Time) error {
	days, err := w.daysBefore(ctx, "events", before)
	for _, at := range days {
		err = errors.Join(err, w.withShortLocks(ctx, func(q *db.Queries) error {
			_, err := q.DetachDay(ctx, dateOf(at))
			return err
		}))
	}
	return err
}

// countDetached counts the days that are no longer in events, slice by slice, and drops each with its last one. A count
// that was cut short goes on where it ended.
func (w *Worker) countDetached(ctx context.Context) error {
	var days []pgtype.Date
	err := call(ctx, func(ctx context.Context) (err error) {
		days, err = w.slowQ.ListDetachedDays(ctx)
		return err
	})
	for _, date := range days {
		err = errors.Join(err, w.countDay(ctx, date))
	}
	return err
}

func (w *Worker) countDay(ctx context.Context, date pgtype.Date) error {
	started, counted := time.Now(), int64(0)
	name := date.Time.Format(time.DateOnly)
	for n := int64(countSlice); n == countSlice; {
		err := w.withShortLocks(ctx, func(q *db.Queries) (err error) {
			n, err = q.CountDay(ctx, db.CountDayParams{Day: date, MaxRows: countSlice})
			return err
		})
		if err != nil {
			return err
		}
		if n < 0 {
			return nil
		}
		if counted += n; n == countSlice && counted%countProgress == 0 {
			w.cfg.Log.Info("counting a day of events", "day", name, "counted", counted)
		}
	}
	w.cfg.Log.Info("counted and dropped a day of events", "day", name, "counted", counted, "seconds", time.Since(started).Seconds())
	return nil
}

func (w *Worker) dropAttempts(ctx context.Context, before time.Time) error {
	days, err := w.daysBefore(ctx, "attempts", before)
	for _, at := range days {
		dropErr := w.withShortLocks(ctx, func(q *db.Queries) error { return q.DropAttempts(ctx, dateOf(at)) })
		if dropErr == nil {
			w.cfg.Log.Info("dropped a day of attempts", "day", at.Format(time.DateOnly))
		}
		err = errors.Join(err, dropErr)
	}
	return err
}

// daysBefore are the days of parent's partitions that lie wholly before a time, oldest first.
func (w *Worker) daysBefore(ctx context.Context, parent string, before time.Time) (days []time.Time, err error) {
	var names []string
	err = call(ctx, func(ctx context.Context) (err error) {
		names, err = w.slowQ.ListPartitions(ctx, parent)
		return err
	})
	for _, name := range names {
		start, err := time.Parse("20060102", name[strings.LastIndexByte(name, '_')+1:])
		if err == nil && !start.Add(day).After(before) {
			days = append(days, start)
		}
	}
	return days, err
}

// withShortLocks runs DDL in a transaction that waits 100 ms for a lock at most, and tries again a few times: a DDL
// statement that queues for its lock stalls every INSERT behind it.
func (w *Worker) withShortLocks(ctx context.Context, f func(*db.Queries) error, statements ...string) error {
	var err error
	for range 20 {
		err = call(ctx, func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, w.slowPool, func(tx pgx.Tx) error {
				for _, statement := range append([]string{"SET LOCAL lock_timeout = '100ms'"}, statements...) {
					if _, err := tx.Exec(ctx, statement); err != nil {
						return err
					}
				}
				return f(w.slowQ.WithTx(tx))
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

// alarm says, once a run, what does not go as it should: too few days ahead, days that should be gone, and rows in a
// DEFAULT partition. The metrics of the same names are read at each scrape.
func (w *Worker) alarm(ctx context.Context) error {
	return call(ctx, func(ctx context.Context) error {
		ahead, err := w.slowQ.ListPartitionsAhead(ctx)
		if err != nil {
			return err
		}
		for _, p := range ahead {
			if p.Days < daysAlarm {
				w.cfg.Log.Error("partitions run out", "table", p.Parent, "days_ahead", p.Days)
			}
		}
		overdue, err := w.slowQ.ListOverdueDays(ctx, overdueParams(w.cfg.Retention))
		if err != nil {
			return err
		}
		for _, o := range overdue {
			log := w.cfg.Log.Info
			if o.Reason == "waiting" {
				log = w.cfg.Log.Error // this run should have detached or dropped them
			}
			log("days are kept beyond their retention", "table", o.Parent, "reason", o.Reason, "days", o.Days, "oldest_day", o.OldestDay.Time.Format(time.DateOnly))
		}
		rows, err := w.slowQ.CountDefaultRows(ctx)
		if err != nil {
			return err
		}
		if rows.Events+rows.Attempts > 0 {
			w.cfg.Log.Error("rows lie in a DEFAULT partition", "events", rows.Events, "attempts", rows.Attempts)
		}
		return nil
	})
}

func overdueParams(keep Retention) db.ListOverdueDaysParams {
	return db.ListOverdueDaysParams{KeepEvents: keep.Events, KeepAttempts: keep.Attempts}
}

func dateOf(at time.Time) pgtype.Date { return pgtype.Date{Time: at, Valid: true} }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
