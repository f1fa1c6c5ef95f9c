package worker

import (
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

// Under a held snapshot every claim of a retry leaves an index entry that no vacuum may take away. A claim reads past none of
// them: only the walks do, and those are few.
func TestAClaimIsFlatUnderAHeldSnapshot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "max_in_flight = 1000")
	b.waiting(t, id, 1000, 1)
	snapshot, err := b.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback(t.Context())
	if _, err := snapshot.Exec(t.Context(), "SELECT count(*) FROM mailhook.installation"); err != nil {
		t.Fatal(err)
	}
	for range 20 { // twenty retries of each: 20,000 dead entries
		b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = id, lease_id = id")
		b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = NULL, lease_id = NULL, next_attempt_at = clock_timestamp() - interval '10 seconds'")
	}
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp() + interval '1 hour'")
	w := b.idleWorker(t, b.config())
	lanes := newClaimLanes(w, t.Context())
	c := lanes.ordinary
	look := func(want int) {
		t.Helper()
		result, err := lanes.once(t.Context())
		if err != nil || result.deliveries != want {
			t.Fatalf("%d claimed, not %d: %v", result.deliveries, want, err)
		}
	}
	look(0)
	if c.since == nil {
		t.Fatal("a walk that finds nothing does not end")
	}
	c.walkedAt, lanes.urgent.walkedAt = time.Now().Add(time.Hour), time.Now().Add(time.Hour) // no walk in between
	before := b.indexEntries(t)
	for range 100 {
		look(0)
	}
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp() WHERE event_id <= 10")
	look(10)
	if read := b.indexEntries(t) - before; read > 2000 {
		t.Errorf("101 claims read %d entries of the indexes of what waits", read)
	}

	// What is older than it looks is found by the next walk, and a worker that freed it walks at once.
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp() - interval '1 minute' WHERE event_id BETWEEN 11 AND 20")
	look(0)
	w.freed.Store(true)
	look(10)
}

// What waits for room of its subscription costs no claim until that may have some: not for each delivery of others that ends.
func TestClaimsWaitForRoom(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/dead", "email.sent", "max_in_flight = 1", "timeout = '60 s'")
	b.subscribe(t, "/well", "email.delivered")
	hang := make(chan struct{})
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if r.Path == "/dead" {
			<-hang
		}
	})
	c := b.config()
	c.ClaimInterval = 2 * time.Second
	w, _ := b.run(t, c)
	claims := func() uint64 {
		var m dto.Metric
		if err := w.metrics.claimSeconds.Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.Histogram.GetSampleCount()
	}
	b.emit(t, 5)
	dbtest.Eventually(t, "one is under way, the others wait", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.deliveries") == 5 && w.leases.held() == 1
	})
	before, began := claims(), time.Now()
	for n := range 100 {
		b.Exec(t, "SELECT mailhook.emit('email.delivered')")
		b.waitFor(t, n+1)
	}
	byClock := 2 * int(time.Since(began)/c.ClaimInterval) // one of each lane
	if n := int(claims() - before); n > byClock+20 {
		t.Errorf("%d claims while 100 deliveries of another subscription ended", n)
	}
	close(hang)
	b.settled(t)
}

// indexEntries is how many entries of the two indexes of waiting deliveries have been read, by sessions that have said so.
func (b *bundle) indexEntries(t *testing.T) int64 {
	t.Helper()
	var read int64
	dbtest.Eventually(t, "statistics have come in", func() bool {
		last := read
		read = b.count(t, "SELECT sum(idx_tup_read)::bigint FROM pg_stat_all_indexes WHERE relid = 'mailhook.deliveries'::regclass AND indexrelname LIKE '%next_attempt_at_idx'")
		return last == read && read > 0
	})
	return read
}
