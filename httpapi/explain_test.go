package httpapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// explained is the answer to why this event did or did not reach this subscription.
func (b *bundle) explained(t *testing.T, event, subscription string) object {
	t.Helper()
	return b.must(t, 200, b.acme, "GET", "/v1/events/"+event+"/explain?subscription_id="+subscription, nil)
}

// says fails the test unless the answer has all of these texts in its summary or hints.
func says(t *testing.T, explained object, matched bool, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if told := fmt.Sprint(explained["summary"], explained["hints"]); !strings.Contains(told, text) {
			t.Errorf("%q is not in %s", text, told)
		}
	}
	if explained["matched"] != matched {
		t.Errorf("matched is %v: %v", explained["matched"], explained)
	}
}

// The four of troubleshooting that platforms document, one by one: first, a webhook that does not fire.
func TestTroubleshootNotFiring(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"filters": object{"campaign_id": []any{7}}})
	event := b.event(t, "acme", "email.sent", "r@example.com", time.Now().Add(time.Second))
	says(t, b.explained(t, event, id), false, "Not delivered: the filter campaign_id asks for [\"7\"], and the event has none") // filtered out
	b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"filters": nil, "event_types": []string{"form"}})
	says(t, b.explained(t, event, id), false, "the type email.sent is not selected (event_types is [\"form\"])") // not matched
	b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"event_types": []string{"email"}})
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/deactivate", nil)
	says(t, b.explained(t, event, id), false, "Not delivered: the subscription is inactive: resume it") // inactive
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/resume", nil)
	says(t, b.explained(t, event, id), true, "matches the event as it is today, and there is no delivery", "replay")
	before := b.event(t, "acme", "email.sent", "r", time.Now().Add(-time.Hour))
	says(t, b.explained(t, before, id), false, "after the event was written")
	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = 'evt_1' WHERE mailhook.event_id(inserted_at, id) = $1", event)
	says(t, b.explained(t, event, id), false, "repeats the dedupe key of evt_1")
	b.must(t, 204, b.acme, "DELETE", "/v1/subscriptions/"+id, nil)
	says(t, b.explained(t, before, id), false, "the subscription was deleted at ")
}

// The endpoint gets nothing: URL, firewall, certificate.
func TestTroubleshootTheEndpointGetsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	for outcome, hint := range map[string]string{
		"dns": "check the host name in the URL", "refused": "check host and port of the URL", "connect_timeout": "firewall", "tls": "check the certificate", "http_4xx": "check the path of the URL",
		"http_3xx": "redirects are not followed", "blocked_address": "use a public address",
	} {
		event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
		delivery := b.delivery(t, event, id)
		b.attempt(t, delivery)
		b.Exec(t, "UPDATE mailhook.attempts SET outcome = $1 WHERE started_at = (SELECT max(started_at) FROM mailhook.attempts)", outcome)
		says(t, b.explained(t, event, id), true, "Waiting for the next attempt, due at ", "attempt 1 ended as "+outcome, hint)
		b.end(t, delivery, "exhausted", outcome, 0)
		says(t, b.explained(t, event, id), true, "Given up at ", "attempt 2 ended as "+outcome, "can be replayed", hint)
	}
	// Held: by its user, by mailhook, by the circuit, by a pause that the endpoint asked for.
	event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	b.delivery(t, event, id)
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/pause", nil)
	says(t, b.explained(t, event, id), true, "Held, not dropped: the subscription is paused (user) since ", "resume it", "no attempt was made")
	// Since when is not moved by other changes.
	b.Exec(t, "UPDATE mailhook.subscriptions SET status_changed_at = '2026-02-03 04:05:06Z'")
	b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"name": "other"})
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/pause", nil)
	says(t, b.explained(t, event, id), true, "is paused (user) since 2026-02-03 04:05:06 UTC; resume it")
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'suspended', status_reason = 'gone'")
	if told := b.explained(t, event, id); !strings.Contains(fmt.Sprint(told["summary"]), "the subscription is suspended (gone) since ") || strings.Contains(fmt.Sprint(told["summary"]), "2026-02-03") {
		t.Error("a new status has a time of its own:", told["summary"])
	}
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/resume", nil)
	b.Exec(t, `INSERT INTO mailhook.subscription_health (subscription_id, opened_at, open_until, last_outcome)
		SELECT id, '2026-01-02 03:04:05Z', '2999-01-02 03:04:05Z', 'dns' FROM mailhook.subscriptions ON CONFLICT (subscription_id) DO UPDATE
		SET opened_at = excluded.opened_at, open_until = excluded.open_until, last_outcome = excluded.last_outcome`)
	says(t, b.explained(t, event, id), true, "the endpoint fails (dns), so its circuit is open since 2026-01-02 03:04:05 UTC; the next probe is due at 2999-01-02 03:04:05 UTC")
	b.Exec(t, "UPDATE mailhook.subscription_health SET opened_at = NULL, open_until = NULL, wait_until = '2999-01-01Z'")
	says(t, b.explained(t, event, id), true, "has asked for a pause until 2999-01-01 00:00:00 UTC")
	b.Exec(t, "UPDATE mailhook.subscription_health SET last_failed_at = '2026-01-02 03:04:05Z'")
	says(t, b.explained(t, event, id), true, "has asked for a pause at 2026-01-02 03:04:05 UTC, until 2999-01-01 00:00:00 UTC")
	b.Exec(t, "DELETE FROM mailhook.subscription_health")
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"status": "suspended"})
	b.Exec(t, "UPDATE mailhook.accounts SET status_changed_at = '2026-03-04 05:06:07Z'")
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": 7, "status": "suspended"})
	says(t, b.explained(t, event, id), true, "the account is suspended since 2026-03-04 05:06:07 UTC")
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"status": "active"})
	if dbtest.QueryOne[bool](t, b.DB, "SELECT status_changed_at = '2026-03-04 05:06:07Z' FROM mailhook.accounts") {
		t.Error("a new status of an account has no time of its own")
	}
}

// What is due and does not go out: nobody is there to send it, or others of its subscription go first.
func TestExplainSaysWhatKeepsWhatIsDue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"max_in_flight": 1, "rate_limit_per_second": 0.5})
	undispatched := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.emit('email.sent', account_id => 'acme')")
	event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	other := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	b.delivery(t, event, id)
	b.delivery(t, other, id)
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = '2999-01-01Z'")
	says(t, b.explained(t, event, id), true, "due at 2999-01-01 00:00:00 UTC; no attempt was made")
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = '2026-01-02 03:04:05Z'")
	late := "Waiting for the next attempt, due at 2026-01-02 03:04:05 UTC, and late: "
	says(t, b.explained(t, event, id), true, late+"no worker has been seen for 15 seconds; no attempt was made")
	says(t, b.explained(t, undispatched, id), false, "The event is still in the outbox: no worker has been seen for 15 seconds.")
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = false")
	says(t, b.explained(t, event, id), true, late+"delivery is switched off for the whole installation (mailhook delivery on); ")
	says(t, b.explained(t, undispatched, id), false, "The event is still in the outbox: delivery is switched off ")
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = true, release_rate = 7")
	b.Exec(t, "INSERT INTO mailhook.workers (id, seen_at, hostname, pid, version) VALUES (mailhook.uuid7(), '2999-01-01Z', 'h', 1, 'v')")
	says(t, b.explained(t, event, id), true, "due at 2026-01-02 03:04:05 UTC; no attempt was made")
	b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = w.id, lease_id = w.id FROM mailhook.workers AS w WHERE mailhook.event_id(event_inserted_at, event_id) = $1", other)
	says(t, b.explained(t, event, id), true, late+"workers have 1 others of the subscription (max_in_flight is 1, rate_limit_per_second 0.5); ")
	b.Exec(t, `INSERT INTO mailhook.subscription_health (subscription_id, release_before, released_at) SELECT id, now(), now() FROM mailhook.subscriptions`)
	says(t, b.explained(t, event, id), true, late+"what had been held goes out again, oldest first, at most 7 a second; ")
}

// An event in the outbox: what dispatch will make of it.
func TestExplainSaysWhatDispatchWillMakeOfAnEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"email.bounced.hard"}})
	for data, told := range map[string]string{
		`{"bounce_type": "hard"}`:                      "The event would be delivered, as email.bounced.hard.",
		`{"bounce_type": "soft"}`:                      "The event would not be delivered: the type email.bounced.soft is not selected",
		`{"bounce_type": "hard", "x": "\ud83d"}`:       "The event would not be delivered: the type email.bounced is not selected",
		`{"bounce_type": "hard", "x": "\ud83d\ude00"}`: "The event would be delivered, as email.bounced.hard.",
		`[1]`: "The event would be quarantined: ",
	} {
		event := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.event_id(inserted_at, id) FROM mailhook.outbox WHERE id = $1",
			dbtest.QueryOne[int64](t, b.DB, "INSERT INTO mailhook.outbox (account_id, event_type, data) VALUES ('acme', 'email.bounced', $1) RETURNING id", data))
		got := b.explained(t, event, id)
		says(t, got, false, "The event is still in the outbox: no worker has been seen for 15 seconds. "+told)
		first := got["conditions"].([]any)[0].(object)
		if first["condition"] != "dispatched" || first["passed"] != false {
			t.Error(got["conditions"])
		}
	}
	long := dbtest.QueryOne[string](t, b.DB, "INSERT INTO mailhook.outbox (account_id, event_type, recipient) VALUES ('acme', 'email.sent', repeat('x', 5000)) RETURNING mailhook.event_id(inserted_at, id)")
	says(t, b.explained(t, long, id), false, "The event would be quarantined: recipient is longer than 1,000 bytes.")
	event := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.emit('email.bounced', account_id => 'acme', data => '{\"bounce_type\": \"hard\"}')")
	b.must(t, 204, b.acme, "DELETE", "/v1/subscriptions/"+id, nil)
	says(t, b.explained(t, event, id), false, "The event would not be delivered: the subscription was deleted at ")
}

// What is not found among too many is not said to be missing.
func TestExplainSaysWhatItHasNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	says(t, b.explained(t, event, id), true, "there is no delivery", "A replay sends it.")
	b.Exec(t, `INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, delivery_created_at)
		SELECT now(), mailhook.uuid7(now() + interval '1 minute'), mailhook.uuid7(), s.id, 'acme', now(), 0, 'email.sent', 1, 'dns', now() FROM mailhook.subscriptions AS s, generate_series(1, $1)`, scanRows)
	told := b.explained(t, event, id)
	says(t, told, true, "matches the event as it is today. Not all that was sent to it since was read", "GET /v1/deliveries")
	if strings.Contains(fmt.Sprint(told["summary"]), "replay") {
		t.Error(told["summary"])
	}
	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = 'evt_x'")
	says(t, b.explained(t, event, id), false, "Not delivered: it repeats the dedupe key of evt_x", "Not all that was sent to it since was read")
}

// Missing events: a type that is not selected, a filter that is too tight.
func TestTroubleshootMissingEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"email.bounced.soft", "email.sent"}, "filters": object{
		"recipient_domain": []any{"example.com"}, "tag": []any{"vip"}, "data": object{"meta_data.country": object{"prefix": []any{"D"}}, "n": []any{1.5}},
	}})
	for _, c := range []struct {
		eventType, recipient, data string
		matched                    bool
		says                       string
	}{
		{"email.bounced", "r@example.com", `{"bounce_type": "hard"}`, false, "the type email.bounced.hard is not selected"},
		{"email.sent", "r@other.example", `{}`, false, `the filter data.meta_data.country asks for {"prefix":["D"]}, and the event has none`},
		{"email.sent", "r@other.example", `{"meta_data": {"country": ["AT", "CH"]}}`, false, `asks for {"prefix":["D"]}, and the event has ["AT","CH"]`},
		{"email.sent", "r@other.example", `{"meta_data": {"country": "DE"}, "n": 1.50}`, false, `the filter recipient_domain asks for ["example.com"], and the event has ["other.example"]`},
		{"email.sent", "r@Example.com", `{"meta_data": {"country": "DE"}, "n": "1.5", "tags": ["new"]}`, false, `the filter tag asks for ["vip"], and the event has ["new"]`},
		{"email.sent", "r@Example.com", `{"meta_data": {"country": "DE"}, "n": "1.5", "tags": ["new", "vip"]}`, true, "The event would be delivered, as email.sent."},
		{"email.sent", "r@Example.com", `[1]`, false, "The event would be quarantined: data is not an object."},
		{"email.sent", "r@Example.com", `{"x": "\u0000"}`, false, "The event would be quarantined: data cannot be read back."},
		{"Sent", "", `{}`, false, "would be quarantined: event_type is not valid."},
		{"email.sent", strings.Repeat("x", 1001), `{}`, false, "would be quarantined: recipient is longer than 1,000 bytes."},
	} {
		// Before anything happened, and after.
		body := fmt.Sprintf(`{"event_type": %q, "recipient": %q, "data": %s}`, c.eventType, c.recipient, c.data)
		says(t, b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/explain", body), c.matched, c.says)
	}
	b.Exec(t, `INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, reason, error_code) VALUES ('2026-01-01Z', 1, 'acme', 'email.sent', 'data is not an object', 'MH002')`)
	quarantined := db.EventID{InsertedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), ID: 1, Installation: b.api.server.installation}.String()
	says(t, b.explained(t, quarantined, id), false, "The event is in quarantine: data is not an object.")
	// Held ahead: the conditions pass, and it would wait.
	passing := `{"event_type": "email.sent", "recipient": "r@example.com", "campaign_id": 7, "data": {"meta_data": {"country": "DE"}, "n": 1.5, "tag": "vip"}}`
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/pause", nil)
	says(t, b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/explain", passing), true, "The event would be held: the subscription is paused (user)")
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/resume", nil)
	b.Exec(t, `INSERT INTO mailhook.subscription_health (subscription_id, wait_until) SELECT id, '2999-01-01Z' FROM mailhook.subscriptions
		ON CONFLICT (subscription_id) DO UPDATE SET wait_until = excluded.wait_until`)
	says(t, b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/explain", passing), true, "The event would be held: the endpoint has asked for a pause until 2999-01-01 00:00:00 UTC.")
	b.Exec(t, "UPDATE mailhook.subscription_health SET wait_until = '2026-01-01Z'")
	says(t, b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/explain", passing), true, "The event would be delivered, as email.sent.")
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/deactivate", nil)
	says(t, b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/explain", passing), false, "The event would not be delivered: the subscription is inactive")
	b.mustFail(t, 422, "event_type", "required", b.acme, "POST", "/v1/subscriptions/"+id+"/explain", object{})
	b.mustFail(t, 422, "dedupe", "unknown_field", b.acme, "POST", "/v1/subscriptions/"+id+"/explain", object{"event_type": "email.sent", "dedupe": 1})
}

// Duplicates: several webhooks on one event, and retries.
func TestTroubleshootDuplicates(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	same := b.create(t, b.acme, object{"name": "the other", "event_types": []string{"email.sent"}})
	b.create(t, b.acme, object{"event_types": []string{"form"}})
	b.create(t, b.acme, object{"channel": object{"url": "https://example.com/elsewhere"}})
	b.create(t, b.evil, nil)
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+b.create(t, b.acme, nil)+"/deactivate", nil)
	event := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	delivery := b.delivery(t, event, id)
	b.attempt(t, delivery)
	b.end(t, delivery, "delivered", "ok", 200)
	got := b.explained(t, event, id)
	says(t, got, true, "Delivered at ", "attempt 2 was accepted", "every attempt has the same webhook-id", "1 more of the account's subscriptions send this event to the same URL")
	// Two chats of one service are not one: all that is known of their URL is the host.
	slack := b.create(t, b.acme, object{"channel": object{"type": "slack", "url": slackURL}})
	b.create(t, b.acme, object{"channel": object{"type": "slack", "url": slackURL + "2"}})
	late := b.event(t, "acme", "email.sent", "r", time.Now().Add(time.Second))
	b.delivery(t, late, slack)
	if same := b.explained(t, late, slack)["same_url"]; same != nil {
		t.Errorf("other URLs on one host count as the same: %v", same)
	}
	if others := got["same_url"].([]any); len(others) != 1 || others[0].(object)["subscription_id"] != same || others[0].(object)["name"] != "the other" {
		t.Error(others)
	}
}
