package httpapi

import (
	"strings"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// Every preset is taken by its name, stored as its delays, and answered by its name; what is no preset is refused with the names.
func TestRetryPresets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	document := b.send(t, "", "GET", "/openapi.json", nil).text
	for _, preset := range db.RetryPresets() {
		id := b.create(t, b.acme, object{"retry_schedule": preset.Name})
		if got := b.must(t, 200, b.acme, "GET", "/v1/subscriptions/"+id, nil)["retry_schedule"]; got != preset.Name {
			t.Errorf("%s is answered as %v", preset.Name, got)
		}
		same := dbtest.QueryOne[bool](t, b.DB, `SELECT retry_schedule = $2 AND retry_jitter = $3 AND suspend_when_exhausted = $4
			FROM mailhook.subscriptions WHERE retry_preset = $1`, preset.Name, preset.Schedule, preset.Jitter, preset.SuspendWhenExhausted)
		if !same {
			t.Errorf("%s is not stored as it is", preset.Name)
		}
	}
	r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"retry_schedule": "never"}))
	for _, text := range []string{document, r.text} {
		if !strings.Contains(text, "standard, svix, resend, mailgun, postmark, sparkpost, sendgrid, mumara-one, mailjet") {
			t.Errorf("the presets are not named in %.300s", text)
		}
	}
	if r.status != 422 {
		t.Error(r.text)
	}
}

// What is success is a setting of its own: no preset and no change of another setting moves it.
func TestSuccessRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, object{"success": "200", "retry_schedule": "mailjet"})
	for _, step := range []struct {
		patch object
		want  string
	}{
		{object{"name": "x"}, "200"}, {object{"retry_schedule": "standard"}, "200"}, {object{"success": nil}, "2xx"},
		{object{"retry_schedule": "mailjet"}, "2xx"}, {object{"success": "200"}, "200"}, {object{"success": "2xx"}, "2xx"},
	} {
		if got := b.must(t, 200, b.acme, "PATCH", path, step.patch)["success"]; got != step.want {
			t.Errorf("after %v: %v, want %s", step.patch, got, step.want)
		}
	}
	for _, wrong := range []any{"201", "", 200} {
		r := b.send(t, b.acme, "PATCH", path, object{"success": wrong})
		if r.status != 422 || !strings.Contains(r.text, `"success"`) {
			t.Errorf("%v: %d %s", wrong, r.status, r.text)
		}
	}
	// Teams answers 202: with 200 alone nothing would ever be delivered there.
	b.must(t, 200, b.acme, "PATCH", path, object{"success": "200"})
	teams := object{"type": "teams", "url": teamsURL}
	b.mustFail(t, 422, "success", "not_allowed", b.acme, "PATCH", path, object{"channel": teams})
	b.mustFail(t, 422, "success", "not_allowed", b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": teams, "success": "200"}))
	b.must(t, 200, b.acme, "PATCH", path, object{"channel": teams, "success": "2xx"})
	b.mustFail(t, 422, "success", "not_allowed", b.acme, "PATCH", path, object{"success": "200"})
	if b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(nil))["success"] != "2xx" {
		t.Error("the default is not 2xx")
	}
}
