package db_test

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/localpg"
)

func workerRole() db.Role {
	return db.Role{Name: "mailhook test", IndexOnly: true, AsyncCommit: true, GenericPlans: true, StatementTimeout: 7 * time.Second, MaxConns: 3}
}

// bouncer is PgBouncer with few sessions of a server on which mailhook is installed.
func bouncer(t *testing.T) *localpg.Bouncer {
	t.Helper()
	server, err := localpg.Start(t.Context(), localpg.Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.MigrateUp(t.Context(), server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	b, err := localpg.StartBouncer(t.Context(), server, localpg.BouncerOptions{Settings: map[string]string{"default_pool_size": "2", "ignore_startup_parameters": ""}})
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Stop() })
	return b
}

// settings is what a session would do to the statements of whoever gets it.
func settings(t *testing.T, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}) map[string]string {
	t.Helper()
	rows, err := q.Query(t.Context(), `
		SELECT name || '' AS name, setting FROM pg_settings WHERE name NOT IN ('application_name', 'client_encoding')
		UNION ALL SELECT 'prepared statements', count(*)::text FROM pg_prepared_statements
		UNION ALL SELECT 'channels', count(*)::text FROM pg_listening_channels()`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { found[name] = value; return nil }); err != nil {
		t.Fatal(err)
	}
	return found
}

// Behind a pooler a statement has the settings of its role, however it is run, and the host finds the sessions as they were.
func TestBehindAPooler(t *testing.T) {
	t.Parallel()
	b := bouncer(t)
	host, err := pgx.Connect(t.Context(), b.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close(t.Context())
	before := settings(t, host)

	pool, err := db.Open(t.Context(), b.URL("postgres"), workerRole())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if !pool.Pooled() {
		t.Error("the pooler was not noticed")
	}
	const read = `SELECT current_setting('enable_seqscan') || ' ' || current_setting('statement_timeout') || ' ' || current_setting('search_path') || ' ' ||
		current_setting('synchronous_commit') || ' ' || current_setting('plan_cache_mode') || ' ' || current_setting('transaction_isolation') || ' ' || $1::text`
	const want = "off 7s pg_catalog off force_generic_plan read committed x"
	var got string
	if err := pool.QueryRow(t.Context(), read, "x").Scan(&got); err != nil || got != want {
		t.Errorf("QueryRow: %q, %v", got, err)
	}
	rows, err := pool.Query(t.Context(), read, "x")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string]); err != nil || got != want {
		t.Errorf("Query: %q, %v", got, err)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return tx.QueryRow(t.Context(), read, "x").Scan(&got) })
	if err != nil || got != want {
		t.Errorf("Begin: %q, %v", got, err)
	}
	if tag, err := pool.Exec(t.Context(), "UPDATE mailhook.installation SET delivery_enabled = $1", false); err != nil || tag.RowsAffected() != 1 {
		t.Errorf("Exec: %v, %v", tag, err)
	}
	if err := host.QueryRow(t.Context(), "SELECT delivery_enabled::text FROM mailhook.installation", pgx.QueryExecModeSimpleProtocol).Scan(&got); err != nil || got != "false" {
		t.Errorf("not committed: %q, %v", got, err)
	}
	if err := pool.QueryRow(t.Context(), "SELECT 1 WHERE false").Scan(&got); !errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("no row: %v", err)
	}
	failsWith(t, pool, "SELECT 1 / (SELECT $1::int)", 0, "22012")
	// A deferred constraint fails at the commit, after the rows.
	if _, err := host.Exec(t.Context(), "CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO late VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	failsWith(t, pool, "INSERT INTO public.late VALUES ($1::int) RETURNING id", 1, "23505")

	// More of us than sessions, so that each session is used.
	errs := make(chan error, 30)
	for range cap(errs) {
		go func() {
			_, err := pool.Exec(t.Context(), "SELECT pg_sleep($1::float8)", 0.01)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	second, err := pgx.Connect(t.Context(), b.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close(t.Context())
	if _, err := second.Exec(t.Context(), "BEGIN"); err != nil { // holds one session, and leaves the other to the first
		t.Fatal(err)
	}
	for name, conn := range map[string]*pgx.Conn{"first": host, "second": second} {
		after := settings(t, conn)
		for _, setting := range slices.Sorted(maps.Keys(before)) {
			if after[setting] != before[setting] {
				t.Errorf("%s: the host had %s %q and has %q", name, setting, before[setting], after[setting])
			}
		}
	}
}

// failsWith runs a statement in all three ways; the connection goes on.
func failsWith(t *testing.T, pool *db.Pool, sql string, arg any, code string) {
	t.Helper()
	_, execErr := pool.Exec(t.Context(), sql, arg)
	var n int
	rowErr := pool.QueryRow(t.Context(), sql, arg).Scan(&n)
	rows, queryErr := pool.Query(t.Context(), sql, arg)
	if queryErr == nil {
		_, queryErr = pgx.CollectRows(rows, pgx.RowTo[int])
	}
	for how, err := range map[string]error{"Exec": execErr, "QueryRow": rowErr, "Query": queryErr} {
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != code {
			t.Errorf("%s: %s: %v", how, sql, err)
		}
	}
}

// What needs a session of its own says so.
func TestAPoolerHasNoSessions(t *testing.T) {
	t.Parallel()
	b := bouncer(t)
	if _, err := db.Connect(t.Context(), b.URL("postgres"), workerRole()); !errors.Is(err, db.ErrPooler) {
		t.Errorf("Connect: %v", err)
	}
	if _, err := db.MigrateUp(t.Context(), b.URL("postgres")); !errors.Is(err, db.ErrPooler) {
		t.Errorf("MigrateUp: %v", err)
	}
}

// A server that has become read-only, or ends a session, is not asked again on another connection of the pool.
func TestABrokenConnectionTakesItsPoolAlong(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for what, statement := range map[string]string{
		"read-only":  "BEGIN READ ONLY; DELETE FROM mailhook.outbox",
		"terminated": "SELECT pg_terminate_backend(pg_backend_pid())",
	} {
		pool, err := db.Open(t.Context(), d.URL, workerRole())
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		before := sessions(t, pool)
		if _, err := pool.Exec(t.Context(), statement); err == nil {
			t.Fatalf("%s: no error", what)
		}
		dbtest.Eventually(t, what+": none of the sessions is used any more", func() bool {
			return !slices.ContainsFunc(sessions(t, pool), func(pid uint32) bool { return slices.Contains(before, pid) })
		})
	}
}

// A caller that gives up costs the connection that it had, and no other.
func TestACallerThatGivesUp(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	pool, err := db.Open(t.Context(), d.URL, workerRole())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	before := sessions(t, pool)
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := pool.Exec(ctx, "SELECT pg_sleep(60)")
		ended <- err
	}()
	dbtest.Eventually(t, "it runs", func() bool {
		return dbtest.QueryOne[bool](t, d, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND datname = current_database())")
	})
	giveUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	sessions(t, pool) // its place is free again
	kept := 0
	for _, pid := range sessions(t, pool) {
		if slices.Contains(before, pid) {
			kept++
		}
	}
	if kept != 2 {
		t.Errorf("%d of the two other sessions are left", kept)
	}
}

// sessions takes all of a pool's connections at once.
func sessions(t *testing.T, pool *db.Pool) (pids []uint32) {
	t.Helper()
	for range 3 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		pids = append(pids, conn.Conn().PgConn().PID())
	}
	return pids
}

// A statement that takes too long ends on the server, and its connection lives.
func TestAStatementTimeoutKeepsTheConnection(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	role := workerRole()
	role.MaxConns, role.StatementTimeout = 1, 100*time.Millisecond
	pool, err := db.Open(t.Context(), d.URL, role)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var before, after int
	const pid = "SELECT pg_backend_pid()"
	if err := pool.QueryRow(t.Context(), pid).Scan(&before); err != nil {
		t.Fatal(err)
	}
	var pgErr *pgconn.PgError
	if _, err := pool.Exec(t.Context(), "SELECT pg_sleep(60)"); !errors.As(err, &pgErr) || pgErr.Code != "57014" {
		t.Error(err)
	}
	if err := pool.QueryRow(t.Context(), pid).Scan(&after); err != nil || after != before {
		t.Errorf("session %d, then %d, %v", before, after, err)
	}
	// The server looks for clients that are gone.
	var found string
	if err := pool.QueryRow(t.Context(), "SELECT current_setting('tcp_user_timeout') || ' ' || current_setting('tcp_keepalives_idle')").Scan(&found); err != nil || !strings.HasPrefix(found, "15") {
		t.Errorf("%q, %v", found, err)
	}
}

// A statement whose caller set no deadline ends all the same when the network is dead, and leaves the pool free.
func TestEveryStatementHasADeadline(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(dbtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := localpg.StartProxy(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	u.Host = proxy.Addr()
	role := workerRole()
	role.MaxConns, role.StatementTimeout = 1, time.Second
	pool, err := db.Open(t.Context(), u.String(), role)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	proxy.Blackhole()
	proxy.Restore()
	if _, err := pool.Exec(t.Context(), "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := pool.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Error(err)
	}
}
