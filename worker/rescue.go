package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	beatInterval = 2 * time.Second
	// standstill is how long a heartbeat stands before its worker is taken for dead, on the rescuer's own clock; or, where
	// the database's clock says it has stood for so long, watched for shortStandstill, three beats, on its own: a rescuer that
	// has just started need not begin to count, and a stepped clock rescues nobody.
	standstill      = 15 * time.Second
	shortStandstill = 3 * beatInterval
	// watchInterval bounds what a rescue adds to the standstill.
	watchInterval = time.Second
)

// register signs this process on under a fresh identity and sees the state of the installation once.
func (w *Worker) register(ctx context.Context) error {
	id := uuid.New()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	now := time.Now()
	me := db.RegisterWorkerParams{ID: id, Hostname: host, Pid: int32(os.Getpid()), Version: w.cfg.Version, KeyIDs: w.cfg.Keyring.IDs()} //nolint:gosec // pids fit
	err = call(ctx, func(ctx context.Context) error {
		registered, err := w.q.RegisterWorker(ctx, me)
		if err == nil && registered == 0 {
			return cmp.Or(w.cfg.Keyring.Check(ctx, w.q), errMasterKeyMoved)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("register worker: %w", err)
	}
	w.identity.set(id)
	w.state.set(func(s *pulseState) { s.joinedAt = time.Now() })
	var row db.PulseRow
	err = call(ctx, func(ctx context.Context) (err error) {
		row, err = w.q.Pulse(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the installation's state: %w", err)
	}
	w.state.set(func(s *pulseState) { s.beatAt, s.recording = now, true })
	w.notice(row, now)
	return nil
}

// errMasterKeyMoved: the master key was rotated while a worker registered, to one that it has.
var errMasterKeyMoved = errors.New("the master key was rotated meanwhile")

// heartbeat counts up this worker's row. When the row is gone, another worker has taken this one for dead: it goes
// on under a new identity, and the leases of the old one are no longer its own. A worker that was stopped while the
// master key was rotated to one that it lacks gets no further than that, and sends nothing.
func (w *Worker) heartbeat(ctx context.Context) {
	every(ctx, beatInterval, func(ctx context.Context) {
		started := time.Now()
		err := callAgain(ctx, func(ctx context.Context) error {
			_, err := w.genericQ.Beat(ctx, w.identity.get())
			return err
		})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			w.cfg.Log.Warn("this worker was taken for dead, or lacks the master key: it goes on under a new identity", "worker_id", w.identity.get())
			w.complain(ctx, "register worker", w.register(ctx))
			w.putBack(w.batches.takeAllBack(), 0) // no longer its own
		case err != nil:
			w.complain(ctx, "beat", err)
		default:
			w.state.set(func(s *pulseState) { s.beatAt = started })
			w.answered(time.Now())
		}
		w.state.set(func(s *pulseState) { s.beatTurned = time.Now() })
	})
}

// signOff removes this worker's row, so that nobody waits for its heartbeat.
func (w *Worker) signOff(ctx context.Context) {
	err := call(ctx, func(ctx context.Context) error { return w.q.RemoveWorker(ctx, w.identity.get()) })
	w.complain(ctx, "sign off", err)
	w.cfg.Log.Info("worker stopped", "worker_id", w.identity.get())
}

// A sighting is a heartbeat and since when it has stood there. Time here is this process's monotonic clock: a stepped
// clock, ours or the database's, rescues nobody.
type sighting struct {
	heartbeat int64
	since     time.Time
}

// A watch is what one worker has seen of the others.
type watch struct {
	seen    map[uuid.UUID]sighting
	holders longLook
	orphans []uuid.UUID // holders of leases that are not registered: they stand still by definition
}

// rescue watches the heartbeats of all workers and frees the deliveries of those that stand still.
func (w *Worker) rescue(ctx context.Context) {
	others := watch{seen: map[uuid.UUID]sighting{}}
	every(ctx, watchInterval, func(ctx context.Context) {
		if err := w.watch(ctx, &others); err != nil {
			// A time in which we could not look proves nothing about anybody.
			clear(others.seen)
			w.complain(ctx, "watch heartbeats", err)
		}
	})
}

func (w *Worker) watch(ctx context.Context, others *watch) error {
	seen := others.seen
	if others.holders.isDue(w) {
		err := others.holders.look(func() error {
			return call(ctx, func(ctx context.Context) error {
				orphans, err := w.q.ListLeaseHolders(ctx)
				if err == nil {
					others.orphans = orphans
				}
				return err
			})
		})
		w.complain(ctx, "look for orphans", err) // the heartbeats tell without it who is dead
	}
	return call(ctx, func(ctx context.Context) error {
		rows, err := w.q.ListHeartbeats(ctx)
		if err != nil {
			return err
		}
		for _, id := range others.orphans {
			rows = append(rows, db.ListHeartbeatsRow{ID: id, Heartbeat: -1})
		}
		now := time.Now()
		present := map[uuid.UUID]bool{}
		for _, row := range rows {
			present[row.ID] = true
			if last, ok := seen[row.ID]; !ok || last.heartbeat != row.Heartbeat {
				seen[row.ID] = sighting{row.Heartbeat, now}
			} else if isDead(now.Sub(last.since), row.SilentSeconds) && row.ID != w.identity.get() {
				others.holders = longLook{} // due again: it may have gone on
				if err := w.takeFrom(ctx, row); err != nil {
					return err
				}
			}
		}
		for id := range seen {
			if !present[id] {
				delete(seen, id)
			}
		}
		return nil
	})
}

// isDead judges a worker whose heartbeat has stood for a time on this process's clock, and on the database's.
func isDead(stood time.Duration, silentSeconds float64) bool {
	return stood >= standstill || (stood >= shortStandstill && silentSeconds >= standstill.Seconds())
}

func (w *Worker) takeFrom(ctx context.Context, row db.ListHeartbeatsRow) error {
	if row.Heartbeat < 0 {
		n, err := w.q.FreeOrphans(ctx, []uuid.UUID{row.ID})
		if n > 0 {
			w.cfg.Log.Warn("freed deliveries of a worker that is gone", "worker_id", row.ID, "deliveries", n)
			w.freed.Store(true)
			signal(w.due)
		}
		return err
	}
	result, err := w.q.RescueWorker(ctx, db.RescueWorkerParams{ID: row.ID, Heartbeat: row.Heartbeat})
	if err == nil && result.Removed > 0 {
		w.metrics.workersRescued.Inc()
		w.cfg.Log.Warn("rescued a dead worker's deliveries", "worker_id", row.ID, "deliveries", result.Freed)
		w.freed.Store(true)
		w.sweepAll.Store(true)
		signal(w.due)
	}
	return err
}
