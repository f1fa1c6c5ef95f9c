package httpapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

func TestEventTypes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	list := b.must(t, 200, b.acme, "GET", "/v1/event-types?limit=200", nil)
	names := map[string]bool{}
	for _, row := range list["data"].([]any) {
		entry := row.(object)
		name := entry["name"].(string)
		names[name] = true
		if entry["description"] == "" || len(entry["sample"].(object)) == 0 || len(entry["fields"].([]any)) == 0 {
			t.Error(entry)
		}
		if one := b.must(t, 200, b.evil, "GET", "/v1/event-types/"+name, nil); fmt.Sprint(one) != fmt.Sprint(entry) {
			t.Errorf("listed %v, read %v", entry, one)
		}
	}
	for _, name := range strings.Fields(`email.queued email.sent email.received email.delivered email.delayed email.bounced email.bounced.hard email.bounced.soft
		email.rejected email.blocked email.failed email.suppressed email.opened email.opened.newsletter email.opened.transactional email.clicked
		email.clicked.newsletter email.clicked.transactional email.complained email.unsubscribed email.subscribed email.replied email.inbound
		recipient.deleted form.submitted trigger.fired workflow.step`) {
		if !names[name] {
			t.Errorf("without %s", name)
		}
	}
	count, cursor := 0, ""
	for {
		page := b.must(t, 200, b.acme, "GET", "/v1/event-types?limit=7"+cursor, nil)
		count += len(page["data"].([]any))
		if page["next_cursor"] == nil {
			break
		}
		cursor = "&cursor=" + page["next_cursor"].(string)
	}
	if count != len(names) {
		t.Errorf("%d in pages, %d at once", count, len(names))
	}
}

func TestGetEventType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, `SELECT mailhook.register_event_type('invoice.paid', 'Paid.', sample => '{"n":  1.50}', fields => '[{"name":"n","type":"number"}]', aliases => '{Invoice Paid}')`)
	text := b.send(t, b.acme, "GET", "/v1/event-types/invoice-paid", nil).text
	want := `{"name":"invoice.paid","description":"Paid.","fields":[{"name":"n","type":"number","description":""}],"sample":{"n":1.50},"aliases":[{"word":"Invoice Paid","format":null}]}`
	if strings.TrimSpace(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	delivered, _ := json.Marshal(b.must(t, 200, b.acme, "GET", "/v1/event-types/"+url.PathEscape("Delivered (to inbox)"), nil))
	for _, part := range []string{`"name":"email.delivered"`, `{"format":"mailjet","word":"sent"}`, `{"format":null,"word":"Delivered (to inbox)"}`} {
		if !strings.Contains(string(delivered), part) {
			t.Errorf("%s is not in %s", part, delivered)
		}
	}
	b.Exec(t, "INSERT INTO mailhook.event_type_aliases (word, event_type) VALUES ('gone', 'email.failed'), ('gone', 'email.suppressed')")
	b.mustFail(t, 422, "name", "ambiguous", b.acme, "GET", "/v1/event-types/gone", nil)
	for _, name := range []string{"email", "my.own"} { // valid, and not documented
		b.mustFail(t, 404, "", "not_found", b.acme, "GET", "/v1/event-types/"+name, nil)
	}
	b.mustFail(t, 422, "name", "invalid_event_type", b.acme, "GET", "/v1/event-types/Nope", nil)
}

// parity are the words that customers of other platforms know, and what they get for them. Those of a format mean that only in
// subscriptions of that format.
func parity() map[string]map[string]string {
	return map[string]map[string]string{
		"": {
			// Mumara Campaigns
			"Received (by mail server)": "email.received", "Delivered (to inbox)": "email.delivered", "Bounced (hard or soft)": "email.bounced",
			"Rejected (by receiving server)": "email.rejected", "Delayed (in queue)": "email.delayed", "Newsletter Opened": "email.opened.newsletter",
			"Newsletter Clicked": "email.clicked.newsletter", "Transactional Opened": "email.opened.transactional",
			"Transactional Clicked": "email.clicked.transactional", "Complaints": "email.complained",
			"Received": "email.received", "Delivered": "email.delivered", "Bounced": "email.bounced", "Rejected": "email.rejected", "Delayed": "email.delayed",
			// Mumara's article
			"Email Sent": "email.sent", "Opened": "email.opened", "Clicked": "email.clicked", "Complained (Spam Report)": "email.complained", "Complained": "email.complained",
			"Spam Report": "email.complained", "Unsubscribed": "email.unsubscribed", "Soft Bounced": "email.bounced.soft", "Hard Bounced": "email.bounced.hard",
			// Mumara ONE
			"delivery": "email.delivered", "open": "email.opened", "click": "email.clicked", "bounce": "email.bounced", "complaint": "email.complained",
			"unsubscribe": "email.unsubscribed", "form_submit": "form.submitted", "form submit": "form.submitted", "trigger_action": "trigger.fired",
			"trigger action": "trigger.fired", "workflow_step": "workflow.step", "workflow step": "workflow.step",
			// the general article
			"replies": "email.replied",
			// Mailjet
			"sent": "email.sent", "blocked": "email.blocked", "spam": "email.complained", "unsub": "email.unsubscribed",
			// SendGrid
			"processed": "email.sent", "deferred": "email.delayed", "delivered": "email.delivered", "dropped": "email.suppressed", "spamreport": "email.complained",
			// Mailgun
			"accepted": "email.queued", "rejected": "email.rejected", "permanent_fail": "email.bounced.hard", "temporary_fail": "email.delayed", "opened": "email.opened",
			"clicked": "email.clicked", "unsubscribed": "email.unsubscribed", "complained": "email.complained",
			// Postmark
			"Delivery": "email.delivered", "Bounce": "email.bounced", "SpamComplaint": "email.complained", "Open": "email.opened", "Click": "email.clicked", "Inbound": "email.inbound",
			"SubscriptionChange": "email.subscribed email.unsubscribed",
			// Amazon SES
			"SEND": "email.sent", "REJECT": "email.rejected", "BOUNCE": "email.bounced", "COMPLAINT": "email.complained", "DELIVERY": "email.delivered", "OPEN": "email.opened",
			"CLICK": "email.clicked", "RENDERING_FAILURE": "email.failed", "Rendering Failure": "email.failed", "DELIVERY_DELAY": "email.delayed", "DeliveryDelay": "email.delayed",
			// SparkPost
			"injection": "email.received", "delay": "email.delayed", "out_of_band": "email.bounced", "policy_rejection": "email.rejected", "spam_complaint": "email.complained",
			"generation_failure": "email.failed", "generation_rejection": "email.failed", "initial_open": "email.opened", "list_unsubscribe": "email.unsubscribed",
			"link_unsubscribe": "email.unsubscribed", "relay_injection": "email.inbound",
			// Brevo
			"request": "email.sent", "hardBounce": "email.bounced.hard", "hard_bounce": "email.bounced.hard", "softBounce": "email.bounced.soft", "soft_bounce": "email.bounced.soft",
			"uniqueOpened": "email.opened", "unique_opened": "email.opened", "invalid_email": "email.failed", "invalid": "email.failed", "error": "email.failed", "listAddition": "email.subscribed",
			// Resend
			"email.delivery_delayed": "email.delayed", "email.scheduled": "email.queued", "email.sent": "email.sent", "email.complained": "email.complained",
			// ours
			"email": "email", "email.bounced.hard": "email.bounced.hard", "*": "*", "form": "form", "subscription": "subscription", "my.own": "my.own", "email.mine": "email.mine",
		},
		"mailjet": {
			"sent": "email.delivered", "open": "email.opened", "click": "email.clicked", "bounce": "email.bounced", "spam": "email.complained",
			"blocked": "email.blocked email.failed email.rejected email.suppressed", "unsub": "email.unsubscribed", "email.sent": "email.sent",
		},
		"mumara": {"Rejected (by receiving server)": "email.blocked email.rejected", "rejected": "email.blocked email.rejected", "Delivered (to inbox)": "email.delivered"},
		"sendgrid": {
			"processed": "email.sent", "deferred": "email.delayed", "delivered": "email.delivered", "bounce": "email.blocked email.bounced email.rejected",
			"dropped": "email.failed email.suppressed", "open": "email.opened", "click": "email.clicked", "spamreport": "email.complained",
			"unsubscribe": "email.unsubscribed", "group_unsubscribe": "email.unsubscribed", "group_resubscribe": "email.subscribed",
		},
	}
}

// A customer names events as the platform they come from does; answers name them as we do, and what GET answers can be saved.
func TestWordsOfOtherPlatforms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	types := func(got object) string { return strings.Trim(fmt.Sprint(got["event_types"]), "[]") }
	for format, words := range parity() {
		for word, want := range words {
			// The API takes the formats that it renders; these are about the words.
			b.Exec(t, "UPDATE mailhook.subscriptions SET event_types = '{none.of_these}', format = coalesce(nullif($1, ''), 'standard')", format)
			if got := types(b.must(t, 200, b.acme, "PATCH", path, object{"event_types": []string{word}})); got != want {
				t.Errorf("format %q: %q means %q, want %q", format, word, got, want)
			}
			shown := b.must(t, 200, b.acme, "GET", path, nil)["event_types"]
			if got := types(b.must(t, 200, b.acme, "PATCH", path, object{"event_types": shown})); got != want {
				t.Errorf("format %q: saved as %q, want %q", format, got, want)
			}
		}
	}
	got := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"event_types": []string{"Newsletter Opened", "unsub", "spamreport", "delivery", "Complaints", "my.own"}}))
	if want := "email.opened.newsletter email.unsubscribed email.complained email.delivered my.own"; types(got) != want {
		t.Errorf("created with %q, want %q", types(got), want)
	}
}

func TestWordsInFiltersAndReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	opened, clicked := b.event(t, "acme", "email.opened.newsletter", "r", time.Now()), b.event(t, "acme", "email.clicked", "r", time.Now())
	open, click := b.delivery(t, opened, id), b.delivery(t, clicked, id)
	for word, want := range map[string][]string{"open": {open}, "Opened": {open}, "Newsletter%20Opened": {open}, "click": {click}, "email": {click, open}, "Transactional%20Opened": nil} {
		if got := b.walk(t, b.acme, "/v1/deliveries?event_type="+word, "1"); !slices.Equal(got, want) {
			t.Errorf("deliveries of %s: %v, want %v", word, got, want)
		}
	}
	if got := b.walk(t, b.acme, "/v1/events?event_type=OPEN", "1"); !slices.Equal(got, []string{opened}) {
		t.Errorf("events of OPEN: %v", got)
	}
	for word, matched := range map[string]float64{"open": 1, "click": 1, "unsub": 0, "email": 2} {
		body := object{"since": "2024-01-01T00:00:00Z", "status": "all", "event_types": []string{word}, "dry_run": true}
		b.Exec(t, "UPDATE mailhook.subscriptions SET created_at = '2024-01-01'")
		b.Exec(t, "DELETE FROM mailhook.deliveries") // pairs that are unfinished are skipped
		if got := b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", body)["matched"]; got != matched {
			t.Errorf("a replay of %s: %v, want %v", word, got, matched)
		}
	}
	for _, path := range []string{"/v1/deliveries", "/v1/events"} {
		b.mustFail(t, 422, "event_type", "invalid_event_type", b.acme, "GET", path+"?event_type=No%20such", nil)
	}
}

// What means nothing is refused with what is near it.
func TestUnknownWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for word, near := range map[string]string{
		"Email.Delivered": "did you mean email.delivered?", "Clickd": "did you mean click, clicked?", "Hard Bouncd": "did you mean Hard Bounced, hardBounce, hard_bounce?",
		"Newsletter Open": "did you mean Newsletter Opened?", "Spam-Reports": "did you mean Spam Report, spamreport?", "Invoice.Paid": "did you mean invoice.paid?",
		"": "must be dotted", "email.*": "did you mean email?", "!": "must be dotted", "a\x00b": "must be dotted", "Öffnung": "must be dotted",
		strings.Repeat("Open ", 30): "must be dotted",
	} {
		r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"event_types": []string{"open", word}}))
		detail, _ := r.body["detail"].(string)
		if r.status != 422 || !strings.HasPrefix(detail, "event_types[1]: ") || !strings.Contains(detail, near) || len(r.body["errors"].([]any)) != 1 {
			t.Errorf("%q: %d %s", word, r.status, r.text)
		}
	}
	// Words that mean several types may be more than a subscription takes.
	b.Exec(t, `INSERT INTO mailhook.event_types (name, description, sample) SELECT 'a.n' || n, 'x', '{}' FROM generate_series(1, 51) AS n;
		INSERT INTO mailhook.event_type_aliases (word, event_type) SELECT 'lots', 'a.n' || n FROM generate_series(1, 51) AS n`)
	b.mustFail(t, 422, "event_types", "too_many", b.acme, "POST", "/v1/subscriptions", subscription(object{"event_types": []string{"lots"}}))
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscriptions"); n != 0 {
		t.Errorf("%d were stored", n)
	}
}

// A word that a host adds counts at once, for its own types and for ours; what a subscription has stays what it is.
func TestHostsAddWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, object{"event_types": []string{"zugestellt", "invoice"}})
	b.Exec(t, `INSERT INTO mailhook.event_type_aliases (word, event_type) VALUES ('Zugestellt', 'email.delivered')`)
	b.Exec(t, `SELECT mailhook.register_event_type('invoice.paid', 'Paid.', aliases => '{invoice}')`)
	got := b.must(t, 200, b.acme, "PATCH", path, object{"event_types": []string{"zugestellt", "invoice", "Zugestellt", "Invoice"}})
	if want := "[zugestellt invoice email.delivered invoice.paid]"; fmt.Sprint(got["event_types"]) != want {
		t.Errorf("got %v, want %s", got["event_types"], want)
	}
}
