package localpg

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStandbyFollowsAndIsPromoted(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{Settings: map[string]string{"max_connections": "120"}})
	execute(t, primary, "CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id")
	standby := startStandby(t, primary)

	execute(t, primary, "INSERT INTO rows SELECT generate_series(1001, 2000)")
	if err := standby.CatchUp(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"SELECT count(*)::text FROM rows":                     "2000",
		"SHOW transaction_read_only":                          "on",
		"SHOW max_connections":                                "120", // a standby must have as many as its primary
		"SELECT (pg_is_in_recovery())::text":                  "true",
		"SELECT count(*)::text FROM pg_ls_dir('pg_replslot')": "0",
	} {
		if got := queryString(t, standby, query); got != want {
			t.Errorf("%s = %q, want %q", query, got, want)
		}
	}
	if got := queryString(t, primary, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"); got != standby.Name() {
		t.Errorf("application_name = %q, want %q", got, standby.Name())
	}

	if err := primary.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, standby, "INSERT INTO rows VALUES (2001)")
	if err := standby.Promote(t.Context()); err == nil {
		t.Error("a primary was promoted")
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := queryString(t, standby, "SELECT count(*) || ' ' || pg_is_in_recovery() FROM rows"); got != "2001 false" {
		t.Errorf("after a restart: %s, want 2001 false", got)
	}
}

// While the standby is away, a commit of its primary waits; what was committed
// is there after the promotion without any CatchUp.
func TestSynchronousStandby(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{Settings: map[string]string{"wal_retrieve_retry_interval": "100ms"}})
	standby := startStandby(t, primary)
	execute(t, primary, `ALTER SYSTEM SET synchronous_standby_names = '"`+standby.Name()+`"'`)
	execute(t, primary, "SELECT pg_reload_conf()")
	eventually(t, "replication is synchronous", func() bool {
		return queryString(t, primary, "SELECT coalesce(max(sync_state), '') FROM pg_stat_replication") == "sync"
	})

	if err := standby.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, primary)
	waits, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if _, err := conn.Exec(waits, "CREATE TABLE waited ()"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("commit without the standby: %v, want it to wait", err)
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, primary, "CREATE TABLE kept AS SELECT 'kept' AS word")
	if err := primary.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := queryString(t, standby, "SELECT word FROM kept"); got != "kept" {
		t.Errorf("row = %q", got)
	}
	execute(t, standby, "INSERT INTO kept VALUES ('written')") // waits for nobody
}

// A primary that waits for any standby from its start hands that on to none.
func TestStandbyOfASynchronousPrimary(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{Settings: map[string]string{"synchronous_standby_names": "*"}})
	standby := startStandby(t, primary)
	execute(t, primary, "CREATE TABLE kept AS SELECT 'kept' AS word")
	if err := primary.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := queryString(t, standby, "SELECT word FROM kept"); got != "kept" {
		t.Errorf("row = %q", got)
	}
	if got := queryString(t, standby, "SHOW synchronous_standby_names"); got != "" {
		t.Errorf("the promoted standby waits for %q", got)
	}
}

// The copy is taken while rows are written and WAL is recycled, and the standby
// comes to hold the same rows.
func TestStandbyOfABusyPrimary(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{Settings: map[string]string{
		"max_wal_size": "32MB", "min_wal_size": "32MB", "checkpoint_timeout": "30s",
	}})
	execute(t, primary, "CREATE TABLE rows (id bigserial PRIMARY KEY, pad text DEFAULT repeat('x', 500))")
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan int)
	go func() {
		n := 0
		defer func() { written <- n }()
		conn := connect(t, primary)
		defer func() { _ = conn.Close(context.Background()) }()
		for ctx.Err() == nil {
			if _, err := conn.Exec(t.Context(), "INSERT INTO rows (id) SELECT nextval('rows_id_seq') FROM generate_series(1, 2000)"); err != nil {
				t.Error(err)
				return
			}
			n += 2000
		}
	}()
	standby, err := primary.StartStandby(t.Context(), Options{Dir: filepath.Join(publicDir(t), "data")})
	stop()
	n := <-written
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	if err := standby.CatchUp(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	const sum = "SELECT count(*) || ' ' || sum(id) FROM rows"
	if got, want := queryString(t, standby, sum), queryString(t, primary, sum); got != want || n == 0 {
		t.Errorf("standby holds %s, primary %s (%d written)", got, want, n)
	}
}

func TestCatchUpEndsWithItsContext(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{})
	standby := startStandby(t, primary)
	execute(t, standby, "SELECT pg_wal_replay_pause()")
	execute(t, primary, "CREATE TABLE ahead ()")
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if err := standby.CatchUp(ctx, primary); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("CatchUp = %v, want it to wait", err)
	}
}

func TestStandbyRefusesDirectoryWithOtherFiles(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{})
	dir := publicDir(t)
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := primary.StartStandby(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("StartStandby = %v", err)
	}
	if _, err := primary.StartStandby(t.Context(), Options{Dir: primary.dir}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("StartStandby in its primary's directory = %v", err)
	}
}

func startStandby(t *testing.T, primary *Server) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	standby, err := primary.StartStandby(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	return standby
}
