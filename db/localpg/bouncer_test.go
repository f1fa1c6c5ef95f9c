package localpg

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestBouncerPoolsTransactions(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	var log buffer
	b := startBouncer(t, s, BouncerOptions{Settings: map[string]string{"default_pool_size": "1"}, Log: &log})
	first, second := connectBouncer(t, b), connectBouncer(t, b)

	// One session of the server serves both, a transaction each.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, conn := range []*pgx.Conn{first, second, first} {
		if _, err := conn.Exec(ctx, "BEGIN; SELECT 1; COMMIT"); err != nil {
			t.Fatal(err)
		}
	}
	var sessions [2]uint32
	for i, conn := range []*pgx.Conn{first, second} {
		if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()::int8").Scan(&sessions[i]); err != nil {
			t.Fatal(err)
		}
	}
	if sessions[0] != sessions[1] {
		t.Errorf("sessions %v, want the same one", sessions)
	}

	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if _, err := pgx.Connect(t.Context(), b.URL("postgres")); err == nil {
		t.Error("it answers after Stop")
	}
	if !strings.Contains(log.String(), "listening on") {
		t.Errorf("log holds no start:\n%s", log.String())
	}
	if _, err := os.Stat(b.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is still there: %v", err)
	}
	queryString(t, s, "SELECT 'alive'")
}

// A statement prepared on one session of the server works on the next.
func TestBouncerKeepsPreparedStatements(t *testing.T) {
	t.Parallel()
	b := startBouncer(t, start(t, Options{}), BouncerOptions{})
	if !b.PreparesStatements() {
		t.Log("this PgBouncer keeps none; its configuration was accepted")
		return
	}
	blocking := connectBouncer(t, b)
	conn, err := pgx.Connect(t.Context(), b.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for range 2 {
		var n int
		if err := conn.QueryRow(t.Context(), "SELECT $1::int + 1", 1).Scan(&n); err != nil || n != 2 {
			t.Fatalf("%d, %v", n, err)
		}
		if _, err := blocking.Exec(t.Context(), "BEGIN; SELECT 1"); err != nil { // takes that session
			t.Fatal(err)
		}
	}
}

func TestBouncerShowsWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	skipWithoutBouncer(t)
	_, err := StartBouncer(t.Context(), start(t, Options{}), BouncerOptions{Settings: map[string]string{"pool_mode": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "pool_mode") {
		t.Errorf("StartBouncer = %v, want the end of its log", err)
	}
}

func TestPreparesStatements(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"PgBouncer 1.18.0\nlibevent 2.1.12-stable": false, "PgBouncer 1.20.1": false,
		"PgBouncer 1.21.0": true, "PgBouncer 2.0.0": true,
	} {
		if got, err := preparesStatements(version); got != want || err != nil {
			t.Errorf("%q: %v, %v, want %v", version, got, err, want)
		}
	}
	if _, err := preparesStatements("libevent 2.1.12"); err == nil {
		t.Error("no version, no error")
	}
}

func TestMissingBouncerSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if executable("/usr/sbin/pgbouncer") {
		if path, err := findBouncer(); path != "/usr/sbin/pgbouncer" || err != nil {
			t.Errorf("findBouncer = %q, %v", path, err)
		}
		return
	}
	if _, err := findBouncer(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "apt-get install pgbouncer") {
		t.Errorf("findBouncer = %v", err)
	}
}

func startBouncer(t *testing.T, s *Server, o BouncerOptions) *Bouncer {
	t.Helper()
	skipWithoutBouncer(t)
	b, err := StartBouncer(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Stop() })
	return b
}

func skipWithoutBouncer(t *testing.T) {
	t.Helper()
	if _, err := findBouncer(); err != nil {
		skip(t, err)
	}
}

// skip is for what may be missing on a developer's machine; .ci/run installs it.
func skip(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// connectBouncer prepares no statements, which works with every PgBouncer.
func connectBouncer(t *testing.T, b *Bouncer) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.URL("postgres")+"&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}
