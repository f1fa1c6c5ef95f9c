package worker

import (
	"context"
	"sync/atomic"
	"time"

	"mailhook/db"
)

const (
	// urgentBatch bounds the outbox rows of one dispatch of the urgent lane: it is short, so that the next does not wait long.
	urgentBatch = 100
	// urgentPatience is how long the database looks for urgent rows before it answers that there are none. Its snapshot keeps
	// dead rows for as long, and its lock a migration of outbox, behind which the host waits.
	urgentPatience = 15 * time.Millisecond
	// lateAge is how long an urgent row may be committed after one with a higher id and still be found by the lane, and
	// lateMost bounds the ids for which that holds: the index entries of rows that are gone stay for as long as somebody holds a
	// snapshot, and each look reads those above its floor. What comes later goes by the ordinary lane.
	lateAge  = 10 * time.Second
	lateMost = 1000
)

// An urgentLane takes urgent rows out of the outbox beside the ordinary dispatch, while that has something to do. A worker
// that has nothing to do takes all rows as they come.
type urgentLane struct {
	d     *dispatcher
	after int64 // looks start above this id
	seen  []seenID
}

type seenID struct {
	id int64
	at time.Time
}

// A calm bounds what the ordinary dispatch hands to the senders at a time while urgent events come: a thousand deliveries are some
// 25 ms of this process's CPU time, and an urgent one that comes with them has its turn among them.
type calm struct {
	urgentAt  atomic.Int64 // the last time the lane took something, in Unix nanoseconds
	unstarted atomic.Int64 // deliveries that no sender has begun with
}

const (
	calmTime      = time.Second
	calmBatch     = 32
	calmUnstarted = 8
)

func (c *calm) isCalm() bool { return time.Since(time.Unix(0, c.urgentAt.Load())) < calmTime }

// rows is how many rows an ordinary dispatch takes of those that it might: none while the senders have not begun with what it
// took before.
func (c *calm) rows(n int) int {
	switch {
	case !c.isCalm():
		return n
	case c.unstarted.Load() > calmUnstarted:
		return 0
	}
	return min(n, calmBatch)
}

func newUrgentLane(w *Worker, requests context.Context) *urgentLane {
	return &urgentLane{d: &dispatcher{w: w, requests: requests, urgent: true, limit: urgentBatch, fanOut: -1}}
}

// dispatchUrgent looks for urgent rows for as long as the ordinary dispatch has something to do.
func (w *Worker) dispatchUrgent(ctx, requests context.Context) {
	l := newUrgentLane(w, requests)
	for ctx.Err() == nil {
		select {
		case <-w.busy:
		case <-ctx.Done():
			return
		}
		for more := true; (more || w.dispatching.Load()) && ctx.Err() == nil && w.mayLease(); {
			var err error
			if more, err = l.look(ctx); err != nil {
				w.complain(ctx, "dispatch urgent", err)
				pause(ctx, retryPause)
			}
		}
	}
}

// look takes the urgent rows that are there or come within the patience. It says whether there were any.
func (l *urgentLane) look(ctx context.Context) (bool, error) {
	w := l.d.w
	room := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	if room.urgent <= 0 || room.urgentBytes <= 0 {
		select {
		case <-room.more:
		case <-time.After(urgentPatience):
		case <-ctx.Done():
		}
		return true, nil
	}
	ids, err := l.await(ctx, l.d.rows(room.urgent))
	if err != nil || len(ids) == 0 {
		return false, err
	}
	err = l.take(ctx, ids, room)
	switch {
	case err == nil:
		l.d.limit = min(urgentBatch, 2*l.d.limit)
	case isOverTime(err): // its time was over, and as many would take as long again; one is left to the ordinary lane
		l.d.limit = max(1, len(ids)/2)
		return len(ids) > 1, err
	}
	return true, err
}

func (l *urgentLane) await(ctx context.Context, most int) (ids []int64, err error) {
	l.forget(time.Now())
	err = call(ctx, func(ctx context.Context) (err error) {
		ids, err = l.d.w.genericQ.AwaitUrgent(ctx, db.AwaitUrgentParams{AfterID: l.after, MaxRows: int32(most), Patience: urgentPatience}) //nolint:gosec // at most urgentBatch
		return err
	})
	return ids, err
}

// take dispatches these rows; after a data error one by one, and quarantines the row that causes it.
func (l *urgentLane) take(ctx context.Context, ids []int64, room room) error {
	taken, err := l.d.takeThese(ctx, ids, room)
	if isDataError(err) && len(ids) > 1 {
		for _, id := range ids {
			if err := l.take(ctx, []int64{id}, room); err != nil {
				return err
			}
		}
		return nil
	}
	if isDataError(err) {
		err = l.d.quarantine(ctx, ids[0], err)
	}
	if err != nil {
		return err
	}
	gone := ids[:0:0]
	now := time.Now()
	for _, row := range taken {
		gone = append(gone, row.ID)
	}
	for _, id := range ids {
		l.seen = append(l.seen, seenID{id, now})
	}
	l.d.w.early.add(gone)
	if len(gone) > 0 { // not for what another worker has taken
		l.d.w.calm.urgentAt.Store(now.UnixNano())
	}
	l.d.w.metrics.eventsUrgent.Add(float64(len(gone)))
	return nil
}

// takeThese takes the rows with these ids and no others.
func (d *dispatcher) takeThese(ctx context.Context, ids []int64, room room) ([]db.DispatchRow, error) {
	taken, err := d.take(ctx, maxID, ids, len(ids), room.urgent, min(room.urgentBytes, batchBytes))
	if err == nil && len(taken) > 0 {
		d.weigh(taken)
	}
	return taken, err
}

// forget raises the floor to what was seen long ago, or before the last lateMost.
func (l *urgentLane) forget(now time.Time) {
	for len(l.seen) > 0 && (len(l.seen) > lateMost || now.Sub(l.seen[0].at) > lateAge) {
		l.after = max(l.after, l.seen[0].id)
		l.seen = l.seen[1:]
	}
}
