package worker

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// idleWorker is a registered worker whose loops do not run.
func (b *bundle) idleWorker(t *testing.T, c Config) *Worker {
	t.Helper()
	w, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	if err := w.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// waiting makes n due deliveries of one subscription, each of an event of its own, with data of some size.
func (b *bundle) waiting(t *testing.T, subscription uuid.UUID, n, bytes int) {
	t.Helper()
	b.Exec(t, `WITH e AS (
		INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, data)
		SELECT now(), (SELECT coalesce(max(id), 0) FROM mailhook.events) + n, 'default', 'email.sent', now(), now(), json_build_object('x', repeat('x', $3::int))
		FROM generate_series(1, $2::int) AS n RETURNING inserted_at, id)
		INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		SELECT $1, 'default', inserted_at, id, 'email.sent', now() - interval '1 minute', now() FROM e`, subscription, n, bytes)
}

// Two subscriptions with a backlog fill the slots; the third has one delivery due, and must have its turn.
func TestClaimIsFairWhenTheSlotsAreFull(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/a", "/b"} {
		b.waiting(t, b.subscribe(t, path, "email", "max_in_flight = 1"), 30, 1)
	}
	b.waiting(t, b.subscribe(t, "/c", "email", "max_in_flight = 1"), 1, 1)
	c := b.config()
	c.MaxInFlight = 2
	b.run(t, c)
	for n, r := range b.waitFor(t, 61) {
		if r.Path == "/c" && n > 20 {
			t.Errorf("the third subscription was served as number %d of 61", n+1)
		}
	}
}

func TestClaimBoundsBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.waiting(t, b.subscribe(t, "/", "email", "max_in_flight = 100"), 100, 200_000)
	c := b.config()
	c.MaxBodyBytes = 1 << 20
	w := b.idleWorker(t, c)
	release := make(chan struct{})
	defer close(release)
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { <-release })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := (&claimer{w: w, requests: ctx}).once(ctx); err != nil {
		t.Fatal(err)
	}
	left := w.leases.room(0, c.MaxBodyBytes).bytes
	if taken := c.MaxBodyBytes - left; taken > 2*c.MaxBodyBytes {
		t.Errorf("claimed %d bytes of bodies; the bound is %d", taken, c.MaxBodyBytes)
	}
}

// Dispatch and claim run at the same time, each with what was in flight before the other.
func TestInFlightCapHoldsBetweenDispatchAndClaim(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.waiting(t, b.subscribe(t, "/", "email", "max_in_flight = 1"), 1, 1)
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	var now, most atomic.Int32
	release := make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-release
		now.Add(-1)
	})
	hold, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(t.Context(), "LOCK TABLE mailhook.subscription_health IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	b.run(t, b.config())
	dbtest.Eventually(t, "one of them waits", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM pg_locks WHERE relation = 'mailhook.subscription_health'::regclass AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") >= 1
	})
	hold.Rollback(t.Context())
	dbtest.Eventually(t, "leased", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL") > 0 && now.Load() > 0
	})
	dbtest.Eventually(t, "dispatched", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries") == 2
	})
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL"); n > 1 {
		t.Errorf("%d deliveries in flight, max_in_flight is 1", n)
	}
	close(release)
	b.settled(t)
}

// Two workers record at the same time: for one a has recovered and b failed, for the other the reverse.
func TestRecordersDoNotDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	one, two := b.subscribe(t, "/a", "email"), b.subscribe(t, "/b", "email")
	for _, id := range []uuid.UUID{one, two} {
		b.waiting(t, id, 2, 1)
		b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, consecutive_failures) VALUES ($1, 1)", id)
	}
	lease := uuid.New()
	b.leaseTo(t, w.identity.get(), lease)
	// The trigger stands for the time that passes in the midst of a statement of 1,000 outcomes.
	b.Exec(t, "CREATE FUNCTION public.meet() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END$$")
	b.Exec(t, "CREATE TRIGGER meet BEFORE INSERT ON mailhook.subscription_health FOR EACH ROW EXECUTE FUNCTION public.meet()")
	hold, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	record := func(good, bad uuid.UUID, offset int) error {
		var batch []outcome
		for _, x := range []struct {
			subscription uuid.UUID
			word         string
		}{{good, outcomeOK}, {bad, outcomeHTTP5xx}} {
			id := dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.deliveries WHERE subscription_id = $1 ORDER BY id OFFSET $2 LIMIT 1", x.subscription, offset)
			batch = append(batch, outcome{delivery: &delivery{id: id, leaseID: lease}, word: x.word, startedAt: time.Now()})
		}
		p := recordParams(batch)
		p.AgesMS = ages(batch)
		_, err := w.q.Record(t.Context(), p)
		return err
	}
	errs := make(chan error, 2)
	go func() { errs <- record(one, two, 0) }()
	go func() { errs <- record(two, one, 1) }()
	defer hold.Rollback(t.Context())
	dbtest.Eventually(t, "both wait, for the test or for each other", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE NOT l.granted AND a.datname = current_database()") >= 2
	})
	hold.Rollback(t.Context())
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Notifications do not arrive (a pooler, a broken LISTEN): the poll finds the event. Then the worker is awake, and
// hosts need not notify.
func TestAWorkerAwakeByPollDisarms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.config()
	c.PollInterval = 100 * time.Millisecond
	w := b.idleWorker(t, c)
	d := &dispatcher{w: w, requests: t.Context(), limit: c.BatchRows, fanOut: -1}
	d.idle(t.Context()) // arms
	for {
		n, err := d.look(t.Context(), 100, batchBytes)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			d.found(t.Context())
			break
		}
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		d.idle(t.Context()) // sleeps until the poll
	}
	if dbtest.QueryOne[int64](t, b.DB, "SELECT last_value FROM mailhook.wakeup") != 0 {
		t.Error("awake and busy, and every commit of the host still notifies")
	}
}

// A backlog while a host's transaction holds a snapshot: a scan must start above what it has taken.
func TestTheFloorHoldsInABacklog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const rows = 20_000
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, $1::int)", rows)
	snapshot, err := b.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback(t.Context())
	if _, err := snapshot.Exec(t.Context(), "SELECT count(*) FROM mailhook.installation"); err != nil {
		t.Fatal(err)
	}
	w := b.idleWorker(t, b.config())
	d := &dispatcher{w: w, requests: t.Context(), limit: 500, fanOut: -1}
	w.cfg.BatchRows = 500
	var took []time.Duration
	for {
		began := time.Now()
		n, err := d.look(t.Context(), 875, batchBytes)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		took = append(took, time.Since(began).Round(time.Millisecond))
	}
	read := b.read(t, w, "SELECT idx_tup_read FROM pg_stat_all_indexes WHERE indexrelname = 'outbox_id_pkey'")
	t.Logf("%d index entries read for %d rows; looks took %v", read, rows, took)
	if read > 6*rows {
		t.Errorf("%d index entries read to take %d rows: each look scans from the beginning", read, rows)
	}
}

func (b *bundle) look(t *testing.T, w *Worker) {
	t.Helper()
	d := &dispatcher{w: w, requests: t.Context(), limit: w.cfg.BatchRows, fanOut: -1}
	for {
		if n, err := d.look(t.Context(), 0, batchBytes); err != nil {
			t.Fatal(err)
		} else if n == 0 {
			return
		}
	}
}

// A key is a duplicate within the window, and not for as long as retention has not come by.
func TestDedupeEndsWithItsWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "status = 'paused'")
	b.Exec(t, "UPDATE mailhook.installation SET dedupe_window = '1 minute'")
	w := b.idleWorker(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent', dedupe_key => 'k')")
	b.look(t, w)
	b.Exec(t, "UPDATE mailhook.dedupe_keys SET seen_at = seen_at - interval '5 minutes'")
	b.Exec(t, "SELECT mailhook.emit('email.sent', dedupe_key => 'k')")
	b.look(t, w)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries"); n != 2 {
		t.Errorf("%d deliveries of 2 events five minutes apart; the window is a minute", n)
	}
}

// All workers were away for days: the first event of today lies in the DEFAULT partition before retention runs.
func TestARowInDefaultDoesNotStopTomorrow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	for _, name := range dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(i.inhrelid::regclass::text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'r' AND c.relname LIKE 'events_2%'") {
		b.Exec(t, "DROP TABLE "+name)
	}
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.look(t, w)
	now := time.Now().UTC()
	w.retainOnce(t.Context(), now)
	for ahead := 1; ahead <= daysAhead; ahead++ {
		name := "mailhook.events_" + now.AddDate(0, 0, ahead).Format("20060102")
		if !dbtest.QueryOne[bool](t, b.DB, "SELECT to_regclass($1) IS NOT NULL", name) {
			t.Errorf("%s was not made: tomorrow's events go into DEFAULT too, and so on for ever", name)
		}
	}
}

// Rows in DEFAULT are past their time like any others.
func TestRowsInDefaultAreDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at) VALUES (now() - interval '90 days', 1, 'default', 'email.sent', now(), now())")
	w.retainOnce(t.Context(), time.Now().UTC())
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events"); n != 0 {
		t.Error("an event of 90 days ago is kept; the retention is 14 days")
	}
}

// deadLetters are n events with a dead letter for the subscription each.
func (b *bundle) deadLetters(t *testing.T, subscription uuid.UUID, n int) {
	t.Helper()
	b.Exec(t, `
		WITH logged AS (
			INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
			SELECT now() - interval '1 minute', n, 'default', 'email.sent', now(), now() - interval '1 minute' FROM generate_series(1, $2) AS n
			RETURNING inserted_at, id, event_type
		)
		INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at)
		SELECT gen_random_uuid(), $1, 'default', l.inserted_at, l.id, l.event_type, 1, 'schedule_ended', now(), now() FROM logged AS l`, subscription, n)
}

// A replay runs while the subscription is deactivated: its dead letters stay dead letters.
func TestAReplayLeavesTheDeadLettersOfAnInactiveSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'inactive'")
	b.deadLetters(t, id, 1)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'exhausted', 100, 1)`, id)
	w := b.idleWorker(t, b.config())
	replay := dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays")
	if _, err := w.q.AdvanceReplay(t.Context(), db.AdvanceReplayParams{ID: replay, MaxScanned: replayScan}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.q.CancelDeliveries(t.Context(), db.CancelDeliveriesParams{ChangedSince: time.Unix(0, 0), MaxRows: 10}); err != nil {
		t.Fatal(err)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters"); n != 1 {
		t.Errorf("%d dead letters: the replay took them, and the cancellation of the inactive subscription ended them", n)
	}
}

// Two workers ask what a replay may release, and both act on the same answer, one after the other.
func TestReplayRateIsOfAllWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	b.deadLetters(t, id, 50)
	w := b.idleWorker(t, b.config())
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'exhausted', 1, 50, now() - interval '10 seconds')`, id)
	one, err := w.q.ListRunningReplays(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := w.q.ListRunningReplays(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []db.ListRunningReplaysRow{one[0], two[0]} {
		if err := w.advance(t.Context(), r, replayScan); err != nil {
			t.Fatal(err)
		}
	}
	// A second for each, the 10 of before among them: not for each of the two.
	most := b.count(t, "SELECT floor(extract(epoch FROM clock_timestamp() - until) + 10)::bigint FROM mailhook.replays")
	if n := b.count(t, "SELECT count(*) FROM mailhook.deliveries"); n < 10 || n > most {
		t.Errorf("%d released, at most %d at 1 a second", n, most)
	}
}

// What a step leaves of the time, less than an event's, counts in the next one.
func TestAReplayKeepsItsRate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	b.deadLetters(t, id, 50)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'exhausted', 7, 50, now() - interval '250 ms')`, id)
	before := dbtest.QueryOne[time.Time](t, b.DB, "SELECT advanced_at FROM mailhook.replays")
	w := b.idleWorker(t, b.config())
	if err := w.advance(t.Context(), db.ListRunningReplaysRow{ID: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays")}, replayScan); err != nil {
		t.Fatal(err)
	}
	n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries")
	after := dbtest.QueryOne[time.Time](t, b.DB, "SELECT advanced_at FROM mailhook.replays")
	if want := before.Add(time.Duration(n) * time.Second / 7); n == 0 || after.Sub(want).Abs() > time.Millisecond {
		t.Errorf("%d released, and the rate is counted from %v on, want %v", n, after.Sub(before), want.Sub(before))
	}
}

// Dead endpoints with retries due take every slot, those that dispatch would need too (P5).
func TestSlowEndpointsLeaveRoomForHealthyOnes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	release, healthy := make(chan struct{}), make(chan struct{}, 1)
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if r.Path == "/slow" {
			<-release
		} else {
			healthy <- struct{}{}
		}
	})
	defer close(release)
	for range 40 {
		b.waiting(t, b.subscribe(t, "/slow", "form", "timeout = '60 seconds'"), 32, 1)
	}
	b.subscribe(t, "/healthy", "email")
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "full", func() bool { return w.leases.held() >= w.cfg.MaxInFlight-w.cfg.MaxInFlight/4 })
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	select {
	case <-healthy:
	case <-time.After(30 * time.Second): // the slow ones keep their slots for twice as long
		t.Error("40 slow endpoints: an event for a healthy one was not sent")
	}
}

// A replay reads a bounded number of events in a step, and comes to its end however few of them match.
func TestAReplayOfFewAmongMany(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "form", "status = 'paused'")
	w := b.idleWorker(t, b.config())
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
		SELECT now() - interval '1 minute' + n * interval '1 second', n, 'default', CASE WHEN n IN (5, 9) THEN 'form.submitted' ELSE 'email.sent' END, now(), now() - interval '1 minute'
		FROM generate_series(1, 10) AS n`)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'all', 1000, 2, now() - interval '1 hour')`, id)
	replay := dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays")
	for step := 1; ; step++ {
		row, err := w.q.AdvanceReplay(t.Context(), db.AdvanceReplayParams{ID: replay, MaxScanned: 3})
		if err != nil {
			t.Fatal(err)
		}
		if row.State == "done" {
			break
		}
		if step == 5 {
			t.Fatalf("not done after %d steps of 3 of 10 events", step)
		}
		// As if the time that the rate asks for had passed.
		b.Exec(t, "UPDATE mailhook.replays SET advanced_at = now() - interval '1 hour'")
	}
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(event_id::text, ' ' ORDER BY event_id) FROM mailhook.deliveries"); got != "5 9" {
		t.Errorf("released %s", got)
	}
}

// A rate limit is of all workers together, also while one joins: in no stretch of time do more requests come than the
// rate allows, and one for each worker, which has a turn saved up.
func TestTheRateHoldsWhileAWorkerJoins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const rate, workers = 20, 3
	b.waiting(t, b.subscribe(t, "/", "email", "rate_limit_per_second = 20"), 120, 1)
	for range workers - 1 {
		b.run(t, b.config())
	}
	b.waitFor(t, 20)
	b.run(t, b.config())
	receipts := b.waitFor(t, 120)
	slices.SortFunc(receipts, func(x, y receiver.Receipt) int { return x.At.Compare(y.At) })
	for i := range receipts {
		for j := i + rate; j < len(receipts); j++ {
			// Turns are taken ahead, and what a busy machine held back of them comes at once. Three workers with the whole rate each would
			// be over it within a second.
			if most := int((receipts[j].At.Sub(receipts[i].At)+longestTurn+500*time.Millisecond).Seconds()*rate) + workers; j-i > most {
				t.Fatalf("%d requests in %v, at %d a second", j-i, receipts[j].At.Sub(receipts[i].At), rate)
			}
		}
	}
}

// A limiter that outlives a full cache is divided among the workers once.
func TestALimiterOutlivesAFullCache(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "rate_limit_per_second = 60")
	c := b.idleWorker(t, b.config()).cache
	read := func() *subscription {
		t.Helper()
		if err := c.read(t.Context(), map[uuid.UUID]bool{id: true}); err != nil {
			t.Fatal(err)
		}
		return c.get(id)
	}
	before := read().pace
	c.young, c.old = map[uuid.UUID]*subscription{}, c.young
	if after := read().pace; after != before {
		t.Error("it has forgotten what was spent")
	}
	c.share(3)
	if got := c.get(id).pace.limiter.Limit(); got != 20 {
		t.Errorf("each of three workers has %v of 60 a second", got)
	}
}
