package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// The states in which a key may be between the commits of who ends its head and of who blocks another behind it.
func TestNoKeyIsLeftWithoutAHead(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]string{
		"blocked, then ended":                        {"dispatch", "end", "commit dispatch", "unblock by dispatch", "commit end", "unblock by end"},
		"blocked, then ended, and unblocked at last": {"end", "dispatch", "commit dispatch", "commit end", "unblock by end", "unblock by dispatch"},
		"ended, then blocked":                        {"dispatch", "end", "commit end", "unblock by end", "commit dispatch", "unblock by dispatch"},
		"ended, then blocked, and unblocked at last": {"dispatch", "end", "commit end", "commit dispatch", "unblock by dispatch", "unblock by end"},
		"ended, and not committed for the dispatch":  {"end", "dispatch", "commit end", "unblock by end", "commit dispatch", "unblock by dispatch"},
		"ended before the dispatch":                  {"end", "commit end", "dispatch", "unblock by end", "commit dispatch", "unblock by dispatch"},
		"the worker that has ended it is killed":     {"end", "commit end", "dispatch", "commit dispatch", "unblock by dispatch"},
		"the one that has blocked it is killed":      {"dispatch", "end", "commit dispatch", "commit end", "unblock by end"},
		"both are killed":                            {"dispatch", "end", "commit end", "commit dispatch", "sweep"},
		"a dispatch in the midst of an end":          {"end", "dispatch", "commit dispatch", "unblock by dispatch", "commit end", "unblock by end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newOrderRace(t)
			r.emit()
			r.play("dispatch", "commit dispatch")
			r.emit()
			r.play(steps...)
			r.check("2 head")
		})
	}
}

// Two dispatches side by side, which do not know of an order yet, find no delivery of the key: neither makes a head.
func TestDispatchesSideBySideMakeOneHead(t *testing.T) {
	t.Parallel()
	r := newOrderRace(t)
	r.inTurn = false
	r.emit()
	r.play("dispatch")
	r.emit()
	other := r.begin()
	if err := r.dispatchBy(other); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.play("commit dispatch", "unblock by dispatch")
	r.check("1 head, 2 blocked")
}

// A replay makes a head while a dispatch runs that has found none: the dispatch is tried again, and nothing is quarantined.
func TestADispatchBesideANewHead(t *testing.T) {
	t.Parallel()
	r := newOrderRace(t)
	r.emit()
	r.play("dispatch", "commit dispatch")
	tx := r.begin()
	_, err := tx.Exec(t.Context(), `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
		SELECT subscription_id, account_id, event_inserted_at, 9, event_type, now(), now(), order_key FROM mailhook.deliveries`)
	if err == nil {
		t.Fatal("a key has two heads")
	}
	r.play("end", "commit end")
	tx = r.begin()
	_, err = tx.Exec(t.Context(), `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
		SELECT subscription_id, account_id, event_inserted_at, 9, event_type, now(), now(), mailhook.order_key('recipient', '', 'a@example.com') FROM mailhook.attempts`)
	if err != nil {
		t.Fatal(err)
	}
	r.emit()
	r.w.state.set(func(s *pulseState) { s.inOrder = true })
	d := &dispatcher{w: r.w, requests: t.Context(), limit: 10, fanOut: -1}
	done := r.beside(func() error {
		n, err := d.look(t.Context(), 10, batchBytes)
		if err == nil && n != 1 {
			err = errors.New("it does not look again")
		}
		return err
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	done()
	if n, err := d.look(t.Context(), 10, batchBytes); err != nil || n != 1 {
		t.Error(n, err)
	}
	r.check("2 blocked, 9 head")
}

// Two look for the same next delivery side by side: it is the head then, and the one after it is not.
func TestUnblockedSideBySide(t *testing.T) {
	t.Parallel()
	r := newOrderRace(t)
	for range 3 {
		r.emit()
	}
	r.play("dispatch", "commit dispatch", "end", "commit end")
	key := r.keys["end"]
	tx := r.begin()
	if row, err := db.New(tx).Unblock(t.Context(), key); err != nil || row.Unblocked != 1 {
		t.Fatal(row, err)
	}
	done := r.beside(func() error { r.w.unblock(t.Context(), key); return nil })
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	done()
	r.check("2 head, 3 blocked")
}

// Another head comes while one is made of a blocked delivery: it is looked at once more.
func TestUnblockedBesideANewHead(t *testing.T) {
	t.Parallel()
	r := newOrderRace(t)
	r.emit()
	r.emit()
	r.play("dispatch", "commit dispatch", "end", "commit end")
	tx := r.begin()
	_, err := tx.Exec(t.Context(), `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
		SELECT subscription_id, account_id, event_inserted_at, 9, event_type, now(), now(), order_key FROM mailhook.deliveries`)
	if err != nil {
		t.Fatal(err)
	}
	done := r.beside(func() error { r.w.unblock(t.Context(), r.keys["end"]); return nil })
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	done()
	r.check("2 blocked, 9 head")
	if r.w.sweepAll.Load() {
		t.Error("it was given up, and left to the sweep")
	}
}

// Dispatches of workers that know of an order begin one after another, and see what the one before has committed.
func TestDispatchesTakeTurns(t *testing.T) {
	t.Parallel()
	r := newOrderRace(t)
	tx := r.begin()
	if _, err := tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock($1)", int64(dispatchTurn)); err != nil {
		t.Fatal(err)
	}
	r.emit()
	r.emit()
	done := r.beside(func() error {
		_, err := db.New(db.InTurn(r.w.genericPool, dispatchTurn, time.Minute)).Dispatch(t.Context(), r.params(0))
		return err
	})
	// Committed after the other began: what it waits for must be seen.
	if err := r.dispatchBy(tx); err != nil {
		t.Fatal(err)
	}
	r.emit()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	done()
	r.check("1 head, 2 blocked, 3 blocked")
	if n := r.b.count(t, "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND a.datname = current_database()"); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// An orderRace is two transactions that the test commits: one dispatches, one ends the head.
type orderRace struct {
	t     *testing.T
	b     *bundle
	w     *Worker
	txs   map[string]pgx.Tx
	keys  map[string]db.UnblockParams
	lease uuid.UUID
	// inTurn is what dispatches are told; the test sees to it.
	inTurn bool
}

func newOrderRace(t *testing.T) *orderRace {
	t.Helper()
	b := setup(t)
	b.subscribe(t, "/", "email", "ordering = 'recipient'")
	return &orderRace{t: t, b: b, w: b.idleWorker(t, b.config()), txs: map[string]pgx.Tx{}, keys: map[string]db.UnblockParams{}, lease: uuid.New(), inTurn: true}
}

func (r *orderRace) emit() {
	r.t.Helper()
	r.b.Exec(r.t, "INSERT INTO mailhook.outbox (event_type, recipient) VALUES ('email.sent', 'a@example.com')")
}

func (r *orderRace) begin() pgx.Tx {
	r.t.Helper()
	tx, err := r.b.Pool.Begin(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { tx.Rollback(context.WithoutCancel(r.t.Context())) })
	return tx
}

// beside begins f, which is to wait for a lock, and answers a function that waits for its end.
func (r *orderRace) beside(f func() error) (ended func()) {
	r.t.Helper()
	errs := make(chan error, 1)
	go func() { errs <- f() }()
	dbtest.Eventually(r.t, "it waits", func() bool {
		return r.b.count(r.t, "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE NOT l.granted AND a.datname = current_database()") > 0
	})
	return func() {
		r.t.Helper()
		if err := <-errs; err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *orderRace) play(steps ...string) {
	r.t.Helper()
	for _, step := range steps {
		var err error
		switch step {
		case "dispatch":
			r.txs[step] = r.begin()
			err = r.dispatchBy(r.txs[step])
		case "end":
			r.txs[step] = r.begin()
			err = r.endBy(r.txs[step])
		case "commit dispatch", "commit end":
			err = r.txs[step[len("commit "):]].Commit(r.t.Context())
		case "unblock by dispatch", "unblock by end":
			if p := r.keys[step[len("unblock by "):]]; len(p.OrderKeys) > 0 {
				r.w.unblock(r.t.Context(), p)
			}
		case "sweep":
			s := keySweep{}
			if _, err = s.slice(r.t.Context(), r.w); err == nil {
				r.w.unblockAll(r.t.Context())
			}
		default:
			r.t.Fatalf("no step %q", step)
		}
		if err != nil {
			r.t.Fatalf("%s: %v", step, err)
		}
	}
}

func (r *orderRace) params(after int64) db.DispatchParams {
	return db.DispatchParams{Holes: []int64{}, AfterID: after, MaxRows: 10, MaxBytes: batchBytes, WorkerID: r.w.identity.get(), LeaseID: r.lease, FreeSlots: 10,
		InFlight: []byte("{}"), Limits: []byte("{}"), IDPrefix: idPrefix(), InTurn: r.inTurn}
}

func (r *orderRace) dispatchBy(tx pgx.Tx) error {
	rows, err := db.New(tx).Dispatch(r.t.Context(), r.params(0))
	var p db.UnblockParams
	for _, k := range blockedKeys(listedOf(rows)) {
		p.SubscriptionIDs, p.OrderKeys = append(p.SubscriptionIDs, k.subscriptionID), append(p.OrderKeys, k.key)
	}
	r.keys["dispatch"] = p
	return err
}

func (r *orderRace) endBy(tx pgx.Tx) error {
	var id, subscription uuid.UUID
	var key int64
	err := r.b.Pool.QueryRow(r.t.Context(), "SELECT id, subscription_id, order_key FROM mailhook.deliveries WHERE lease_id IS NOT NULL").Scan(&id, &subscription, &key)
	if err != nil {
		return err
	}
	r.keys["end"] = db.UnblockParams{SubscriptionIDs: []uuid.UUID{subscription}, OrderKeys: []int64{key}}
	p := recordParams([]outcome{{delivery: &delivery{id: id, leaseID: r.lease}, word: outcomeOK, startedAt: time.Now()}})
	p.AgesMS = []int32{0}
	_, err = db.New(tx).Record(r.t.Context(), p)
	return err
}

// check compares what is unfinished, by event.
func (r *orderRace) check(want string) {
	r.t.Helper()
	got := dbtest.QueryOne[string](r.t, r.b.DB, `SELECT coalesce(string_agg(event_id || CASE WHEN next_attempt_at < 'infinity' THEN ' head' ELSE ' blocked' END, ', ' ORDER BY event_id), '')
		FROM mailhook.deliveries`)
	if got != want {
		r.t.Errorf("unfinished: %s, want %s", got, want)
	}
}
