package worker

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/localpg"
)

// proxied is a bundle whose workers reach the database through a proxy.
func proxied(t *testing.T) (*bundle, *localpg.Proxy, Config) {
	t.Helper()
	b := setup(t)
	u, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := localpg.StartProxy(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	u.Host = proxy.Addr()
	cfg := b.config()
	cfg.DatabaseURL = u.String()
	return b, proxy, cfg
}

// setupOn is a bundle on a server of the test's own.
func setupOn(t *testing.T, server *localpg.Server) *bundle {
	t.Helper()
	if _, err := db.MigrateUp(t.Context(), server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	return setupWith(t, &dbtest.DB{URL: server.URL("postgres"), Pool: poolOn(t, server)})
}

func poolOn(t *testing.T, server *localpg.Server) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func startServer(t *testing.T, o localpg.Options) *localpg.Server {
	t.Helper()
	server, err := localpg.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Stop() }) // some are stopped already
	return server
}

// delivers emits an event and answers how long after since its request came.
func (b *bundle) delivers(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	id := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.emit('email.sent')")
	var took time.Duration
	dbtest.Eventually(t, "the event is delivered", func() bool {
		for _, r := range b.waitFor(t, 0) {
			if r.ID == id {
				took = r.At.Sub(since)
				return true
			}
		}
		return false
	})
	return took
}

// tell writes down how long a recovery took. Its bars are checked by make faults, where nothing else runs beside it; here a
// recovery that does not come within the time of Eventually fails.
func tell(t *testing.T, what string, took time.Duration) {
	t.Helper()
	t.Logf("%s: %v", what, took.Round(time.Millisecond))
}

// A network that forgets its connections (NAT, a dead firewall): nothing is closed, nothing answers, new ones work.
func TestHalfOpenConnectionsAreFound(t *testing.T) {
	t.Parallel()
	b, proxy, cfg := proxied(t)
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, cfg)
	b.delivers(t, time.Now())
	dbtest.Eventually(t, "watching", w.watching.Load)
	began := time.Now()
	if hit := proxy.Blackhole(); hit < 3 {
		t.Fatalf("%d connections", hit)
	}
	proxy.Restore()
	tell(t, "half-open connections", b.delivers(t, began))
}

// For a while nothing answers, new connections neither; then they do.
func TestABlackholedNetworkClears(t *testing.T) {
	t.Parallel()
	b, proxy, cfg := proxied(t)
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, cfg)
	b.delivers(t, time.Now())
	proxy.Blackhole()
	dbtest.Eventually(t, "the worker knows that it is cut off", func() bool { return w.Ready() != nil })
	proxy.Restore()
	tell(t, "a blackholed network", b.delivers(t, time.Now()))
}

// Only the LISTEN connection is dead: polling delivers, and the watcher is back in time.
func TestAHalfOpenListenerIsFound(t *testing.T) {
	t.Parallel()
	b, proxy, cfg := proxied(t)
	b.subscribe(t, "/", "email")
	cfg.PollInterval = time.Second
	w, _ := b.run(t, cfg)
	dbtest.Eventually(t, "watching", w.watching.Load)
	b.waitArmed(t)
	began := time.Now()
	if hit := proxy.BlackholeWhere(func(c *localpg.Conn) bool { return c.Sent("LISTEN") }); hit != 1 {
		t.Fatalf("%d connections listen", hit)
	}
	proxy.Restore()
	tell(t, "delivery by polling", b.delivers(t, began))
	dbtest.Eventually(t, "the dead connection is found", func() bool { return !w.watching.Load() })
	tell(t, "a half-open LISTEN is found", time.Since(began))
	// Its session holds the watcher's lock until the server has missed its pings.
	dbtest.Eventually(t, "watching again", w.watching.Load)
	tell(t, "watching again", time.Since(began))
}

// The primary's machine is lost without a word and the standby is promoted: of a URL of both, whichever is the primary is
// used, wherever it stands.
func TestAFailoverIsFollowed(t *testing.T) {
	t.Parallel()
	primary := startServer(t, localpg.Options{})
	b := setupOn(t, primary)
	b.subscribe(t, "/", "email")
	standby, err := primary.StartStandby(t.Context(), localpg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { standby.Stop() })
	if _, err := New(t.Context(), with(b.config(), standby.URL("postgres"))); err == nil || !strings.Contains(err.Error(), "this server is a standby") {
		t.Errorf("a standby alone: %v", err)
	}
	proxy, err := localpg.StartProxy(primary.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	both := func(first, second string) Config {
		return with(b.config(), strings.Replace(standby.URL("postgres"), standby.Addr(), first+","+second, 1))
	}
	_, stop := b.run(t, both(standby.Addr(), proxy.Addr()))
	b.delivers(t, time.Now())
	stop()
	b.run(t, both(proxy.Addr(), standby.Addr()))
	b.delivers(t, time.Now())

	if err := standby.CatchUp(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	proxy.Blackhole()
	if err := primary.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Pool = poolOn(t, standby)
	tell(t, "a failover from a machine that is lost", b.delivers(t, began))
}

func with(cfg Config, databaseURL string) Config {
	cfg.DatabaseURL = databaseURL
	return cfg
}

// The primary crashes and the standby is promoted: what breaks is dropped, and the next dial finds it.
func TestAFailoverAfterACrash(t *testing.T) {
	t.Parallel()
	primary := startServer(t, localpg.Options{})
	b := setupOn(t, primary)
	b.subscribe(t, "/", "email")
	standby, err := primary.StartStandby(t.Context(), localpg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { standby.Stop() })
	b.run(t, with(b.config(), strings.Replace(primary.URL("postgres"), primary.Addr(), primary.Addr()+","+standby.Addr(), 1)))
	b.delivers(t, time.Now())
	if err := standby.CatchUp(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	if err := primary.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Pool = poolOn(t, standby)
	tell(t, "a failover after a crash", b.delivers(t, time.Now()))
}

// An outage is one line every ten seconds, whatever number of calls fail, and one when it is over.
func TestAnOutageIsSaidBriefly(t *testing.T) {
	t.Parallel()
	server := startServer(t, localpg.Options{})
	b := setupOn(t, server)
	b.subscribe(t, "/", "email")
	var log lockedBuffer
	cfg := b.config()
	cfg.Log = log.logger()
	w, stop := b.run(t, cfg)
	b.delivers(t, time.Now())
	dbtest.Eventually(t, "watching", w.watching.Load)
	before := log.String()
	if err := server.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	dbtest.Eventually(t, "told twice", func() bool { return strings.Count(log.String(), "database call failed") == 2 })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Pool.Reset()
	tell(t, "a crash of the database", b.delivers(t, time.Now()))
	dbtest.Eventually(t, "its end is told", func() bool { return strings.Contains(log.String(), "database is back") })
	stop()
	said := strings.TrimPrefix(log.String(), before)
	// Two for the outage, its end, perhaps leases whose reply was lost, and the end of the worker.
	if lines := strings.Count(said, "\n"); lines > 5 {
		t.Errorf("%d lines for an outage of %v:\n%s", lines, quietTime, said)
	}
}

// The host has taken every connection: the worker tries on quietly, and has its own when there are some.
func TestNoConnectionIsLeft(t *testing.T) {
	t.Parallel()
	refused := &counter{marker: "too many clients"}
	server := startServer(t, localpg.Options{Settings: map[string]string{"max_connections": "25"}, Log: refused})
	b := setupOn(t, server)
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, b.config())
	b.delivers(t, time.Now())

	var host []*pgx.Conn
	own := int64(0) // attempts of the host's that were refused
	began := time.Now()
	for w.Ready() == nil { // it has had no heartbeat for 10 s
		if conn, err := pgx.Connect(t.Context(), server.URL("postgres")); err == nil {
			host = append(host, conn)
			continue
		}
		own++
		// It takes each place that the worker has to give up.
		const end = "SELECT pg_sleep(0.02); SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name LIKE 'mailhook %'"
		if _, err := host[0].Exec(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	full, tries := time.Since(began).Seconds(), refused.n.Load()-own
	for _, conn := range host {
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	tell(t, "no connection left", b.delivers(t, time.Now()))
	// Two pools try five times a second each, and the listener once.
	if t.Logf("%d attempts in %.1f s", tries, full); tries < 5 || float64(tries) > 12*full {
		t.Errorf("%d attempts in %.1f s", tries, full)
	}
}

// A counter counts what a log has of a marker.
type counter struct {
	marker string
	n      atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(strings.Count(string(p), c.marker)))
	return len(p), nil
}

// The number of connections that a worker states at its start is never exceeded, under load and after faults.
func TestConnectionsAreAsManyAsStated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1000")
	var log lockedBuffer
	cfg := b.config()
	cfg.Log = log.logger()
	w, _ := b.run(t, cfg)
	dbtest.Eventually(t, "watching", w.watching.Load)
	stated := w.connections()
	if line := fmt.Sprintf("connections=%d ", stated); !strings.Contains(log.String(), line) {
		t.Errorf("%q is not in the log:\n%s", line, log.String())
	}
	const ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mailhook %'"
	most, events := int64(0), 0
	for round := range 4 {
		b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 2000)")
		events += 2000
		if round > 0 { // all of them at once, three times
			b.Exec(t, "SELECT pg_terminate_backend(pid, 5000) "+ours)
		}
		dbtest.Eventually(t, "all delivered", func() bool {
			most = max(most, dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) "+ours))
			return dbtest.QueryOne[int64](t, b.DB, "SELECT (SELECT count(*) FROM mailhook.outbox) + (SELECT count(*) FROM mailhook.deliveries)") == 0
		})
	}
	b.waitFor(t, events)
	if t.Logf("at most %d connections, %d stated", most, stated); most > int64(stated) {
		t.Errorf("%d connections, %d stated", most, stated)
	}
}

// A whole worker behind PgBouncer, beside a host that uses the same few sessions: it polls, listens on nothing, leaves
// nothing in a session, and says so once.
func TestAWorkerBehindAPooler(t *testing.T) {
	t.Parallel()
	server := startServer(t, localpg.Options{})
	b := setupOn(t, server)
	pooler, err := localpg.StartBouncer(t.Context(), server, localpg.BouncerOptions{Settings: map[string]string{"default_pool_size": "3", "ignore_startup_parameters": ""}})
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pooler.Stop() })
	b.subscribe(t, "/", "email", "max_in_flight = 1000")
	var log lockedBuffer
	cfg := with(b.config(), pooler.URL("postgres"))
	cfg.Log, cfg.PollInterval = log.logger(), 200*time.Millisecond
	w, stop := b.run(t, cfg)

	host, err := pgx.Connect(t.Context(), pooler.URL("postgres")+"&default_query_exec_mode=simple_protocol")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close(t.Context())
	const events = 1000
	for range events {
		// Each commit may go to a session that the worker has just used.
		var found string
		err := host.QueryRow(t.Context(), `SELECT current_setting('search_path') || ' ' || current_setting('statement_timeout') || ' ' || current_setting('enable_seqscan') || ' ' ||
			current_setting('synchronous_commit') || ' ' || (SELECT count(*) FROM pg_prepared_statements) || left(mailhook.emit('email.sent'), 0)`).Scan(&found)
		if want := `"$user", public 0 on on 0`; err != nil || found != want {
			t.Fatalf("the host's session has %q, %v; want %q", found, err, want)
		}
	}
	b.waitFor(t, events)
	b.settled(t)
	dbtest.Eventually(t, "well", func() bool { return w.Ready() == nil })
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); n > 0 || w.watching.Load() {
		t.Errorf("%d advisory locks, watching %v", n, w.watching.Load())
	}
	stop()
	if n := strings.Count(log.String(), "a pooler stands between"); n != 1 || !strings.Contains(log.String(), "connections=8 ") || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("the pooler is said %d times:\n%s", n, log.String())
	}
}
