package worker

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// sleepy is a worker whose polling cannot be what finds an event within the test's patience.
func (b *bundle) sleepy(t *testing.T) {
	t.Helper()
	cfg := b.config()
	cfg.PollInterval = time.Hour
	b.run(t, cfg)
	b.waitArmed(t)
}

func (b *bundle) waitArmed(t *testing.T) {
	t.Helper()
	dbtest.Eventually(t, "armed", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT last_value > 0 FROM mailhook.wakeup")
	})
}

func TestASleepingWorkerIsWokenByNotify(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	b.sleepy(t)
	for n := range 3 {
		b.waitArmed(t)
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		b.waitFor(t, n+1)
	}
}

// The host's snapshot is older than the arming, and it sees the sequence all the same.
func TestAHostInRepeatableReadWakesTheWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	tx, err := b.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT count(*) FROM mailhook.installation"); err != nil {
		t.Fatal(err)
	}
	b.sleepy(t)
	if _, err := tx.Exec(t.Context(), "SELECT mailhook.emit('email.sent')"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, 1)
}

// A transaction that inserted before the worker armed does not notify: the worker waits for its end by itself.
func TestATransactionFromBeforeTheArmingIsNotMissed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	// Ids below and above its own are seen before it commits.
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT mailhook.emit('email.sent')"); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.sleepy(t)
	b.waitFor(t, 2)
	b.waitArmed(t)
	committed := time.Now()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := b.waitFor(t, 3)[2]
	t.Logf("found %v after its commit", r.At.Sub(committed))
}

func TestNotifyCanBeOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	b.Exec(t, "UPDATE mailhook.installation SET notify_enabled = false")
	cfg := b.config()
	cfg.PollInterval = 200 * time.Millisecond
	w, _ := b.run(t, cfg)
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil })
	for n := range 3 {
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		b.waitFor(t, n+1)
	}
	if dbtest.QueryOne[bool](t, b.DB, "SELECT is_called FROM mailhook.wakeup") && dbtest.QueryOne[int64](t, b.DB, "SELECT last_value FROM mailhook.wakeup") > 0 {
		t.Error("the worker armed")
	}
}

// Sixteen hosts that work 0–20 ms between INSERT and COMMIT: two thirds of the rows commit below the highest id seen,
// and none waits for a sweep.
func TestLateCommitsAreFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1000")
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil })
	const hosts, each = 16, 40
	errs := make(chan error, hosts)
	for range hosts {
		go func() { errs <- b.lateHost(t.Context(), each) }()
	}
	for range hosts {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	ids := map[string]bool{}
	for _, r := range b.waitFor(t, hosts*each) {
		ids[r.ID] = true
	}
	if len(ids) != hosts*each {
		t.Errorf("%d of %d", len(ids), hosts*each)
	}
}

func (b *bundle) lateHost(ctx context.Context, n int) error {
	for range n {
		_, err := b.Pool.Exec(ctx, "BEGIN; SELECT mailhook.emit('email.sent'); SELECT pg_sleep(random() * 0.02); COMMIT", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
	}
	return nil
}

// Of sixteen workers one watches: a trickle of events wakes it and not all, and while it is awake nobody arms the
// trigger, so that hosts need not notify.
func TestSixteenWorkersDoNotHerd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	workers := make([]*Worker, 16)
	for i := range workers {
		cfg := b.config()
		cfg.PollInterval = time.Hour
		workers[i], _ = b.run(t, cfg)
	}
	b.waitArmed(t)
	before := sum(workers, (*Worker).arms)
	const events = 100
	started := time.Now()
	for n := range events {
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		b.waitFor(t, n+1)
	}
	// At most one a linger: waitFor may take longer than that on a busy machine. And none for each of the workers.
	lingers := float64(time.Since(started)/lingerTime) + 1
	if arms, notified := sum(workers, (*Worker).arms)-before, sum(workers, (*Worker).notified); arms > min(lingers, events) || notified > min(lingers, events) {
		t.Errorf("armed %v times, notified %v times for %d events one after the other, in %v lingers", arms, notified, events, lingers)
	}
	if watchers := sum(workers, func(w *Worker) float64 { return map[bool]float64{true: 1}[w.watching.Load()] }); watchers != 1 {
		t.Errorf("%v watchers", watchers)
	}
}

func (w *Worker) arms() float64       { return value(w.metrics.arms) }
func (w *Worker) notified() float64   { return value(w.metrics.notifications) }
func (w *Worker) dispatched() float64 { return value(w.metrics.eventsDispatched) }

func value(c prometheus.Counter) float64 {
	var m dto.Metric
	c.Write(&m)
	return m.GetCounter().GetValue()
}

func sum(workers []*Worker, of func(*Worker) float64) (total float64) {
	for _, w := range workers {
		total += of(w)
	}
	return total
}

// When the watcher goes, another takes its place.
func TestAnotherWorkerWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	config := func() Config {
		cfg := b.config()
		cfg.PollInterval = time.Hour
		return cfg
	}
	first, stop := b.run(t, config())
	dbtest.Eventually(t, "a watcher", first.watching.Load)
	second, _ := b.run(t, config())
	b.waitArmed(t)
	stop()
	dbtest.Eventually(t, "another watcher", second.watching.Load)
	b.waitArmed(t)
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.waitFor(t, 1)
}

// What one worker cannot take at once, the sleeping ones help with.
func TestSleepingWorkersHelp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1000")
	workers := make([]*Worker, 2)
	for i := range workers {
		cfg := b.config()
		cfg.PollInterval, cfg.BatchRows = time.Hour, 10
		workers[i], _ = b.run(t, cfg)
	}
	b.waitArmed(t)
	dbtest.Eventually(t, "both known", func() bool {
		return workers[0].state.crew() == 2 && workers[1].state.crew() == 2
	})
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 5000)")
	b.waitFor(t, 5000)
	for i, w := range workers {
		if w.dispatched() == 0 {
			t.Errorf("worker %d took nothing", i)
		}
	}
}

// A watcher that has lost its session must not disarm for the one that took its place.
func TestOnlyTheWatcherDisarms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, err := New(t.Context(), b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, watching := range []bool{false, true} {
		b.Exec(t, "SELECT setval('mailhook.wakeup', 1)")
		w.watching.Store(watching)
		d := &dispatcher{w: w, armed: true}
		d.disarm(t.Context())
		if armed := dbtest.QueryOne[bool](t, b.DB, "SELECT last_value > 0 FROM mailhook.wakeup"); armed == watching || d.armed {
			t.Errorf("watching %v: armed %v in the database, %v by its own account", watching, armed, d.armed)
		}
	}
}

// A watcher whose session ends stands again.
func TestAWatcherStandsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "a watcher", w.watching.Load)
	b.Exec(t, `SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l
		WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	dbtest.Eventually(t, "it has noticed", func() bool { return !w.watching.Load() })
	dbtest.Eventually(t, "it watches again", w.watching.Load)
}

// Migrations run beside workers: no lock of theirs keeps an installer waiting.
func TestMigrateBesideAWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "a watcher", w.watching.Load)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := db.MigrateUp(ctx, b.URL); err != nil {
		t.Error(err)
	}
}

// A worker whose delivery is off is not to be notified, and when it is on again it asks anew: what it had armed may be over by then.
func TestDeliveryOffDisarms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	c := b.config()
	c.PollInterval = 100 * time.Millisecond // how soon it sees that delivery is off
	b.run(t, c)
	armed := func() bool { return b.count(t, "SELECT last_value FROM mailhook.wakeup") > 0 }
	dbtest.Eventually(t, "it is armed", armed)
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = false")
	dbtest.Eventually(t, "it is not armed while delivery is off", func() bool { return !armed() })
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = true")
	dbtest.Eventually(t, "it is armed again", armed)
}
