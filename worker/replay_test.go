package worker

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

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
