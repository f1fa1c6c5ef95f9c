// Package dbtest gives each test a real PostgreSQL database of its own: a clone of a migrated template.
//
// The server is a private one, started for the test binary from local binaries; MAILHOOK_TEST_DATABASE_URL names
// another, on which databases may be created.
package dbtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"mailhook/db"
	"mailhook/db/localpg"
)

// What Main tells New: through the environment, so that the package keeps no state.
const (
	serverVariable   = "MAILHOOK_DBTEST_SERVER"
	templateVariable = "MAILHOOK_DBTEST_TEMPLATE"
)

// A DB is the database of one test.
type DB struct {
	// URL connects to it as a superuser.
	URL string
	// Pool is closed at the end of the test.
	Pool *pgxpool.Pool
}

// Main is the TestMain of a package that needs databases: it starts the server, migrates the template, runs the
// tests, and fails when goroutines are left over.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if fuzzing() {
		return m.Run(), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	server := os.Getenv("MAILHOOK_TEST_DATABASE_URL")
	if server == "" {
		// A crash of the machine may take the test databases along.
		private, err := localpg.Start(ctx, localpg.Options{Settings: map[string]string{
			"fsync": "off", "full_page_writes": "off", "max_connections": "400", "max_prepared_transactions": "10", "wal_level": "minimal", "max_wal_senders": "0",
		}})
		if err != nil {
			return 1, err
		}
		defer private.Stop() //nolint:errcheck // the tests have spoken
		server = private.URL("postgres")
	}
	template := name("template")
	if err := exec(ctx, server, "CREATE DATABASE "+template); err != nil {
		return 1, err
	}
	defer exec(context.Background(), server, "DROP DATABASE "+template) //nolint:errcheck // as above
	if _, err := db.MigrateUp(ctx, WithDatabase(server, template)); err != nil {
		return 1, fmt.Errorf("migrate the template: %w", err)
	}
	os.Setenv(serverVariable, server)     //nolint:errcheck // constant names
	os.Setenv(templateVariable, template) //nolint:errcheck // as above
	before := goleak.IgnoreCurrent()      // the server's own
	code = m.Run()
	if code == 0 {
		if err := goleak.Find(before); err != nil {
			return 1, err
		}
	}
	return code, nil
}

// fuzzing says that this is go test -fuzz, or one of its workers: fuzz targets need no database, and each worker is a
// process that would start a server.
func fuzzing() bool {
	return slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzz") })
}

// New clones the template for one test.
func New(t testing.TB) *DB {
	t.Helper()
	return create(t, " TEMPLATE "+os.Getenv(templateVariable))
}

// NewEmpty makes a database without mailhook.
func NewEmpty(t testing.TB) *DB {
	t.Helper()
	return create(t, "")
}

func create(t testing.TB, clause string) *DB {
	t.Helper()
	server, database := os.Getenv(serverVariable), name("test")
	if server == "" {
		t.Fatal("dbtest: the package has no TestMain that calls dbtest.Main")
	}
	if err := exec(t.Context(), server, "CREATE DATABASE "+database+clause); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := exec(context.Background(), server, "DROP DATABASE "+database+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	config, err := pgxpool.ParseConfig(WithDatabase(server, database))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 40
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &DB{URL: WithDatabase(server, database), Pool: pool}
}

// As is the URL of sessions that may do what a role of ours may, and nothing else. They have a minute to connect, for a busy machine.
func (d *DB) As(role string) string {
	u, err := url.Parse(d.URL)
	if err != nil {
		panic(err) // the pool has parsed it
	}
	query := u.Query()
	query.Set("connect_timeout", "60")
	query.Set("role", role) // a setting of PostgreSQL, given at the start of the session
	u.RawQuery = query.Encode()
	return u.String()
}

// Exec runs a statement of the test's, or fails the test.
func (d *DB) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := d.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// QueryOne is the one value of a statement's one row, or fails the test.
func QueryOne[T any](t testing.TB, d *DB, sql string, args ...any) T {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), sql, args...)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// WithDatabase is the URL of another database of the same server.
func WithDatabase(server, database string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // the server has just been reached by it
	}
	u.Path = "/" + database
	return u.String()
}

// Patience is how long a test waits for what must come. It is no bar: how fast something comes is shown by make bench and
// make faults, on a machine that does nothing else.
const Patience = 5 * time.Minute

// Eventually waits until check says true: it asks again and again, and fails the test when its patience ends. For what
// has no signal to wait for, such as another process's rows.
func Eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	deadline := time.After(Patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

func exec(ctx context.Context, server, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("connect to the test server: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing to do about it
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

func name(kind string) string { return "mailhook_" + kind + "_" + strings.ToLower(rand.Text()[:12]) }
