package worker

import (
	"context"
	"flag"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestMain(m *testing.M) {
	flag.Set("rapid.checks", "20") // -rapid.checks and -rapid.steps say otherwise
	flag.Set("rapid.steps", "60")
	log.SetOutput(io.Discard) // as the process does: net/http tells it of hostile answers
	dbtest.Main(m)
}

// A bundle is what a test of the whole flow needs: a database, a receiver, and what came to it.
type bundle struct {
	*dbtest.DB
	keyring *db.Keyring
	server  *httptest.Server
	secret  string

	mu       sync.Mutex
	receipts []receiver.Receipt
	arrived  chan struct{} // closed and replaced at each receipt
	answer   func(http.ResponseWriter, receiver.Receipt)
}

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func setup(t *testing.T) *bundle {
	t.Helper()
	return setupWith(t, dbtest.New(t))
}

// setupWith is a bundle on a database that is there.
func setupWith(t *testing.T, d *dbtest.DB) *bundle {
	t.Helper()
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{DB: d, keyring: keyring, secret: testSecret, arrived: make(chan struct{})}
	b.server = httptest.NewServer(&receiver.Receiver{
		Secret: func(string) string { return b.secret },
		Answer: b.receive,
	})
	t.Cleanup(b.server.Close)
	return b
}

func (b *bundle) receive(w http.ResponseWriter, r receiver.Receipt) {
	b.mu.Lock()
	answer := b.answer
	b.mu.Unlock()
	if answer != nil {
		answer(w, r)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.receipts = append(b.receipts, r)
	close(b.arrived)
	b.arrived = make(chan struct{})
}

func (b *bundle) answerWith(f func(http.ResponseWriter, receiver.Receipt)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

// waitFor waits until at least n receipts are in, and answers all there are.
func (b *bundle) waitFor(t *testing.T, n int) []receiver.Receipt {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		b.mu.Lock()
		receipts, arrived := append([]receiver.Receipt(nil), b.receipts...), b.arrived
		b.mu.Unlock()
		if len(receipts) >= n {
			return receipts
		}
		select {
		case <-arrived:
		case <-deadline:
			t.Fatalf("%d of %d requests came", len(receipts), n)
		}
	}
}

// config is one of a worker for tests: the receiver on loopback is allowed.
func (b *bundle) config() Config {
	c := DefaultConfig()
	c.DatabaseURL, c.Keyring, c.Version = b.As("mailhook_worker"), b.keyring, "test"
	c.AllowInsecureHTTP, c.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	c.Registry = prometheus.NewRegistry()
	c.Log = slog.New(slog.DiscardHandler)
	return c
}

// read is what w has read until now, by a statement over the statistics views. A session tells of its last ten seconds only when it
// ends: so w's are ended, and the plans that they kept with them.
func (b *bundle) read(t *testing.T, w *Worker, statement string) int64 {
	t.Helper()
	pids := dbtest.QueryOne[[]int32](t, b.DB, "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mailhook worker'")
	for _, pool := range []*db.Pool{w.pool, w.genericPool, w.slowPool} {
		pool.Reset()
	}
	dbtest.Eventually(t, "the worker's sessions have ended", func() bool {
		return b.count(t, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)", pids) == 0
	})
	ended := dbtest.QueryOne[time.Time](t, b.DB, "SELECT clock_timestamp()")
	dbtest.Eventually(t, "PostgreSQL 14 has written its statistics", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT coalesce(pg_stat_get_snapshot_timestamp() > $1, true)", ended)
	})
	return b.count(t, statement)
}

// run starts a worker and stops it at the end of the test, or by the answered function.
func (b *bundle) run(t *testing.T, c Config) (w *Worker, stop func()) {
	t.Helper()
	c.Log = slog.New(granted{c.Log.Handler(), t})
	w, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return w, stop
}

// granted fails the test where the role mailhook_worker lacks a right.
type granted struct {
	slog.Handler
	t *testing.T
}

func (granted) Enabled(context.Context, slog.Level) bool { return true }

func (g granted) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if strings.Contains(a.Value.String(), "SQLSTATE 42501") {
			g.t.Errorf("%s: %v", r.Message, a.Value)
		}
		return true
	})
	if !g.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return g.Handler.Handle(ctx, r)
}

// subscribe makes a subscription; set is more SQL of its columns, as in "max_in_flight = 1".
func (b *bundle) subscribe(t *testing.T, path, types string, set ...string) uuid.UUID {
	t.Helper()
	id := uuid.Must(uuid.NewV7())
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{"INSERT INTO mailhook.subscriptions (id, account_id, url, event_types) VALUES ($1, 'default', $2, $3)", []any{id, b.server.URL + path, strings.Split(types, ",")}},
		{"INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)", []any{id, b.keyring.First().ID, b.keyring.First().Seal(db.SealedSecret, id, []byte(b.secret))}},
	} {
		if _, err := tx.Exec(t.Context(), q.sql, q.args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range set {
		if _, err := tx.Exec(t.Context(), "UPDATE mailhook.subscriptions SET "+s+" WHERE id = $1", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id
}

// settled waits until nothing is left in the outbox and of unfinished deliveries.
func (b *bundle) settled(t *testing.T) {
	t.Helper()
	dbtest.Eventually(t, "nothing left to do", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT (SELECT count(*) FROM mailhook.outbox) + (SELECT count(*) FROM mailhook.deliveries)") == 0
	})
}

// A lockedBuffer is a log to read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// waitForWorkers waits until every one of n workers knows of the others.
func (b *bundle) waitForWorkers(t *testing.T, n int64) {
	t.Helper()
	before := dbtest.QueryOne[int64](t, b.DB, "SELECT coalesce(min(heartbeat), 0) FROM mailhook.workers")
	dbtest.Eventually(t, "all workers have seen each other", func() bool {
		// Between two heartbeats of a worker lie several pulses.
		return dbtest.QueryOne[bool](t, b.DB, "SELECT count(*) = $1 AND min(heartbeat) > $2 + 1 FROM mailhook.workers", n, before)
	})
}
