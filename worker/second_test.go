package worker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

// Under a backlog for batches a second dispatch goes on while one waits for a lock: that of a dedupe key, which some transaction has
// written and not committed.
func TestASecondDispatchGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "batch_max_events = 10, batch_max_wait = '0s'")
	const n = 40
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, dedupe_key) SELECT 'email.sent', CASE n WHEN 15 THEN 'k' END FROM generate_series(1, $1::int) AS n", n)
	hold, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback(t.Context())
	if _, err := hold.Exec(t.Context(), "INSERT INTO mailhook.dedupe_keys (account_id, dedupe_key, event_inserted_at, event_id) VALUES ('default', 'k', now(), 0)"); err != nil {
		t.Fatal(err)
	}
	c := b.config()
	c.BatchRows = 10
	b.run(t, c)
	b.waitFor(t, 2) // the first ten, and ten behind those that wait
	dbtest.Eventually(t, "a dispatch waits", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'mailhook worker' AND wait_event_type = 'Lock' AND query LIKE '%name: Dispatch %')`)
	})
	hold.Rollback(t.Context())
	receipts := b.waitForEvents(t, n)
	sizes(t, receipts)
	eachOnce(t, receipts, func(r receiver.Receipt) []string { return r.Events }, n)
	b.settled(t)
}

// The second dispatch gives no room to those that get single events: the ordinary one may be giving them the same.
func TestASecondDispatchLeasesForBatchesAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batches := b.subscribe(t, "/batches", "email", "batch_max_events = 10, "+longWait)
	b.subscribe(t, "/single", "email.opened")
	b.subscribe(t, "/paused", "email.sent", "status = 'paused', batch_max_events = 10, "+longWait)
	w := b.idleWorker(t, b.config())
	b.emit(t, 3)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 5)")
	ids := dbtest.QueryOne[[]int64](t, b.DB, "SELECT array_agg(id ORDER BY id) FROM mailhook.outbox")
	d := &dispatcher{w: w, requests: t.Context(), isSecond: true}
	if after := d.accept(t.Context(), offer{ids[0], 2}); after != ids[2] || len(w.due) != 0 {
		t.Errorf("it took up to %d, of two above %v, and asked for %d claims", after, ids, len(w.due))
	}
	if after := d.accept(t.Context(), offer{ids[2], 3}); after != ids[5] {
		t.Errorf("it took up to %d, of three above %v", after, ids)
	}
	leased := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(DISTINCT subscription_id::text) FROM mailhook.deliveries WHERE lease_id IS NOT NULL")
	if !slices.Equal(leased, []string{batches.String()}) {
		t.Errorf("leased for %v", leased)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL"); n != 2+3 || len(w.due) != 1 {
		t.Errorf("two are held and three wait for a claim: %d; it was asked for %d times", n, len(w.due))
	}
	if taken := w.early.take(); !slices.Equal(slices.Sorted(slices.Values(taken)), ids[1:6]) {
		t.Errorf("the floor is told of %v", taken)
	}
}

// It is offered a batch where there are more rows, nearly all of them for batches, and room for two.
func TestWhatIsOfferedToASecondDispatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, set string
		events    int
		data      string
		limit     int
		offers    int
	}{
		{"batches with room", "batch_max_events = 10, max_in_flight = 2, " + longWait, 10, "{}", 5, 1},
		{"fewer rows than it may take", "batch_max_events = 10, max_in_flight = 2, " + longWait, 4, "{}", 5, 0},
		{"room for one more", "batch_max_events = 14, max_in_flight = 1, " + longWait, 10, "{}", 5, 0},
		{"as many single events", "batch_max_events = 10, max_in_flight = 2, " + longWait, 10, "{}", 5, 0},
		{"large events", "batch_max_events = 10, max_in_flight = 2, " + longWait, 10, `{"x": "` + strings.Repeat("x", 250_000) + `"}`, 5, 0},
		{"while some row is looked for", "batch_max_events = 10, max_in_flight = 2, " + longWait, 10, "{}", 4, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.subscribe(t, "/", "email", c.set)
			if strings.Contains(c.what, "single") {
				b.subscribe(t, "/single", "email")
			}
			config := b.config()
			config.BatchRows = 5
			w := b.idleWorker(t, config)
			b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', $2::text::json FROM generate_series(1, $1::int)", c.events, c.data)
			d := &dispatcher{w: w, requests: t.Context(), limit: c.limit, fanOut: -1}
			if _, err := d.look(t.Context(), 100, batchBytes); err != nil {
				t.Fatal(err)
			}
			if len(w.offers) != c.offers {
				t.Errorf("%d offers", len(w.offers))
			}
		})
	}
}

// What was offered is left where it is by now out of place.
func TestASecondDispatchIsLeftOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "batch_max_events = 10, "+longWait)
	b.emit(t, 3)
	for what, change := range map[string]func(*Worker){
		"after something urgent": func(w *Worker) { w.calm.urgentAt.Store(time.Now().Add(time.Hour).UnixNano()) },
		"with an order":          func(w *Worker) { w.state.inOrder = true },
		"without room":           func(w *Worker) { w.leases.batched = batchedOfEachSlot*w.cfg.MaxInFlight - 2*targetDeliveries + 1 },
		"without memory":         func(w *Worker) { w.leases.bytes = w.cfg.MaxBodyBytes - w.cfg.MaxBodyBytes/urgentPart - batchBytes },
	} {
		w := b.idleWorker(t, b.config())
		change(w)
		d := &dispatcher{w: w, requests: t.Context(), isSecond: true}
		d.accept(t.Context(), offer{0, 3})
		if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.outbox"); n != 3 {
			t.Errorf("%s: %d of 3 rows are left", what, n)
		}
	}
}

// One that fails has the ordinary dispatch look again: that may be asleep, for it found nothing but locked rows.
func TestAfterASecondDispatchThatFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	d := &dispatcher{w: w, requests: t.Context(), isSecond: true}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if after := d.accept(ended, offer{7, 10}); after != 7 || len(w.events) != 1 {
		t.Errorf("it came to %d, and %d looks are asked for", after, len(w.events))
	}
	if release, ok := w.leases.promise(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes); !ok {
		t.Error("its room is not given back")
	} else {
		release()
	}
}

// What is promised to the second dispatch the first does not have.
func TestThePromiseOfRoom(t *testing.T) {
	t.Parallel()
	l := newLeases()
	whole := l.room(1000, 32<<20)
	release, ok := l.promise(1000, 32<<20)
	rest := l.room(1000, 32<<20)
	if !ok || rest.batched != whole.batched-targetDeliveries || rest.bytes != whole.bytes-secondMemory {
		t.Errorf("left is %+v of %+v", rest, whole)
	}
	release()
	select {
	case <-rest.more:
	default:
		t.Error("nobody is told that there is room again")
	}
	if now := l.room(1000, 32<<20); now.batched != whole.batched || now.bytes != whole.bytes {
		t.Errorf("%+v came back of %+v", now, whole)
	}
}
