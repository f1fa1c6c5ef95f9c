package worker

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db/dbtest"
)

// leaseTo gives all waiting deliveries to a worker, as its dispatch would have.
func (b *bundle) leaseTo(t *testing.T, worker, lease uuid.UUID) {
	t.Helper()
	b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = $1, lease_id = $2", worker, lease)
}

// held makes n deliveries that wait, dispatched by a worker that has gone since.
func (b *bundle) held(t *testing.T, n int64) uuid.UUID {
	t.Helper()
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	_, stop := b.run(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, $1::int)", n)
	dbtest.Eventually(t, "held", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries") == n
	})
	stop()
	return id
}

// A worker that was killed, and one that nobody ever heard of: both stand still, and their deliveries move on.
func TestTheDeliveriesOfDeadWorkersMoveOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.held(t, 10)
	killed := uuid.New()
	// By a clock that was ahead: nothing but the rescuer's own counts.
	b.Exec(t, "INSERT INTO mailhook.workers (id, hostname, pid, version, seen_at) VALUES ($1, 'gone', 1, 'test', now() + interval '1 hour')", killed)
	b.leaseTo(t, killed, uuid.New())
	b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = $1 WHERE id IN (SELECT id FROM mailhook.deliveries LIMIT 5)", uuid.New())
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.run(t, b.config())
	began := time.Now()
	b.waitFor(t, 10)
	if waited := time.Since(began); waited < standstill-2*time.Second {
		t.Errorf("rescued after %v", waited)
	}
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.workers"); n != 1 {
		t.Errorf("%d workers", n)
	}
}

func TestWhoIsDead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		stood  time.Duration
		silent float64
		dead   bool
	}{
		{0, 3600, false},               // seen for the first time: the clock may have been stepped
		{5 * time.Second, 3600, false}, // a beat may be late
		{6 * time.Second, 14, false},
		{6 * time.Second, 15, true}, // a rescuer that has just started
		{14 * time.Second, -3600, false},
		{15 * time.Second, -3600, true}, // whatever the database's clock says
	} {
		if got := isDead(c.stood, c.silent); got != c.dead {
			t.Errorf("stood for %v, silent for %v s: %v", c.stood, c.silent, got)
		}
	}
}

// Leases that a healthy worker holds by the database's account and never heard of: a reply was lost.
func TestForgottenLeasesAreGivenBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.held(t, 10)
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "registered", func() bool { return w.identity.get() != uuid.Nil })
	b.leaseTo(t, w.identity.get(), uuid.New())
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.waitFor(t, 10)
	b.settled(t)
}

// An outcome of a lease that was taken away changes nothing, and is counted.
func TestLateOutcomesAreFenced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.held(t, 1)
	w, err := New(t.Context(), b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	late := &delivery{id: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.deliveries"), leaseID: uuid.New(), event: &event{}}
	b.leaseTo(t, uuid.New(), uuid.New())
	w.recordAll(context.Background(), []outcome{{delivery: late, word: outcomeOK, statusCode: 200, startedAt: time.Now()}})
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries d WHERE NOT EXISTS (SELECT FROM mailhook.attempts)"); n != 1 {
		t.Error("a stale outcome was recorded")
	}
}

// A worker that finds its row gone was taken for dead: it goes on under a new identity.
func TestATakenWorkerGoesOnUnderANewIdentity(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "registered", func() bool { return w.identity.get() != uuid.Nil })
	before := w.identity.get()
	b.Exec(t, "DELETE FROM mailhook.workers")
	dbtest.Eventually(t, "new identity", func() bool { return w.identity.get() != before })
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.waitFor(t, 1)
	b.settled(t)
}

// Every session of the worker is terminated each second under load: replies are lost in every place where they can be.
func TestLostRepliesStrandNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 5 {
		b.subscribe(t, "/", "email", "retry_schedule = array_fill('1s'::interval, '{50}')")
	}
	w, _ := b.run(t, b.config())
	// A worker that loses its session before it is registered ends with that error, for its supervisor to start it again.
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil })
	const rounds, batch = 20, 200
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range rounds {
		for range batch / 20 {
			b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, 20)")
		}
		b.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mailhook %'")
		<-tick.C
	}
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT delivery_id) FROM mailhook.attempts WHERE ended_as = 'delivered'"); n != rounds*batch*5 {
		t.Errorf("%d of %d delivered", n, rounds*batch*5)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered'"); n != rounds*batch*5 {
		t.Errorf("%d ends for %d deliveries", n, rounds*batch*5)
	}
	t.Logf("%d requests for %d deliveries", len(b.waitFor(t, rounds*batch*5)), rounds*batch*5)
}

// A lease that was given up while the database answered is not lost; one that was never remembered is.
func TestWhatEndedMeanwhileIsNotForgotten(t *testing.T) {
	t.Parallel()
	l := newLeases()
	ended, lost := l.expect(), uuid.New()
	before := l.ids()
	underWay := l.expect()
	l.got(ended, nil)
	if got := l.forgotten([]uuid.UUID{ended, lost, underWay}, before); len(got) != 1 || got[0] != lost {
		t.Errorf("forgotten: %v, lost: %v", got, lost)
	}
}

// A question that takes long is asked rarely, but at every turn after a call that failed.
func TestALongLookIsRare(t *testing.T) {
	t.Parallel()
	w, asked := &Worker{}, longLook{}
	if !asked.isDue(w) {
		t.Error("it is not due at first")
	}
	asked = longLook{at: time.Now().Add(-time.Minute), took: time.Minute}
	if asked.isDue(w) {
		t.Error("it is due at once, and took a minute")
	}
	asked.at = time.Now().Add(-longShare * time.Minute)
	if !asked.isDue(w) {
		t.Error("it is not due after its time")
	}
	asked = longLook{at: time.Now(), took: time.Minute}
	w.troubledAt.Store(time.Now().UnixNano())
	if !asked.isDue(w) {
		t.Error("it is not due after a call that failed")
	}
}

// A look for orphans that fails blinds nobody: who is dead is told by heartbeats.
func TestAWatchGoesOnWithoutALook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	other := uuid.New()
	b.Exec(t, "INSERT INTO mailhook.workers (id, hostname, pid, version, key_ids) VALUES ($1, 'h', 1, 'v', '{}')", other)
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), "LOCK TABLE mailhook.deliveries IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	others := watch{seen: map[uuid.UUID]sighting{}}
	if err := w.watch(t.Context(), &others); err != nil {
		t.Fatal(err)
	}
	if _, ok := others.seen[other]; !ok || value(w.metrics.databaseErrors.WithLabelValues("look for orphans")) != 1 {
		t.Errorf("seen: %v", others.seen)
	}
}

// What is given back is due since a while, and claims that look at what came due of late are told so; what waits for a time is not.
func TestWhatIsGivenBackIsAnnounced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.held(t, 2)
	w := b.idleWorker(t, b.config())
	lease := w.leases.expect()
	b.leaseTo(t, w.identity.get(), lease)
	var deliveries []*delivery
	for _, id := range dbtest.QueryOne[[]uuid.UUID](t, b.DB, "SELECT array_agg(id) FROM mailhook.deliveries") {
		deliveries = append(deliveries, &delivery{id: id, leaseID: lease, event: &event{}})
	}
	w.leases.got(lease, deliveries)
	go w.giveBack(t.Context())
	for i, delay := range []time.Duration{time.Hour, 0} {
		w.putBack(deliveries[i:i+1], delay)
		dbtest.Eventually(t, "it is given back", func() bool {
			return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL") == int64(1-i)
		})
		if delay > 0 && w.freed.Load() {
			t.Error("what waits for an hour is announced")
		}
	}
	dbtest.Eventually(t, "it is announced", func() bool { return w.freed.Load() && len(w.due) == 1 })
}
