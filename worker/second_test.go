package worker

import (
	"slices"
	"testing"

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
	if !dbtest.QueryOne[bool](t, b.DB, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
		AND application_name = 'mailhook worker' AND wait_event_type = 'Lock' AND query LIKE '%name: Dispatch %')`) {
		t.Error("no dispatch waits: this shows nothing")
	}
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
	b.subscribe(t, "/single", "email")
	w := b.idleWorker(t, b.config())
	b.emit(t, 5)
	ids := dbtest.QueryOne[[]int64](t, b.DB, "SELECT array_agg(id ORDER BY id) FROM mailhook.outbox")
	d := &dispatcher{w: w, requests: t.Context(), isSecond: true}
	if after := d.accept(t.Context(), offer{ids[0], 3}); after != ids[3] {
		t.Errorf("it took up to %d, of three above %v", after, ids)
	}
	leased := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(DISTINCT subscription_id::text) FROM mailhook.deliveries WHERE lease_id IS NOT NULL")
	if !slices.Equal(leased, []string{batches.String()}) {
		t.Errorf("leased for %v", leased)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL"); n != 3 || len(w.due) != 1 {
		t.Errorf("%d wait for a claim, which was asked for %d times", n, len(w.due))
	}
	if taken := w.early.take(); !slices.Equal(slices.Sorted(slices.Values(taken)), ids[1:4]) {
		t.Errorf("the floor is told of %v", taken)
	}
}

// What is promised to the second dispatch the first does not have, and it has none of what that may be taking.
func TestThePromiseOfRoom(t *testing.T) {
	t.Parallel()
	l := newLeases()
	whole := l.room(1000, 32<<20)
	batched, bytes, release := l.promise(1000, 32<<20)
	rest := l.room(1000, 32<<20)
	if batched != targetDeliveries || bytes != batchBytes || rest.batched != whole.batched-batched || rest.bytes != whole.bytes-bytes {
		t.Errorf("%d deliveries and %d bytes of %+v, and left is %+v", batched, bytes, whole, rest)
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
	for _, c := range []struct{ slots, bytes int }{{targetDeliveries / batchedOfEachSlot, 32 << 20}, {1000, 8 << 20}} {
		if batched, bytes, release := l.promise(c.slots, int64(c.bytes)); batched > 0 && bytes > 0 {
			t.Errorf("%d slots and %d bytes: %d and %d are promised, and the first may be taking all", c.slots, c.bytes, batched, bytes)
		} else {
			release()
		}
	}
}
