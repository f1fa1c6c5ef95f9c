// Command bench measures mailhook on this machine: a private PostgreSQL with fsync on, one worker, a lean receiver, all
// in one place. make bench prints one table; make bench ROW=throughput one row of it.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"mailhook/db"
	"mailhook/db/localpg"
	"mailhook/worker"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A row is one line of the table.
type row struct{ name, figure string }

func run(ctx context.Context) error {
	server, err := localpg.Start(ctx, localpg.Options{Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB"}})
	if err != nil {
		return err
	}
	defer server.Stop() //nolint:errcheck // it was ours alone
	b := &bench{url: server.URL("postgres"), arrived: map[int64]time.Time{}, changed: make(chan struct{})}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.stop()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	for _, r := range []struct {
		name    string
		measure func(context.Context) (row, error)
	}{{"idle", b.idle}, {"repeatable-read", b.repeatableRead}, {"before-arming", b.beforeArming}, {"late-commits", b.lateCommits}, {"throughput", b.throughput}} {
		if only := os.Getenv("ROW"); only != "" && only != r.name {
			continue
		}
		r, err := r.measure(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%s\n", r.name, r.figure)
		w.Flush() //nolint:errcheck // for people
	}
	return nil
}

type bench struct {
	url  string
	pool *pgxpool.Pool
	stop func() // the worker, then the pool

	mu      sync.Mutex
	arrived map[int64]time.Time // by the number in data
	changed chan struct{}
}

// prepare installs mailhook, starts the receiver, and subscribes it.
func (b *bench) prepare(ctx context.Context) error {
	if _, err := db.MigrateUp(ctx, b.url); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(b.url)
	if err != nil {
		return err
	}
	config.MaxConns = 20
	if b.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	receiver := &http.Server{Handler: http.HandlerFunc(b.receive), ReadHeaderTimeout: time.Minute}
	go receiver.Serve(listener) //nolint:errcheck // it ends with the process
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		return err
	}
	id := uuid.Must(uuid.NewV7())
	if _, err := b.pool.Exec(ctx, "INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, max_in_flight) VALUES ($1, 'default', $2, '{*}', 1000)",
		id, "http://"+listener.Addr().String()); err != nil {
		return err
	}
	if _, err := b.pool.Exec(ctx, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)",
		id, keyring.KeyID(), keyring.Seal(id, []byte("a secret of sixteen or more"))); err != nil {
		return err
	}
	return b.startWorker(ctx, keyring)
}

func (b *bench) startWorker(ctx context.Context, keyring *db.Keyring) error {
	c := worker.DefaultConfig()
	c.DatabaseURL, c.Keyring, c.Registry, c.PollInterval = b.url, keyring, nil, 10*time.Second
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c.AllowInsecureHTTP, c.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	w, err := worker.New(ctx, c)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(running) }()
	b.stop = func() {
		cancel()
		<-ended //nolint:errcheck // the rows have been printed
		b.pool.Close()
	}
	return nil
}

func (b *bench) receive(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	var body struct {
		Data struct{ N int64 } `json:"data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, again := b.arrived[body.Data.N]; !again {
		b.arrived[body.Data.N] = now
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// waitFor waits until event n has arrived, and answers when.
func (b *bench) waitFor(n int64) time.Time {
	for {
		b.mu.Lock()
		at, ok := b.arrived[n]
		changed := b.changed
		b.mu.Unlock()
		if ok {
			return at
		}
		<-changed
	}
}

func (b *bench) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.arrived)
}

// asleep waits until the worker has armed the trigger.
func (b *bench) asleep(ctx context.Context) error {
	for {
		var armed bool
		if err := b.pool.QueryRow(ctx, "SELECT last_value = 1 FROM mailhook.wakeup").Scan(&armed); err != nil || armed {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

const emit = "INSERT INTO mailhook.outbox (event_type, recipient, data) VALUES ('email.sent', 'r@example.com', json_build_object('n', $1::bigint))"

// idle: one event at a time to a worker that sleeps and is woken by NOTIFY.
func (b *bench) idle(ctx context.Context) (row, error) {
	defer b.forget()
	var took []time.Duration
	for n := range int64(100) {
		if err := b.asleep(ctx); err != nil {
			return row{}, err
		}
		if _, err := b.pool.Exec(ctx, emit, n); err != nil {
			return row{}, err
		}
		committed := time.Now()
		took = append(took, b.waitFor(n).Sub(committed))
	}
	return row{"idle, by NOTIFY (poll 10 s), 100 events", quantiles(took)}, nil
}

// transact commits one event after work has been done in its transaction, and answers commit → receipt.
func (b *bench) transact(ctx context.Context, n int64, options pgx.TxOptions, before string, after func() error) (time.Duration, error) {
	tx, err := b.pool.BeginTx(ctx, options)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // committed below
	if _, err := tx.Exec(ctx, before); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, emit, n); err != nil {
		return 0, err
	}
	if err := after(); err != nil {
		return 0, err
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, err
	}
	committed := time.Now()
	return b.waitFor(n).Sub(committed), nil
}

// repeatableRead: the host's snapshot is older than the arming.
func (b *bench) repeatableRead(ctx context.Context) (row, error) {
	defer b.forget()
	var took []time.Duration
	for n := range int64(30) {
		d, err := b.transact(ctx, n, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, "SELECT count(*) FROM mailhook.installation", func() error { return nil })
		if err != nil {
			return row{}, err
		}
		took = append(took, d)
		if err := b.asleep(ctx); err != nil {
			return row{}, err
		}
	}
	return row{"host in REPEATABLE READ, 30 events", quantiles(took)}, nil
}

// beforeArming: the host inserts while the worker is awake, and commits after it has gone to sleep.
func (b *bench) beforeArming(ctx context.Context) (row, error) {
	defer b.forget()
	var took []time.Duration
	for n := range int64(30) {
		wake := 1000 + n
		if _, err := b.pool.Exec(ctx, emit, wake); err != nil {
			return row{}, err
		}
		b.waitFor(wake)
		d, err := b.transact(ctx, n, pgx.TxOptions{}, "SELECT", func() error { return b.asleep(ctx) })
		if err != nil {
			return row{}, err
		}
		took = append(took, d)
	}
	return row{"inserted before the worker armed, committed after, 30 events", quantiles(took)}, nil
}

// lateCommits: 16 clients, 500 events a second, 0–20 ms of work between INSERT and COMMIT.
func (b *bench) lateCommits(ctx context.Context) (row, error) {
	defer b.forget()
	const clients, seconds, rate = 16, 20, 500
	var mu sync.Mutex
	var took []time.Duration
	var group errgroup.Group
	for c := range int64(clients) {
		group.Go(func() error {
			ticker := time.NewTicker(time.Second * clients / rate)
			defer ticker.Stop()
			for i := range int64(seconds * rate / clients) {
				<-ticker.C
				d, err := b.transactLate(ctx, c*1_000_000+i)
				if err != nil {
					return err
				}
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
			return nil
		})
	}
	err := group.Wait()
	return row{"late commits: 16 clients, 500 events/s, 0–20 ms between INSERT and COMMIT, 20 s", quantiles(took)}, err
}

func (b *bench) transactLate(ctx context.Context, n int64) (time.Duration, error) {
	return b.transact(ctx, n, pgx.TxOptions{}, "SELECT", func() error {
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond) //nolint:gosec // not a secret
		return nil
	})
}

// throughput: 50,000 committed events, one match each, signed, logged.
func (b *bench) throughput(ctx context.Context) (row, error) {
	defer b.forget()
	const events = 50_000
	if _, err := b.pool.Exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = false"); err != nil {
		return row{}, err
	}
	time.Sleep(time.Second) // longer than the pulse of the worker
	_, err := b.pool.Exec(ctx, `INSERT INTO mailhook.outbox (event_type, recipient, message_id, data)
		SELECT 'email.delivered', 'user' || n || '@example.com', 'message-' || n, json_build_object('n', n, 'smtp_code', 250) FROM generate_series(1, $1::int) AS n`, events)
	if err != nil {
		return row{}, err
	}
	if _, err := b.pool.Exec(ctx, "UPDATE mailhook.installation SET delivery_enabled = true"); err != nil {
		return row{}, err
	}
	for n := range int64(events) {
		b.waitFor(n + 1)
	}
	b.mu.Lock()
	first, last := time.Now(), time.Time{}
	for _, at := range b.arrived {
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	b.mu.Unlock()
	return row{"throughput: 50,000 events, one match each", fmt.Sprintf("%.0f deliveries/s", events/last.Sub(first).Seconds())}, nil
}

func quantiles(took []time.Duration) string {
	slices.SortFunc(took, cmp.Compare)
	at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %v   p99 %v   max %v", at(0.5), at(0.99), at(1))
}
