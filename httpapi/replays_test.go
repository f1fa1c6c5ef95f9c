package httpapi

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

func TestReplayOfOneEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"email.sent"}})
	path, at := "/v1/subscriptions/"+id+"/replay", time.Now().Add(-time.Hour)
	sent, bounced, foreign := b.event(t, "acme", "email.sent", "r", at), b.event(t, "acme", "email.bounced", "r", at), b.event(t, "evil", "email.sent", "r", at)
	b.end(t, b.delivery(t, sent, id), "exhausted", "dns", 0)
	if got := b.must(t, 200, b.acme, "POST", path, object{"event_id": sent, "dry_run": true}); fmt.Sprint(got) != "map[matched:1]" {
		t.Error(got)
	}
	got := b.must(t, 202, b.acme, "POST", path, object{"event_id": sent})
	if got["state"] != "done" || got["matched"] != 1.0 || got["done"] != 1.0 {
		t.Error(got)
	}
	made := dbtest.QueryOne[string](t, b.DB, "SELECT format('%s %s %s', event_type, attempt, replay_id IS NOT NULL) FROM mailhook.deliveries WHERE mailhook.event_id(event_inserted_at, event_id) = $1", sent)
	if dead := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.dead_letters"); made != "email.sent 0 t" || dead != 0 {
		t.Errorf("made %s, and %d dead letters are left", made, dead)
	}
	if got := b.must(t, 200, b.acme, "POST", path, object{"event_id": sent, "dry_run": true}); fmt.Sprint(got) != "map[matched:0]" {
		t.Error(got)
	}
	b.mustFail(t, 409, "", "unfinished", b.acme, "POST", path, object{"event_id": sent})
	b.mustFail(t, 422, "event_id", "not_matched", b.acme, "POST", path, object{"event_id": bounced})
	for _, other := range []string{foreign, "evt_", "x", strings.Replace(sent, "0", "1", 1)} {
		b.mustFail(t, 422, "event_id", "not_found", b.acme, "POST", path, object{"event_id": other})
	}
	b.mustFail(t, 422, "event_id", "not_found", b.admin, "POST", path, object{"event_id": foreign})
	b.mustFail(t, 422, "event_id", "not_allowed", b.acme, "POST", path, object{"event_id": sent, "since": "2024-01-01T00:00:00Z"})
	b.Exec(t, "UPDATE mailhook.events SET erased_at = now() WHERE account_id = 'acme'")
	b.mustFail(t, 409, "", "event_dropped", b.acme, "POST", path, object{"event_id": bounced})
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/deactivate", nil)
	b.Exec(t, "UPDATE mailhook.events SET erased_at = NULL")
	b.mustFail(t, 409, "", "inactive", b.acme, "POST", path, object{"event_id": sent})
}

// What cannot have happened yet is refused, and not replayed as nothing.
func TestAReplayOfTheFutureIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil) + "/replay"
	b.mustFail(t, 422, "since", "out_of_range", b.acme, "POST", path, object{"since": "2999-01-01T00:00:00Z"})
	b.mustFail(t, 422, "since", "out_of_range", b.acme, "POST", path, object{"since": "2999-01-01T00:00:00Z", "until": "2999-02-01T00:00:00Z"})
	b.mustFail(t, 422, "until", "out_of_range", b.acme, "POST", path, object{"since": "2024-01-02T00:00:00Z", "until": "2024-01-01T00:00:00Z"})
}

// A new subscription with the events of before it: the replay is there with the subscription, or neither is.
func TestBackfill(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	for i := range 4 {
		b.event(t, "acme", "email.sent", "r", now.Add(-time.Duration(i)*50*time.Minute-time.Minute))
	}
	b.event(t, "acme", "email.bounced", "r", now.Add(-time.Minute))
	body := subscription(object{"event_types": []string{"email.sent"}, "filters": object{"data": object{"n": "1.5"}}})
	for over, matched := range map[string]float64{"1h": 2, "2h": 3, "7d": 4} {
		body["backfill"] = over
		got := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", body)
		replay, _ := got["backfill"].(object)
		if replay["matched"] != matched || replay["status"] != "all" || replay["state"] != "running" || replay["subscription_id"] != got["id"] || replay["matched_at_least"] != nil {
			t.Errorf("%s: %v", over, got)
		}
		if note, _ := replay["note"].(string); (over == "7d") != strings.Contains(note, "events are kept since") {
			t.Errorf("%s: %v", over, replay)
		}
		if dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscriptions WHERE NOT has_backfill") > 0 {
			t.Error("dispatch does not know of the backfill")
		}
		again := b.must(t, 200, b.acme, "GET", "/v1/replays/"+replay["id"].(string), nil)
		if again["until"] != got["created_at"] || again["seconds_left"] != 1.0 {
			t.Error(again)
		}
	}
	for over, code := range map[any]string{"59m": "out_of_range", "400d": "out_of_range", "week": "invalid_duration", 7: "wrong_type"} {
		body["backfill"] = over
		b.mustFail(t, 422, "backfill", code, b.acme, "POST", "/v1/subscriptions", body)
	}
	body["backfill"] = "400d"
	if r := b.send(t, b.acme, "POST", "/v1/subscriptions", body); !strings.Contains(r.text, "must be from 1h to 366d") {
		t.Error(r.text)
	}
	b.Exec(t, "ALTER TABLE mailhook.replays ADD CONSTRAINT no CHECK (false) NOT VALID")
	body["backfill"] = "1h"
	b.must(t, 500, b.acme, "POST", "/v1/subscriptions", body)
	b.logs.Reset()
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscriptions"); n != 3 {
		t.Errorf("%d subscriptions", n)
	}
}

func TestListReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, other := b.create(t, b.acme, nil), b.create(t, b.acme, nil)
	var made []string
	for i, id := range []string{one, other, one, one} {
		got := b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", object{"since": "2024-01-01T00:00:00Z", "status": "all"})
		if !strings.Contains(got["note"].(string), "past its retention") {
			t.Error(got)
		}
		if made = append([]string{got["id"].(string)}, made...); i == 3 {
			b.Exec(t, "UPDATE mailhook.replays SET matched = 100, done = 25, rate_per_second = 10")
		}
	}
	if got := b.walk(t, b.acme, "/v1/replays", "2"); fmt.Sprint(got) != fmt.Sprint(made) {
		t.Errorf("got %v, want %v", got, made)
	}
	got := b.must(t, 200, b.admin, "GET", "/v1/replays?subscription_id="+one, nil)
	if fmt.Sprint(ids(got)) != fmt.Sprint([]string{made[0], made[1], made[3]}) {
		t.Error(got)
	}
	if first := got["data"].([]any)[0].(object); first["seconds_left"] != 8.0 || first["done"] != 25.0 {
		t.Error(first)
	}
	b.mustFail(t, 404, "", "not_found", b.evil, "GET", "/v1/replays?subscription_id="+one, nil)
}

// Counting stops at a bound, and says so.
func TestCountsOfReplaysAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
		SELECT now() - n * interval '1 millisecond', n, 'acme', 'email.sent', now(), now() FROM generate_series(1, 101000) AS n`)
	id := b.create(t, b.acme, nil)
	got := b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", object{"since": time.Now().Add(-time.Hour), "status": "all", "dry_run": true})
	if matched := got["matched"].(float64); got["matched_at_least"] != true || matched > previewScan || matched < 1 {
		t.Error(got)
	}
	t.Logf("%v counted", got["matched"])
}

// Who repeats the same event for the same subscription at the same moment makes one delivery of it, whichever way: a replay, a retry of either
// of two that have ended.
func TestRepeatsOfOnePairMakeOneDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	var ended []string
	for range 2 {
		delivery := b.delivery(t, event, id)
		b.attempt(t, delivery)
		b.end(t, delivery, "exhausted", "http_5xx", 500)
		ended = append(ended, delivery)
	}
	// All stand before their delivery, or before the look for another.
	b.Exec(t, "CREATE FUNCTION public.meet() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END$$")
	b.Exec(t, "CREATE TRIGGER meet BEFORE INSERT ON mailhook.deliveries FOR EACH ROW EXECUTE FUNCTION public.meet()")
	hold, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback(t.Context())
	if _, err := hold.Exec(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	asked := []struct {
		path string
		body any
	}{
		{"/v1/subscriptions/" + id + "/replay", object{"event_id": event}}, {"/v1/subscriptions/" + id + "/replay", object{"event_id": event}},
		{"/v1/deliveries/" + ended[0] + "/retry", nil}, {"/v1/deliveries/" + ended[1] + "/retry", nil},
	}
	var wg sync.WaitGroup
	var made, refused atomic.Int64
	for _, a := range asked {
		wg.Go(func() {
			switch r := b.send(t, b.acme, "POST", a.path, a.body); r.status {
			case 201, 202:
				made.Add(1)
			case 409:
				refused.Add(1)
			default:
				t.Errorf("%s: %d %s", a.path, r.status, r.text)
			}
		})
	}
	dbtest.Eventually(t, "all wait", func() bool {
		return dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mailhook api' AND wait_event_type = 'Lock'") == len(asked)
	})
	if err := hold.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if made.Load() != 1 || refused.Load() != 3 {
		t.Errorf("%d made a delivery, %d were refused", made.Load(), refused.Load())
	}
}

// An account may have a hundred running; those of others, and what is done at once, are not counted.
func TestRunningReplaysAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
		SELECT s.id, s.account_id, now() - interval '1 hour', now(), 'all', 1, 1 FROM mailhook.subscriptions AS s, generate_series(1, $1)`, maxRunningReplays)
	replay := object{"since": "2024-01-15T10:30:00Z"}
	for path, body := range map[string]any{"/v1/subscriptions/" + id + "/replay": replay, "/v1/subscriptions": subscription(object{"backfill": "7d"})} {
		r := b.send(t, b.acme, "POST", path, body)
		if r.status != 409 || r.body["type"] != "urn:mailhook:limit_reached" || !strings.Contains(r.text, "100 replays and backfills are running") {
			t.Errorf("%s: %d %s", path, r.status, r.text)
		}
	}
	b.must(t, 202, b.evil, "POST", "/v1/subscriptions/"+b.create(t, b.evil, nil)+"/replay", replay)
	b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", object{"event_id": b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))})
	b.Exec(t, "UPDATE mailhook.replays SET state = 'done' WHERE id = (SELECT min(id::text)::uuid FROM mailhook.replays WHERE state = 'running' AND account_id = 'acme')")
	b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", replay)
}
