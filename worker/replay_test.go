package worker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// A step of a replay that waits while rows move from DEFAULT into a partition that is being made sees them in their new
// place: planned before, it would know only the old partitions, and end without them.
func TestReplayingBesideANewPartition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	w := b.idleWorker(t, b.config())
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
		SELECT now() - interval '20 days' + n * interval '1 second', n, 'default', 'email.sent', now(), now() - interval '1 minute'
		FROM generate_series(1, 10) AS n`)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'all', 1000, 10, now() - interval '1 hour')`, id)
	replay := db.ListRunningReplaysRow{ID: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays")}
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "SELECT mailhook.create_partition('events', day) FROM (SELECT DISTINCT (inserted_at AT TIME ZONE 'UTC')::date AS day FROM mailhook.events) AS days"); err != nil {
		t.Fatal(err)
	}
	stepped := make(chan error, 1)
	go func() { stepped <- w.advance(t.Context(), replay, replayScan) }()
	dbtest.Eventually(t, "it waits", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'mailhook.events_default'::regclass AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))")
	})
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = <-stepped
	if state := sqlState(err); state == "57014" || state == "55P03" { // its statement timeout, or that of locks
		t.Log("it has waited too long, and tries again: this shows nothing")
		err = w.advance(t.Context(), replay, replayScan)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries"); n != 10 {
		state := dbtest.QueryOne[string](t, b.DB, "SELECT state FROM mailhook.replays")
		t.Errorf("%d of 10 events released, and the replay is %s", n, state)
	}
}

// A backfill has what was dispatched before its subscription, and dispatch what was written before and dispatched later.
func TestABackfillLeavesNothingOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, stop := b.run(t, b.config())
	b.emit(t, 3)
	b.settled(t)
	stop()
	b.emit(t, 2)
	b.subscribe(t, "/without", "email")
	id := b.subscribe(t, "/with", "email", "has_backfill = true")
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
		SELECT id, account_id, created_at - interval '1 hour', created_at, 'all', 1000, 3 FROM mailhook.subscriptions WHERE id = $1`, id)
	b.run(t, b.config())
	b.waitFor(t, 5)
	dbtest.Eventually(t, "it has ended", func() bool { return dbtest.QueryOne[bool](t, b.DB, "SELECT state = 'done' FROM mailhook.replays") })
	b.settled(t)
	var got []string
	for _, r := range b.waitFor(t, 5) {
		got = append(got, r.Path+" "+r.ID)
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 5 || !strings.HasPrefix(got[0], "/with ") || len(b.waitFor(t, 5)) != 5 {
		t.Errorf("came: %v", got)
	}
}

// A replay that is cancelled midway makes no further delivery: neither the step that comes next, nor the one under way,
// which has locked its row before.
func TestACancelledReplayStops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	q := db.New(b.Pool)
	subscription := dbtest.QueryOne[uuid.UUID](t, b.DB, "INSERT INTO mailhook.subscriptions (account_id, url, event_types) VALUES ('a', 'https://example.com/', '{*}') RETURNING id")
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
		SELECT now() - n * interval '1 second', n, 'a', 'email.sent', now(), now() - interval '1 minute' FROM generate_series(1, 1000) AS n`)
	replay, err := q.CreateReplay(t.Context(), db.CreateReplayParams{
		SubscriptionID: subscription, AccountID: "a", Since: time.Now().Add(-time.Hour), Until: time.Now(), Source: "all", RatePerSecond: 50, State: "running", Matched: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := b.idleWorker(t, b.config())
	step := func() {
		b.Exec(t, "UPDATE mailhook.replays SET advanced_at = now() - interval '1 second'")
		if err := w.advance(t.Context(), db.ListRunningReplaysRow{ID: replay.ID}, replayScan); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int { return dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.deliveries") }
	step()
	made := count()
	if made < 50 || made > 100 {
		t.Fatalf("a step made %d deliveries, at 50 a second", made)
	}
	cancelled, err := q.CancelReplay(t.Context(), db.CancelReplayParams{ID: replay.ID})
	if err != nil || cancelled.State != "cancelled" || cancelled.Done != int64(made) {
		t.Fatal(cancelled, err)
	}
	step()
	if n := count(); n != made {
		t.Errorf("%d deliveries after the cancellation", n-made)
	}
}

// A replay of what was exhausted goes by the filters and types of today and by dispatch times: what does not match stays a dead letter.
func TestAReplayOfExhaustedGoesByTodaysFilters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email.sent", "filter_sending_domain = '{a.example}'")
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, sending_domain)
		SELECT now() - x.age * interval '1 hour', x.id, 'default', x.event_type, now(), now() - x.age * interval '1 hour', x.domain
		FROM (VALUES (1, 'email.sent', 'a.example', 3), (2, 'email.sent', 'a.example', 1), (3, 'email.sent', 'b.example', 1), (4, 'email.opened', 'a.example', 1))
			AS x (id, event_type, domain, age)`)
	// The first was retried, and its letter is that of the retry; the second was, too, and has two.
	b.Exec(t, `INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at)
		SELECT gen_random_uuid(), $1, 'default', e.inserted_at, e.id, e.event_type, 1, 'schedule_ended', now(), now()
		FROM mailhook.events AS e, generate_series(1, 2) AS n WHERE n = 1 OR e.id = 2`, id)
	w := b.idleWorker(t, b.config())
	replay := func(since, until time.Duration, want string) {
		t.Helper()
		from, to := time.Now().Add(-since), time.Now().Add(-until)
		counted, err := w.q.ScanReplay(t.Context(), db.ScanReplayParams{
			SubscriptionID: id, Source: "exhausted", Since: from, Until: to, BeforeAt: to, MaxRows: 100,
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := db.New(b.Pool).CreateReplay(t.Context(), db.CreateReplayParams{
			SubscriptionID: id, AccountID: "default", Since: from, Until: to, Source: "exhausted", RatePerSecond: 1000, State: "running", Matched: counted.Matched,
		})
		if err != nil {
			t.Fatal(err)
		}
		b.Exec(t, "UPDATE mailhook.replays SET advanced_at = now() - interval '1 second'")
		row, err := w.q.AdvanceReplay(t.Context(), db.AdvanceReplayParams{ID: r.ID, MaxScanned: 100})
		if err != nil {
			t.Fatal(err)
		}
		got := dbtest.QueryOne[string](t, b.DB, "SELECT coalesce(string_agg(event_id::text, ' ' ORDER BY event_id), '') FROM mailhook.deliveries")
		if got != want || row.Inserted != counted.Matched || row.State != "done" {
			t.Errorf("released %q, want %q; counted %d, inserted %d, and it is %s", got, want, counted.Matched, row.Inserted, row.State)
		}
	}
	replay(4*time.Hour, 2*time.Hour, "1")
	replay(4*time.Hour, 0, "1 2")
	replay(4*time.Hour, 0, "1 2") // nothing is left that matches
	if left := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(event_id::text, ' ' ORDER BY event_id) FROM mailhook.dead_letters"); left != "3 4" {
		t.Errorf("dead letters of %s are left, want those of 3 and 4", left)
	}
}

// A step of a replay of what was exhausted reads a bounded number of dead letters, and comes past those that do not match.
func TestAReplayOfExhaustedComesPastWhatDoesNotMatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email.sent")
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
		SELECT now() - interval '1 minute', n, 'default', CASE WHEN n = 20 THEN 'email.sent' ELSE 'email.opened' END, now(), now() - interval '1 minute'
		FROM generate_series(1, 20) AS n`)
	b.Exec(t, `INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at)
		SELECT gen_random_uuid(), $1, 'default', e.inserted_at, e.id, e.event_type, 1, 'schedule_ended', now(), now() FROM mailhook.events AS e`, id)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
		VALUES ($1, 'default', now() - interval '1 hour', now(), 'exhausted', 1000, 1)`, id)
	w := b.idleWorker(t, b.config())
	for step := 1; ; step++ {
		b.Exec(t, "UPDATE mailhook.replays SET advanced_at = now() - interval '1 hour'")
		row, err := w.q.AdvanceReplay(t.Context(), db.AdvanceReplayParams{ID: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays"), MaxScanned: 6})
		if err != nil {
			t.Fatal(err)
		}
		if row.State == "done" {
			break
		}
		if step == 5 {
			t.Fatalf("not done after %d steps of 6 of 20 dead letters", step)
		}
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE event_id = 20"); n != 1 {
		t.Errorf("%d deliveries of the one that matches", n)
	}
}

// A replay whose step fails holds up no other.
func TestAReplayThatFailsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.deadLetters(t, id, 1)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
		SELECT $1, 'default', now() - interval '1 hour', now(), 'exhausted', 100, 1 FROM generate_series(1, 2)`, id)
	b.Exec(t, `
		CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not by this replay'; END $$;
		DO $$ BEGIN EXECUTE format('CREATE TRIGGER refuse BEFORE INSERT ON mailhook.deliveries FOR EACH ROW WHEN (NEW.replay_id = %L) EXECUTE FUNCTION public.refuse()',
			(SELECT id FROM mailhook.replays ORDER BY advanced_at, id LIMIT 1)); END $$`)
	w, _ := b.run(t, b.config())
	b.waitFor(t, 1)
	dbtest.Eventually(t, "the other has failed", func() bool { return value(w.metrics.databaseErrors.WithLabelValues("replay")) > 0 })
}

// One replay of each account comes before a second of any, and of an account first what waits for longest.
func TestReplaysOfAccountsTakeTurns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		SELECT $1, x.account, now() - interval '1 hour', now(), 'all', x.n, 1, now() - x.n * interval '1 minute'
		FROM (VALUES ('a', 9), ('a', 8), ('a', 7), ('b', 2), ('b', 3), ('c', 1)) AS x (account, n)`, id)
	running, err := b.idleWorker(t, b.config()).q.ListRunningReplays(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rates := dbtest.QueryOne[map[string]int](t, b.DB, "SELECT jsonb_object_agg(id, rate_per_second) FROM mailhook.replays")
	var order []string
	for _, r := range running {
		order = append(order, fmt.Sprintf("%d:%d", r.Nth, rates[r.ID.String()]))
	}
	if want := []string{"1:9", "1:3", "1:1", "2:8", "2:2", "3:7"}; !slices.Equal(order, want) {
		t.Errorf("steps in the order %v, want %v", order, want)
	}
}

// While somebody repeats an event of the subscription, a step of its replay is left to the next round.
func TestAStepOfAReplayLeavesRepeatsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.deadLetters(t, id, 3)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now() + interval '1 hour', 'exhausted', 100, 3, now() - interval '1 hour')`, id)
	w := b.idleWorker(t, b.config())
	replay := db.ListRunningReplaysRow{ID: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays"), SubscriptionID: id}
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if err := db.New(other).LockRepeats(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{0, 3} {
		if err := w.advance(t.Context(), replay, replayScan); err != nil {
			t.Fatal(err)
		}
		if n := b.count(t, "SELECT count(*) FROM mailhook.deliveries"); n != want {
			t.Errorf("%d deliveries, want %d", n, want)
		}
		if err := other.Rollback(t.Context()); err != nil && want == 0 {
			t.Fatal(err)
		}
	}
}
