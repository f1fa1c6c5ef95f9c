package db_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// waitsForLock waits until a session of the database waits for a lock.
func waitsForLock(t *testing.T, d *dbtest.DB) {
	t.Helper()
	dbtest.Eventually(t, "somebody waits for a lock", func() bool {
		return dbtest.QueryOne[bool](t, d, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
	})
}

// What is being sealed with the key before a rotation is stored before the rotation looks for such values.
func TestARotationWaitsForWhoSeals(t *testing.T) {
	t.Parallel()
	d, one, two := dbtest.New(t), db.NewMasterKey(), db.NewMasterKey()
	old, both := newKeyring(t, one), newKeyring(t, two, one)
	if err := old.Check(t.Context(), db.New(d.Pool)); err != nil {
		t.Fatal(err)
	}
	tx, err := d.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	q, id := db.New(tx), uuid.Must(uuid.NewV7())
	key, err := old.Current(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	rotated := make(chan error, 1)
	go func() {
		done, err := db.Rotate(t.Context(), &db.Pool{Pool: d.Pool}, both, func(int64) {})
		if err == nil && (done.Resealed != 1 || len(done.RemovableKeyIDs) != 1) {
			err = fmt.Errorf("%+v", done)
		}
		rotated <- err
	}()
	waitsForLock(t, d)
	if err := q.InsertSecret(t.Context(), db.InsertSecretParams{SubscriptionID: id, KeyID: key.ID, Sealed: key.Seal(db.SealedSecret, id, []byte("late"))}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-rotated; err != nil {
		t.Fatal(err)
	}
	sealed := dbtest.QueryOne[[]byte](t, d, "SELECT sealed FROM mailhook.subscription_secrets WHERE key_id = $1", both.First().ID)
	if plain, err := both.Open(db.SealedSecret, id, both.First().ID, sealed); err != nil || string(plain) != "late" {
		t.Errorf("%q, %v", plain, err)
	}
	// A process with the old key alone seals nothing more.
	err = pgx.BeginFunc(t.Context(), d.Pool, func(tx pgx.Tx) error {
		_, err := old.Current(t.Context(), db.New(tx))
		return err
	})
	if !errors.Is(err, db.ErrUnknownKey) {
		t.Error(err)
	}
}

// A worker that registers while the key is moved is seen by the rotation, or finds itself without the key.
func TestAWorkerDoesNotSlipPastARotation(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, "UPDATE mailhook.installation SET secret_key_id = 'old'")
	q := db.New(d.Pool)
	worker := func() db.RegisterWorkerParams {
		return db.RegisterWorkerParams{ID: uuid.New(), Hostname: "h", Pid: 1, Version: "test", KeyIDs: []string{"old"}}
	}
	early := worker()
	if n, err := q.RegisterWorker(t.Context(), early); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	tx, err := d.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := db.New(tx).LockMasterKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	registered := make(chan int64, 1)
	go func() {
		n, err := q.RegisterWorker(t.Context(), worker())
		if err != nil {
			n = -1
		}
		registered <- n
	}()
	waitsForLock(t, d)
	if workers, err := db.New(tx).ListWorkersWithoutKey(t.Context(), "new"); err != nil || len(workers) != 1 || workers[0].ID != early.ID {
		t.Errorf("%v %v", workers, err)
	}
	if err := db.New(tx).SetMasterKey(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := <-registered; n != 0 {
		t.Errorf("a worker without the key has registered: %d", n)
	}
	if _, err := q.Beat(t.Context(), early.ID); !errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("a worker without the key has a heartbeat: %v", err)
	}
	with := worker()
	with.KeyIDs = []string{"old", "new"}
	if n, err := q.RegisterWorker(t.Context(), with); err != nil || n != 1 {
		t.Error(n, err)
	}
	if _, err := q.Beat(t.Context(), with.ID); err != nil {
		t.Error(err)
	}
}

// A rotation that another one overtakes gives up, and takes nothing back.
func TestRotationsDoNotFight(t *testing.T) {
	t.Parallel()
	d, one, two, three := dbtest.New(t), db.NewMasterKey(), db.NewMasterKey(), db.NewMasterKey()
	pool, third := &db.Pool{Pool: d.Pool}, newKeyring(t, three, two, one)
	d.Exec(t, "UPDATE mailhook.installation SET secret_key_id = $1", newKeyring(t, one).First().ID)
	for range 600 { // more than one step
		id := uuid.Must(uuid.NewV7())
		first := newKeyring(t, one).First()
		d.Exec(t, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)", id, first.ID, first.Seal(db.SealedSecret, id, []byte("x")))
	}
	overtaken := false
	_, err := db.Rotate(t.Context(), pool, newKeyring(t, two, one, three), func(int64) {
		if !overtaken {
			overtaken = true
			if _, err := db.Rotate(t.Context(), pool, third, func(int64) {}); err != nil {
				t.Error(err)
			}
		}
	})
	if err == nil {
		t.Error("the overtaken rotation thinks that it is done")
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.subscription_secrets WHERE key_id = $1", third.First().ID); n != 600 {
		t.Errorf("%d of 600 values are under the last key", n)
	}
}
