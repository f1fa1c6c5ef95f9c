package db_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// hold opens a transaction of a host that has written to the outbox.
func hold(t *testing.T, d *dbtest.DB) pgx.Tx {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const write = "SET LOCAL application_name = 'an import'; INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent')"
	if _, err := tx.Exec(t.Context(), write); err != nil {
		t.Fatal(err)
	}
	return tx
}

// A host that has an open transaction holds a migration up, and through it no other host.
func TestMigrateHoldsNoHostUp(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	held := hold(t, d)
	ended := make(chan error, 1)
	go func() {
		_, err := db.MigrateDown(t.Context(), d.URL, 1)
		ended <- err
	}()
	for range 3 {
		dbtest.Eventually(t, "the migration waits for the outbox", func() bool {
			return dbtest.QueryOne[bool](t, d, `SELECT EXISTS (SELECT FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'mailhook migrate' AND wait_event_type = 'Lock' AND wait_event = 'relation')`)
		})
		// It would wait until the transaction above ends, which waits for this one.
		d.Exec(t, "SET statement_timeout = '30s'; INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent')")
	}
	if err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if dbtest.QueryOne[bool](t, d, "SELECT to_regclass('mailhook.outbox') IS NOT NULL") {
		t.Error("the outbox is still there")
	}
}

// A migration that gets no lock says whose transaction is in the way, keeps what it has done, and goes on from there.
func TestMigrateNamesWhoHoldsALock(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	held := hold(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	steps, err := db.MigrateDown(ctx, d.URL, 1)
	for _, part := range []string{"gave up waiting for a lock", "an import", "mailhook.outbox", "run this again"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: without %q", err, part)
		}
	}
	if len(steps) == 0 {
		t.Error("the steps that it took are not told")
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	rest, err := db.MigrateDown(t.Context(), d.URL, 1)
	if err != nil || len(rest) == 0 {
		t.Errorf("the rest: %+v, %v", rest, err)
	}
	if got := dbtest.QueryOne[int64](t, d, "SELECT max(version_id) FROM mailhook.goose_db_version"); got != 1 {
		t.Errorf("at version %d", got)
	}
}
