package httpapi

import (
	"strings"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

func TestOrdering(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	check := func(want string) {
		t.Helper()
		if got := b.must(t, 200, b.acme, "GET", path, nil)["ordering"]; got != want {
			t.Errorf("ordering is %v, want %s", got, want)
		}
	}
	check("none")
	for _, ordering := range []string{"message", "recipient", "none"} {
		b.must(t, 200, b.acme, "PATCH", path, object{"ordering": ordering})
		check(ordering)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"ordering": "message"})
	b.must(t, 200, b.acme, "PATCH", path, object{"name": "x"})
	check("message")
	b.must(t, 200, b.acme, "PATCH", path, object{"ordering": nil})
	check("none")
	b.mustFail(t, 422, "ordering", "not_allowed", b.acme, "PATCH", path, object{"ordering": "campaign"})
	b.mustFail(t, 422, "ordering", "wrong_type", b.acme, "PATCH", path, object{"ordering": true})
	b.mustFail(t, 422, "ordering", "not_allowed", b.acme, "POST", "/v1/subscriptions", subscription(object{"ordering": ""}))
	created := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"ordering": "recipient"}))
	if created["ordering"] != "recipient" {
		t.Error(created["ordering"])
	}

	// A batch has no order.
	b.Exec(t, "UPDATE mailhook.subscriptions SET batch_max_events = 10, batch_max_wait = '1s'")
	b.mustFail(t, 422, "ordering", "not_allowed", b.acme, "PATCH", path, object{"ordering": "recipient"})
	batch := object{"max_events": 10}
	b.mustFail(t, 422, "ordering", "not_allowed", b.acme, "POST", "/v1/subscriptions", subscription(object{"ordering": "message", "batch": batch}))
	// One is changed for the other in one request.
	b.must(t, 200, b.acme, "PATCH", path, object{"ordering": "message", "batch": nil})
	check("message")
	b.mustFail(t, 422, "ordering", "not_allowed", b.acme, "PATCH", path, object{"batch": batch})
	b.must(t, 200, b.acme, "PATCH", path, object{"ordering": "none", "batch": batch})
	check("none")
}

// A delivery that waits for its order says so, and cannot be hurried; a new one of an event takes its place in the order.
func TestRetriesKeepTheOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, object{"ordering": "recipient"})
	first := b.delivery(t, b.event(t, "acme", "email.sent", "r@example.com", time.Now()), subscription)
	later := b.event(t, "acme", "email.sent", "R@example.com", time.Now())
	second := b.delivery(t, later, subscription)
	for _, id := range []string{first, second} {
		b.end(t, id, "exhausted", "dns", 0)
	}
	retry := func(id string) object {
		return b.must(t, 201, b.acme, "POST", "/v1/deliveries/"+id+"/retry", nil)
	}
	head := retry(first)
	if head["waits_for"] != nil || head["status"] != "pending" || head["next_attempt_at"] == nil {
		t.Error(head)
	}
	behind := retry(second)
	if behind["waits_for"] != "order" || behind["status"] != "pending" || behind["next_attempt_at"] != nil {
		t.Error(behind)
	}
	says(t, b.explained(t, later, subscription), true, "Waiting for an earlier delivery of the same message or recipient; no attempt was made")
	b.mustFail(t, 409, "", "blocked", b.acme, "POST", "/v1/deliveries/"+behind["id"].(string)+"/retry", nil)
	b.must(t, 200, b.acme, "POST", "/v1/deliveries/"+head["id"].(string)+"/retry", nil)
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg((next_attempt_at = 'infinity')::text, ' ' ORDER BY event_id) FROM mailhook.deliveries"); got != "false true" {
		t.Error(got)
	}
	list := b.must(t, 200, b.acme, "GET", "/v1/deliveries?status=pending", nil)
	if n := len(ids(list)); n != 2 {
		t.Errorf("%d are pending", n)
	}
}

// A retry is made when its delivery is: that its turn could not be looked for is logged, and a worker's sweep finds it.
func TestARetryThatCannotBeUnblockedIsMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, object{"ordering": "recipient"})
	ended := b.delivery(t, b.event(t, "acme", "email.sent", "r@example.com", time.Now()), subscription)
	b.end(t, ended, "exhausted", "dns", 0)
	b.Exec(t, `CREATE FUNCTION public.fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no update'; END $$`)
	b.Exec(t, "CREATE TRIGGER fails BEFORE UPDATE ON mailhook.deliveries FOR EACH ROW EXECUTE FUNCTION public.fails()")
	made := b.must(t, 201, b.acme, "POST", "/v1/deliveries/"+ended+"/retry", nil)
	if made["waits_for"] != "order" || made["id"] == ended {
		t.Error(made)
	}
	if !strings.Contains(b.logs.String(), "a retried delivery waits for its order") {
		t.Error("nothing is logged")
	}
}

// A replay of one event goes behind what is unfinished of its key, and is due where there is nothing.
func TestAReplayOfOneEventGoesInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"ordering": "recipient", "event_types": []string{"email.sent"}})
	at := time.Now().Add(-time.Hour)
	for _, recipient := range []string{"one@example.com", "One@example.com", "two@example.com"} {
		b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", object{"event_id": b.event(t, "acme", "email.sent", recipient, at)})
	}
	got := dbtest.QueryOne[string](t, b.DB, `SELECT string_agg(CASE WHEN order_key IS NULL THEN 'in no order' WHEN next_attempt_at = 'infinity' THEN 'blocked' ELSE 'due' END, ', ' ORDER BY event_id)
		FROM mailhook.deliveries`)
	if got != "due, blocked, due" {
		t.Errorf("the deliveries are %s", got)
	}
}
