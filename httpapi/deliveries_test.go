package httpapi

import (
	"bytes"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db/dbtest"
)

func TestGetDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	event := b.event(t, "acme", "email.bounced.hard", "r@example.com", time.Now())
	id := b.delivery(t, event, subscription)
	path := "/v1/deliveries/" + id
	got := b.must(t, 200, b.acme, "GET", path, nil)
	for name, want := range map[string]any{
		"id": id, "subscription_id": subscription, "account_id": "acme", "event_id": event, "event_type": "email.bounced.hard", "status": "pending", "retry_count": 0.0,
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if got["next_attempt_at"] == nil || got["ended_at"] != nil || len(got["attempts"].([]any)) != 0 {
		t.Error(got)
	}
	for range 3 {
		b.attempt(t, id)
	}
	got = b.must(t, 200, b.acme, "GET", path, nil)
	if got["retry_count"] != 2.0 || got["last_outcome"] != "http_5xx" || got["last_status_code"] != 503.0 || got["status"] != "pending" {
		t.Error(got)
	}
	b.end(t, id, "exhausted", "bad_response", 200)
	got = b.must(t, 200, b.acme, "GET", path, nil)
	attempts := got["attempts"].([]any)
	if got["status"] != "exhausted" || got["retry_count"] != 3.0 || got["ended_at"] == nil || len(attempts) != 4 {
		t.Fatal(got)
	}
	last := attempts[3].(object)
	if last["response_excerpt"] != "a\uFFFDb\uFFFD" || last["number"] != 4.0 || last["outcome"] != "bad_response" || last["duration_ms"] != 12.0 || last["id"].(string)[:4] != "att_" {
		t.Error(last)
	}
	// History stays readable.
	b.must(t, 204, b.acme, "DELETE", "/v1/subscriptions/"+subscription, nil)
	b.must(t, 200, b.acme, "GET", path, nil)
	if list := b.must(t, 200, b.acme, "GET", "/v1/deliveries?subscription_id="+subscription, nil); !slices.Equal(ids(list), []string{id}) {
		t.Error(list)
	}
}

func TestHeldAndSending(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	id := b.delivery(t, b.event(t, "acme", "email.sent", "r", time.Now()), subscription)
	check := func(status, reason string) {
		t.Helper()
		got := b.must(t, 200, b.acme, "GET", "/v1/deliveries/"+id, nil)
		if got["status"] != status || fmt.Sprint(got["held_reason"]) != reason {
			t.Errorf("got %v %v, want %s %s", got["status"], got["held_reason"], status, reason)
		}
		for _, s := range []string{"pending", "sending", "held", "delivered", "exhausted", "cancelled"} {
			if n := len(ids(b.must(t, 200, b.acme, "GET", "/v1/deliveries?status="+s, nil))); n == 1 != (s == status) {
				t.Errorf("status %s: %d listed with status %s", status, n, s)
			}
		}
	}
	check("pending", "<nil>")
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+subscription+"/pause", nil)
	check("held", "paused")
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'suspended'")
	check("held", "suspended")
	released := func(by string) {
		t.Helper()
		if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_health WHERE release_before > now() - interval '1 minute' AND opened_at IS NULL"); n != 1 {
			t.Errorf("%s does not release at a bounded rate", by)
		}
		b.Exec(t, "DELETE FROM mailhook.subscription_health")
	}
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+subscription+"/resume", nil)
	released("resume")
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"status": "suspended"})
	check("held", "account")
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"status": "active"})
	released("the account's return")
	b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, wait_until) SELECT id, now() + interval '1 minute' FROM mailhook.subscriptions")
	check("held", "circuit")
	b.Exec(t, "UPDATE mailhook.subscription_health SET wait_until = NULL, opened_at = now(), open_until = now()")
	check("held", "circuit")
	if got := b.must(t, 200, b.acme, "POST", "/v1/deliveries/"+id+"/retry", nil); got["status"] != "held" {
		t.Error("a retry releases what is held")
	}
	b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = mailhook.uuid7(), lease_id = mailhook.uuid7()")
	check("sending", "<nil>")
	b.mustFail(t, 409, "", "in_flight", b.acme, "POST", "/v1/deliveries/"+id+"/retry", nil)
}

func TestListDeliveries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscriptions := []string{b.create(t, b.acme, nil), b.create(t, b.acme, nil), b.create(t, b.evil, nil)}
	accounts := []string{"acme", "acme", "evil"}
	types := []string{"email.bounced.hard", "email.delivered", "form.submitted"}
	count := 0
	for i := range 40 {
		of := i % 3
		event := b.event(t, accounts[of], types[i%2], fmt.Sprintf("r%d", i%5), time.Now())
		id := b.delivery(t, event, subscriptions[of])
		switch i % 4 {
		case 0:
			b.attempt(t, id)
			b.end(t, id, "delivered", "ok", 200)
		case 1:
			b.attempt(t, id)
		case 2:
			b.end(t, id, "exhausted", "dns", 0)
		}
		count++
	}
	for _, filter := range []struct {
		key, query string
		want       string
	}{
		{b.acme, "", "account_id = 'acme'"},
		{b.evil, "", "account_id = 'evil'"},
		{b.admin, "", "true"},
		{b.admin, "account_id=acme", "account_id = 'acme'"},
		{b.admin, "subscription_id=" + subscriptions[2], "account_id = 'evil'"},
		{b.acme, "status=delivered", "account_id = 'acme' AND status = 'delivered'"},
		{b.acme, "status=exhausted", "account_id = 'acme' AND status = 'exhausted'"},
		{b.acme, "status=pending", "account_id = 'acme' AND status = 'pending'"},
		{b.acme, "status=cancelled", "false"},
		{b.acme, "event_type=email", "account_id = 'acme'"},
		{b.acme, "event_type=email.bounced", "account_id = 'acme' AND event_type = 'email.bounced.hard'"},
		{b.acme, "event_type=email.bounce", "false"},
		{b.acme, "recipient=r3", "account_id = 'acme' AND recipient = 'r3'"},
		{b.admin, "recipient=r3&status=pending", "recipient = 'r3' AND status = 'pending'"},
		{b.acme, "since=2024-01-01T00:00:00Z&until=2124-01-01T00:00:00Z", "account_id = 'acme'"},
		{b.admin, "since=2024-01-01T00:00:00Z&until=2124-01-01T00:00:00%2B02:00", "true"},
		{b.acme, "until=2024-01-01T00:00:00Z", "false"},
		{b.admin, "until=2024-01-01T00:00:00Z", "false"},
		{b.acme, "since=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)), "false"},
		{b.admin, "since=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)), "false"},
	} {
		want := dbtest.QueryOne[int](t, b.DB, `
			SELECT count(*)::int FROM (
				SELECT d.account_id, d.event_type, 'pending' AS status, e.recipient FROM mailhook.deliveries d JOIN mailhook.events e ON e.id = d.event_id
				UNION ALL
				SELECT a.account_id, a.event_type, a.ended_as, e.recipient FROM mailhook.attempts a JOIN mailhook.events e ON e.id = a.event_id WHERE a.ended_as IS NOT NULL
			) AS x WHERE `+filter.want)
		for _, limit := range []string{"1", "3", "200"} {
			got := b.walk(t, filter.key, "/v1/deliveries?"+filter.query, limit)
			distinct := len(slices.Compact(slices.Sorted(slices.Values(got))))
			if len(got) != want || distinct != want {
				t.Errorf("%s limit %s: got %d, %d distinct, want %d", filter.query, limit, len(got), distinct, want)
			}
		}
	}
	first := b.must(t, 200, b.acme, "GET", "/v1/deliveries?limit=1&status=delivered", nil)
	b.mustFail(t, 422, "cursor", "other_filters", b.acme, "GET", "/v1/deliveries?limit=1&cursor="+first["next_cursor"].(string), nil)
	b.mustFail(t, 422, "status", "not_allowed", b.acme, "GET", "/v1/deliveries?status=sent", nil)
	b.mustFail(t, 422, "event_type", "invalid_event_type", b.acme, "GET", "/v1/deliveries?event_type=*", nil)
	b.mustFail(t, 422, "since", "invalid", b.acme, "GET", "/v1/deliveries?since=yesterday", nil)
	b.mustFail(t, 404, "", "not_found", b.acme, "GET", "/v1/deliveries?subscription_id="+subscriptions[2], nil)
}

// TestListsLookAtABoundedNumberOfRows has a needle below more rows than one page looks at.
func TestListsLookAtABoundedNumberOfRows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	needle := b.delivery(t, b.event(t, "acme", "email.sent", "needle", time.Now()), subscription)
	b.end(t, needle, "delivered", "ok", 200)
	waiting := b.delivery(t, b.event(t, "acme", "email.sent", "needle", time.Now()), subscription)
	b.Exec(t, `INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, delivery_created_at)
		SELECT clock_timestamp(), mailhook.uuid7(), mailhook.uuid7(), id, 'acme', now(), 0, 'email.sent', 1, 'dns', now() FROM mailhook.subscriptions, generate_series(1, $1)`, scanRows+5)
	b.Exec(t, `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		SELECT mailhook.uuid7(), 'other', now(), 0, 'email.sent', now(), now() FROM generate_series(1, $1)`, scanRows+5)
	for _, query := range []string{"?recipient=needle", "?recipient=needle&subscription_id=" + subscription} {
		page := b.must(t, 200, b.acme, "GET", "/v1/deliveries"+query, nil)
		if len(ids(page)) != 0 || page["next_cursor"] == nil {
			t.Errorf("%s: the first page is %v", query, page)
		}
		if got := b.walk(t, b.acme, "/v1/deliveries"+query, "10"); !slices.Equal(got, []string{waiting, needle}) {
			t.Errorf("%s: got %v, want %v", query, got, []string{waiting, needle})
		}
	}
	if got := b.walk(t, b.admin, "/v1/deliveries?recipient=needle", "1"); !slices.Equal(got, []string{waiting, needle}) {
		t.Errorf("admin: got %v, want %v", got, []string{waiting, needle})
	}
}

func TestRetryDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	event := b.event(t, "acme", "email.sent", "r", time.Now())
	id := b.delivery(t, event, subscription)
	path := "/v1/deliveries/" + id + "/retry"
	due := func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT bool_and(next_attempt_at <= now()) FROM mailhook.deliveries")
	}
	if due() {
		t.Fatal("due too early")
	}
	if got := b.must(t, 200, b.acme, "POST", path, nil); got["id"] != id || !due() {
		t.Error(got)
	}
	b.end(t, id, "exhausted", "dns", 0)
	got := b.must(t, 201, b.acme, "POST", path, nil)
	second := got["id"].(string)
	if second == id || got["status"] != "pending" || got["event_id"] != event || got["retry_count"] != 0.0 || !due() {
		t.Error(got)
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.dead_letters"); n != 0 {
		t.Error("the dead letter is still there")
	}
	if got := b.must(t, 200, b.acme, "GET", "/v1/deliveries/"+id, nil); got["status"] != "exhausted" {
		t.Error("the end of the first has changed")
	}
	b.mustFail(t, 409, "", "unfinished", b.acme, "POST", path, nil)
	b.end(t, second, "delivered", "ok", 200)
	third := b.must(t, 201, b.acme, "POST", "/v1/deliveries/"+second+"/retry", nil)["id"].(string)
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+subscription+"/deactivate", nil)
	b.mustFail(t, 409, "", "inactive", b.acme, "POST", path, nil)
	b.mustFail(t, 409, "", "inactive", b.acme, "POST", "/v1/deliveries/"+third+"/retry", nil)
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+subscription+"/resume", nil)
	b.end(t, third, "delivered", "ok", 200)
	b.Exec(t, "DELETE FROM mailhook.events")
	b.mustFail(t, 409, "", "event_dropped", b.acme, "POST", path, nil)
	b.must(t, 204, b.acme, "DELETE", "/v1/subscriptions/"+subscription, nil)
	b.mustFail(t, 409, "", "subscription_deleted", b.acme, "POST", path, nil)
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.deliveries"); n != 0 {
		t.Errorf("%d deliveries after refused retries", n)
	}
}

func TestUnfinishedBound(t *testing.T) {
	t.Parallel()
	base := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	for _, at := range []time.Duration{0, time.Microsecond, 999 * time.Microsecond} {
		for _, id := range []uuid.UUID{floorID(base), floorID(base.Add(time.Millisecond)), uuid.Max, {}, uuid.MustParse("019b7cf0-0000-7000-8000-000000000001")} {
			place := deliveryKey{base.Add(at), id}
			bound := place.unfinishedBound()
			for _, near := range []time.Duration{-2, -1, 0, 1, 2} {
				for _, last := range []byte{0, 1, 255} {
					candidate := floorID(base.Add(near * time.Millisecond))
					candidate[15] = last
					key := deliveryKey{timeOf(candidate), candidate}
					if follows := key.compare(place) < 0; follows != (bytes.Compare(candidate[:], bound[:]) < 0) {
						t.Errorf("%v after %v: %v", key, place, follows)
					}
				}
			}
		}
	}
}
