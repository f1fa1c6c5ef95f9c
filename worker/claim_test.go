package worker

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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
	const waits = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_all_indexes WHERE relid = 'mailhook.deliveries'::regclass AND indexrelname LIKE '%next_attempt_at_idx'"
	before := b.read(t, w, waits)
	for range 100 {
		look(0)
	}
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp() WHERE event_id <= 10")
	look(10)
	if read := b.read(t, w, waits) - before; read > 2000 {
		t.Errorf("101 claims read %d entries of the indexes of what waits", read)
	}

	// What is older than it looks is found by the next walk, and a worker that freed it walks at once.
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp() - interval '1 minute' WHERE event_id BETWEEN 11 AND 20")
	look(0)
	w.freed.Store(true)
	look(10)
}

// A claim follows the end of a delivery only where room is wanted: not of others, and not where the clock is soon enough.
func TestWhatEndsIsToldWhereRoomIsWanted(t *testing.T) {
	t.Parallel()
	l := newLeases()
	held := map[uuid.UUID][]*delivery{}
	hold := func(id uuid.UUID, n int) {
		lease := l.expect()
		for range n {
			held[id] = append(held[id], &delivery{id: uuid.New(), leaseID: lease, subscriptionID: id, event: &event{}})
		}
		l.got(lease, held[id][len(held[id])-n:])
	}
	end := func(id uuid.UUID, took time.Duration) {
		l.finished(held[id][0], took)
		held[id] = held[id][1:]
	}
	told := func(want bool, what string) {
		t.Helper()
		select {
		case <-l.wanted:
			if !want {
				t.Errorf("told of %s", what)
			}
		default:
			if want {
				t.Errorf("not told of %s", what)
			}
		}
	}
	wants, other, slow, dead, idle := uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New()
	for _, id := range []uuid.UUID{wants, other, slow, dead} {
		hold(id, 4)
	}
	end(wants, time.Millisecond)
	told(false, "an end before anything is wanted")
	if l.want([]uuid.UUID{wants, idle}) || !l.want([]uuid.UUID{wants, dead}) {
		t.Error("want does not say who has nothing under way here")
	}
	end(other, time.Millisecond)
	told(false, "the end of another's")
	end(dead, 5*time.Second)
	told(false, "the end of one that takes 5 s")
	end(slow, time.Second)
	told(true, "the end of a slow one: they have their slots in common")
	end(wants, time.Millisecond)
	told(true, "the end where room is wanted")
	end(wants, time.Millisecond)
	told(false, "the next end")
	l.want([]uuid.UUID{wants})
	end(wants, time.Millisecond)
	told(true, "the last end")
	for range 3 {
		end(dead, 5*time.Second)
	}
	if len(l.wanting) > 0 {
		t.Error("what has nothing under way any more is still waited for")
	}
}

// A walk that takes longer than a statement may is given up: claims go on as before it, or, of a first one, with what comes due.
func TestAWalkThatTakesTooLongIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, isFirst := range map[string]bool{"the first": true, "another": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			walkInVain(t, isFirst)
		})
	}
}

func walkInVain(t *testing.T, isFirst bool) {
	t.Helper()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	w := b.idleWorker(t, b.config())
	c := newClaimLanes(w, t.Context()).ordinary
	if !isFirst {
		if _, err := c.once(t.Context()); err != nil || c.since == nil {
			t.Fatalf("since %v: %v", c.since, err)
		}
	}
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "LOCK TABLE mailhook.deliveries IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	c.walkAgain()
	ended := make(chan error, 1)
	go func() {
		_, err := c.once(t.Context())
		ended <- err
	}()
	const waits = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mailhook worker' AND wait_event_type = 'Lock'"
	dbtest.Eventually(t, "it waits", func() bool { return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT "+waits+")") })
	b.Exec(t, "SELECT pg_cancel_backend(pid) "+waits) // what its time-out does
	if err := <-ended; sqlState(err) != "57014" || c.since == nil || c.walk.took == 0 {
		t.Fatalf("since %v, took %v: %v", c.since, c.walk.took, err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.waiting(t, id, 3, 1)
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = clock_timestamp()")
	if result, err := c.once(t.Context()); err != nil || result.deliveries != 3 {
		t.Errorf("%d of what has come due since: %v", result.deliveries, err)
	}
}
