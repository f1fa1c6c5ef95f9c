package httpapi

import (
	"fmt"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

// What a preview says is what dispatch did: TestMatchingIsWhatTheContractSays holds both against one function.
func TestPreview(t *testing.T) {
	t.Parallel()
	b := setup(t)
	second := time.Now().Add(-time.Hour).Truncate(time.Second)
	var events []string
	for i := range 8 {
		events = append(events, b.event(t, "acme", []string{"email.sent", "email.bounced.hard"}[i%2], fmt.Sprintf("r@%s.example", []string{"a", "B"}[i/4]), second.Add(time.Duration(i)*400*time.Millisecond)))
	}
	b.event(t, "acme", "email.sent", "r@b.example", second.Add(-24*time.Hour))
	b.event(t, "evil", "email.sent", "r@b.example", second)
	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = 'x' WHERE mailhook.event_id(inserted_at, id) = $1", events[7])
	path := "/v1/subscriptions/preview"
	for _, c := range []struct {
		body                   object
		matched, peak, samples float64
		first, last            int
	}{
		{object{"event_types": []string{"email"}}, 7, 3, 5, 0, 6},
		{object{"event_types": []string{"email.bounced"}}, 3, 1, 3, 1, 5},
		{object{"event_types": []string{"*"}, "filters": object{"recipient_domain": []string{"b.EXAMPLE"}}}, 3, 2, 3, 4, 6},
		{object{"event_types": []string{"*"}, "filters": object{"sending_domain": []string{"MAIL.example.com"}, "dedicated_ip": []string{"2001:db8::1"}, "data": object{"n": 1.5, "reason": object{"prefix": "x"}}}}, 7, 3, 5, 0, 6},
	} {
		got := b.must(t, 200, b.acme, "POST", path, c.body)
		samples := ids(object{"data": got["samples"]})
		if got["matched"] != c.matched || got["scanned"] != 8.0 || got["complete"] != true || got["peak_per_second"] != c.peak || float64(len(samples)) != c.samples || samples[0] != events[c.last] {
			t.Errorf("%v: %v", c.body, got)
		}
		for name, i := range map[string]int{"first_at": c.first, "last_at": c.last} {
			if event := b.must(t, 200, b.acme, "GET", "/v1/events/"+events[i], nil); got[name] != event["inserted_at"] {
				t.Errorf("%v: %s is %v, want %v", c.body, name, got[name], event["inserted_at"])
			}
		}
	}
	none := b.must(t, 200, b.acme, "POST", path, object{"event_types": []string{"form"}})
	if none["matched"] != 0.0 || none["first_at"] != nil || none["last_at"] != nil || len(none["samples"].([]any)) != 0 {
		t.Error(none)
	}
	if got := b.must(t, 200, b.admin, "POST", path, object{"event_types": []string{"email"}, "account_id": "evil"}); got["scanned"] != 1.0 {
		t.Error(got)
	}
	b.mustFail(t, 422, "account_id", "required", b.admin, "POST", path, object{"event_types": []string{"email"}})
	b.mustFail(t, 404, "", "not_found", b.acme, "POST", path, object{"event_types": []string{"email"}, "account_id": "evil"})
	b.mustFail(t, 422, "event_types", "required", b.acme, "POST", path, object{})
	b.mustFail(t, 422, "filters.foo", "unknown_field", b.acme, "POST", path, object{"event_types": []string{"email"}, "filters": object{"foo": []string{}}})
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT (SELECT count(*) FROM mailhook.subscriptions) + (SELECT count(*) FROM mailhook.audit_log)"); n != 0 {
		t.Error("something is stored")
	}
}

// A preview of a busy account stops, says so, and tells what it has found until then.
func TestPreviewIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, data)
		SELECT now() - n * interval '1 millisecond', n, 'acme', 'email.sent', now(), now(), '{"plan": "pro"}' FROM generate_series(1, 101000) AS n`)
	got := b.must(t, 200, b.acme, "POST", "/v1/subscriptions/preview", object{"event_types": []string{"email"}, "filters": object{"data": object{"plan": "pro"}}})
	if scanned := got["scanned"].(float64); got["complete"] != false || scanned > previewScan || scanned < 1 || got["matched"] != got["scanned"] {
		t.Error(got)
	}
	t.Logf("%v of 101,000 events were looked at", got["scanned"])
}
