package worker

import (
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
	replay := db.ListRunningReplaysRow{ID: dbtest.QueryOne[uuid.UUID](t, b.DB, "SELECT id FROM mailhook.replays"), Source: "all"}
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "SELECT mailhook.create_partition('events', day) FROM (SELECT DISTINCT (inserted_at AT TIME ZONE 'UTC')::date AS day FROM mailhook.events) AS days"); err != nil {
		t.Fatal(err)
	}
	stepped := make(chan error, 1)
	go func() { stepped <- w.advance(t.Context(), replay) }()
	dbtest.Eventually(t, "it waits", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'mailhook.events_default'::regclass AND NOT granted)")
	})
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = <-stepped
	if sqlState(err) == "57014" { // query_canceled: its statement timeout
		t.Log("it has waited too long, and tries again: this shows nothing")
		err = w.advance(t.Context(), replay)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries"); n != 10 {
		state := dbtest.QueryOne[string](t, b.DB, "SELECT state FROM mailhook.replays")
		t.Errorf("%d of 10 events released, and the replay is %s", n, state)
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
		if err := w.advance(t.Context(), db.ListRunningReplaysRow{ID: replay.ID, Source: "all"}); err != nil {
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
