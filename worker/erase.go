package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	eraseInterval = time.Second
	// The rows that a step looks at: so many that it takes about eraseStep.
	eraseRows    = 1000
	maxEraseRows = 20_000
	eraseStep    = 250 * time.Millisecond
	// eraseLock is how long a step waits for a row that somebody else has: less than deadlock_timeout, so that of two that
	// wait for each other it is the erasure that gives in, and no dispatch or record.
	eraseLock = "500ms"
)

// erase works off the erasures that people ask for through the API.
func (w *Worker) erase(ctx context.Context) {
	e := NewEraser(w.slowPool)
	ctx = withTimeout(ctx, slowTimeout)
	every(ctx, eraseInterval, func(ctx context.Context) {
		for ctx.Err() == nil {
			n, err := e.Step(ctx)
			if sqlState(err) != "55P03" { // lock_not_available: the next step tries again
				w.complain(ctx, "erase", err)
			}
			w.metrics.erased(n)
			if err != nil || n == (Erased{}) {
				return
			}
		}
	})
}

// An Eraser works off erasures, the accounts in turn, in steps. Of several, in whatever processes, one does; and what one has
// left another goes on with.
type Eraser struct {
	pool *db.Pool
	rows int32
}

// NewEraser makes one. The sessions of the pool should be IndexOnly, and have a statement timeout of some 30 s.
func NewEraser(pool *db.Pool) *Eraser { return &Eraser{pool: pool, rows: eraseRows} }

// Erased is what a step has done, in rows. It is not zero unless there was nothing to do.
type Erased struct {
	Scanned, Outbox, Events, Deliveries, Attempts, DeadLetters, Quarantine, DedupeKeys, TestDeliveries int64
	// Turned: it has come to the next table, or to the end.
	Turned bool
}

// Step does the next step, in one transaction, and then pauses for as long as it took: an erasure has half of the time of
// one session. It answers zero when nothing is to be done, another session is at it, or the host's transactions are waited
// for that were open when the erasure began.
func (e *Eraser) Step(ctx context.Context) (n Erased, err error) {
	started := time.Now()
	err = call(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '"+eraseLock+"'"); err != nil {
				return err
			}
			s := &erasureStep{q: db.New(tx), rows: e.rows}
			s.LockErasureRow, err = s.q.LockErasure(ctx)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err == nil {
				err = s.q.LockPartitions(ctx)
			}
			if err == nil {
				err = s.run(ctx)
			}
			n = s.done
			return err
		})
	})
	took := time.Since(started)
	switch {
	case err != nil:
		e.rows, n = max(1, e.rows/2), Erased{}
	case took > 2*eraseStep:
		e.rows = max(1, e.rows/2)
	case took < eraseStep && n.Scanned >= int64(e.rows):
		e.rows = min(maxEraseRows, 2*e.rows)
	}
	if n != (Erased{}) {
		pause(ctx, took)
	}
	return n, err
}

// An erasureStep is one step of one erasure, whose row it has locked.
type erasureStep struct {
	db.LockErasureRow
	q    *db.Queries
	rows int32
	done Erased
}

// run does the step of the phase. An event moves from the outbox to quarantine or events, and never back while an erasure
// runs; so the tables are read in this order, and each once. Attempts come last: by then none is recorded any more for what
// was erased.
func (s *erasureStep) run(ctx context.Context) error {
	phases := []struct {
		name string
		step func(context.Context) (ended bool, err error)
	}{
		{"new", s.begin}, {"waiting", s.wait}, {"outbox", s.outbox}, {"quarantine", s.quarantine}, {"dedupe_keys", s.dedupeKeys},
		{"events", s.events}, {"detached_days", s.detachedDays}, {"attempts", s.attempts}, {"test_deliveries", s.testDeliveries},
	}
	for i, phase := range phases {
		if phase.name != s.Phase {
			continue
		}
		ended, err := phase.step(ctx)
		if err != nil {
			return fmt.Errorf("erase: %s: %w", phase.name, err)
		}
		s.done.Turned = ended
		if ended && i == len(phases)-1 {
			return errors.Join(s.save(ctx), s.q.EndErasure(ctx, s.ID))
		}
		if ended {
			return s.turn(ctx, phases[i+1].name)
		}
		return s.save(ctx)
	}
	return fmt.Errorf("erase: there is no phase %q", s.Phase)
}

// turn begins the next phase at the start of its table.
func (s *erasureStep) turn(ctx context.Context, phase string) error {
	bounds, err := s.q.ErasureBounds(ctx)
	if err != nil {
		return err
	}
	s.Phase, s.Until, s.AfterAt, s.AfterNumber, s.AfterID = phase, bounds.Events, time.Time{}, 0, uuid.Nil
	if phase == "attempts" {
		s.Until = bounds.Attempts
	}
	return s.save(ctx)
}

func (s *erasureStep) save(ctx context.Context) error {
	n := s.done
	return s.q.AdvanceErasure(ctx, db.AdvanceErasureParams{
		ID: s.ID, Phase: s.Phase, Writers: s.Writers, Until: s.Until, AfterAt: s.AfterAt, AfterNumber: s.AfterNumber, AfterID: s.AfterID,
		Scanned: n.Scanned, Outbox: n.Outbox, Events: n.Events, Deliveries: n.Deliveries, Attempts: n.Attempts, DeadLetters: n.DeadLetters,
		Quarantine: n.Quarantine, DedupeKeys: n.DedupeKeys, TestDeliveries: n.TestDeliveries,
	})
}

// begin notes who may have written what cannot be seen yet. The erasure is committed by now: who puts an event out of
// quarantine back from here on sees it, and does not.
func (s *erasureStep) begin(ctx context.Context) (bool, error) {
	writers, err := s.q.ListWriters(ctx, "mailhook.outbox")
	s.Writers = writers
	return true, err
}

func (s *erasureStep) wait(ctx context.Context) (bool, error) {
	writers, err := s.q.ListWriters(ctx, "mailhook.outbox")
	if err != nil {
		return false, err
	}
	open := map[string]bool{}
	for _, writer := range writers {
		open[writer] = true
	}
	for _, writer := range s.Writers {
		if open[writer] {
			return false, nil
		}
	}
	s.Writers = []string{}
	return true, nil
}

func (s *erasureStep) outbox(ctx context.Context) (bool, error) {
	found, err := s.q.FindInOutbox(ctx, db.FindInOutboxParams{ErasureID: s.ID, AccountID: s.AccountID, AfterID: s.AfterNumber, MaxRows: s.rows})
	if err != nil {
		return false, err
	}
	s.AfterNumber, s.done.Scanned, s.done.Outbox = found.LastID, found.Scanned, int64(len(found.IDs))
	if len(found.IDs) > 0 && !s.IsDryRun {
		s.done.Outbox, err = s.q.EraseFromOutbox(ctx, db.EraseFromOutboxParams{ErasureID: s.ID, IDs: found.IDs})
	}
	return found.Scanned < int64(s.rows), err
}

func (s *erasureStep) quarantine(ctx context.Context) (bool, error) {
	found, err := s.q.FindInQuarantine(ctx, db.FindInQuarantineParams{
		ErasureID: s.ID, AccountID: s.AccountID, AfterAt: s.AfterAt, AfterID: s.AfterNumber, MaxRows: s.rows,
	})
	if err != nil {
		return false, err
	}
	s.AfterAt, s.AfterNumber, s.done.Scanned, s.done.Quarantine = found.LastAt, found.LastID, found.Scanned, int64(len(found.IDs))
	if len(found.IDs) > 0 && !s.IsDryRun {
		s.done.Quarantine, err = s.q.EraseFromQuarantine(ctx, db.EraseFromQuarantineParams{InsertedAts: found.InsertedAts, IDs: found.IDs})
	}
	return found.Scanned < int64(s.rows), err
}

func (s *erasureStep) dedupeKeys(ctx context.Context) (bool, error) {
	row, err := s.q.EraseDedupeKeys(ctx, db.EraseDedupeKeysParams{
		ErasureID: s.ID, AccountID: s.AccountID, AfterAt: s.AfterAt, Until: s.Until, MaxRows: s.rows, IsDryRun: s.IsDryRun,
	})
	s.AfterAt, s.done.Scanned, s.done.DedupeKeys = row.LastAt, row.Scanned, row.Erased
	return row.Scanned < int64(s.rows), err
}

func (s *erasureStep) events(ctx context.Context) (bool, error) {
	found, err := s.q.FindInEvents(ctx, db.FindInEventsParams{
		ErasureID: s.ID, AccountID: s.AccountID, AfterAt: s.AfterAt, AfterID: s.AfterNumber, Until: s.Until, MaxRows: s.rows,
	})
	if err != nil {
		return false, err
	}
	s.AfterAt, s.AfterNumber, s.done.Scanned = found.LastAt, found.LastID, found.Scanned
	if len(found.IDs) > 0 {
		err = s.eraseEvents(ctx, found.InsertedAts, found.IDs)
	}
	return found.Scanned < int64(s.rows), err
}

func (s *erasureStep) eraseEvents(ctx context.Context, insertedAts []time.Time, ids []int64) error {
	if s.IsDryRun {
		row, err := s.q.CountOfEvents(ctx, db.CountOfEventsParams{ErasureID: s.ID, InsertedAts: insertedAts, IDs: ids})
		s.done.Events, s.done.Deliveries, s.done.DeadLetters, s.done.DedupeKeys = int64(len(ids)), row.Deliveries, row.DeadLetters, row.DedupeKeys
		return err
	}
	row, err := s.q.EraseEvents(ctx, db.EraseEventsParams{ErasureID: s.ID, InsertedAts: insertedAts, IDs: ids})
	if err != nil {
		return err
	}
	s.done.Events, s.done.DedupeKeys = row.Events, row.DedupeKeys
	s.done.Deliveries, err = s.q.CancelErasedDeliveries(ctx, db.CancelErasedDeliveriesParams{InsertedAts: insertedAts, IDs: ids})
	if err != nil {
		return err
	}
	s.done.DeadLetters, err = s.q.EraseDeadLetters(ctx, db.EraseDeadLettersParams{InsertedAts: insertedAts, IDs: ids})
	return err
}

func (s *erasureStep) detachedDays(ctx context.Context) (bool, error) {
	row, err := s.q.EraseDetached(ctx, db.EraseDetachedParams{ErasureID: s.ID, MaxRows: s.rows})
	s.AfterAt, s.AfterNumber, s.done.Scanned, s.done.Events = row.LastAt, row.LastID, row.Scanned, row.Erased
	return !row.Found, err
}

func (s *erasureStep) attempts(ctx context.Context) (bool, error) {
	row, err := s.q.EraseAttempts(ctx, db.EraseAttemptsParams{
		ErasureID: s.ID, AccountID: s.AccountID, AfterAt: s.AfterAt, AfterID: s.AfterID, Until: s.Until, MaxRows: s.rows, IsDryRun: s.IsDryRun,
	})
	s.AfterAt, s.AfterID, s.done.Scanned, s.done.Attempts = row.LastAt, row.LastID, row.Scanned, row.Erased
	return row.Scanned < int64(s.rows), err
}

func (s *erasureStep) testDeliveries(ctx context.Context) (_ bool, err error) {
	s.done.TestDeliveries, err = s.q.EraseTestDeliveries(ctx, db.EraseTestDeliveriesParams{ErasureID: s.ID, AccountID: s.AccountID, IsDryRun: s.IsDryRun})
	return true, err
}
