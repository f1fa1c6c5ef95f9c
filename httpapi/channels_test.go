package httpapi

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

const (
	slackURL = "https://hooks.slack.com/services/T0001/B0001/abcdefghijklmnopqrstuvwx"
	teamsURL = "https://prod-01.westeurope.logic.azure.com:443/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke?api-version=2016-06-01&sig=YYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYY"
)

func pushover(changes object) object {
	channel := object{"type": "pushover", "user_key": "uUuUuUuUuUuUuUuUuUuUuUuUuUuUu1", "api_token": "aAaAaAaAaAaAaAaAaAaAaAaAaAaAa2"}
	maps.Copy(channel, changes)
	return channel
}

func TestChannels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct {
		channel             object
		want, format, kept  string
		stored, storedPlain string
	}{
		{
			pushover(nil), "map[auth_type:<nil> header_names:[] priority:0 sound:pushover type:pushover]", "pushover",
			`{"api_token":"aAaAaAaAaAaAaAaAaAaAaAaAaAaAa2","user_key":"uUuUuUuUuUuUuUuUuUuUuUuUuUuUu1"}`, "https://api.pushover.net/1/messages.json", `{"sound": "pushover", "priority": "0"}`,
		},
		{
			pushover(object{"sound": "Piano Bar", "priority": 2, "device": "phone,tablet-1"}), "map[auth_type:<nil> device:phone,tablet-1 header_names:[] priority:2 sound:pianobar type:pushover]", "pushover",
			`{"api_token":"aAaAaAaAaAaAaAaAaAaAaAaAaAaAa2","user_key":"uUuUuUuUuUuUuUuUuUuUuUuUuUuUu1"}`, "https://api.pushover.net/1/messages.json", `{"sound": "pianobar", "device": "phone,tablet-1", "priority": "2"}`,
		},
		{
			object{"type": "slack", "url": slackURL}, "map[auth_type:<nil> header_names:[] type:slack url:https://hooks.slack.com/…]", "slack",
			`{"url":"` + slackURL + `"}`, "https://hooks.slack.com/…", `{}`,
		},
		{
			object{"type": "teams", "url": teamsURL}, "map[auth_type:<nil> header_names:[] type:teams url:https://prod-01.westeurope.logic.azure.com:443/…]", "teams",
			`{"url":"` + strings.ReplaceAll(teamsURL, "&", `\u0026`) + `"}`, "https://prod-01.westeurope.logic.azure.com:443/…", `{}`,
		},
	} {
		created := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": c.channel}))
		path := "/v1/subscriptions/" + created["id"].(string)
		before := b.must(t, 200, b.acme, "GET", path, nil)
		if fmt.Sprint(before["channel"]) != c.want || before["format"] != c.format || fmt.Sprint(created["channel"]) != c.want {
			t.Errorf("got %v, format %v, want %s, %s", before["channel"], before["format"], c.want, c.format)
		}
		if got := b.sealedAt(t, b.keyring, created["id"].(string), "channel"); got != c.kept {
			t.Errorf("sealed %s, want %s", got, c.kept)
		}
		if got := dbtest.QueryOne[string](t, b.DB, "SELECT url || ' ' || channel_settings FROM mailhook.subscriptions ORDER BY id DESC LIMIT 1"); got != c.stored+" "+c.storedPlain {
			t.Errorf("stored %s, want %s %s", got, c.stored, c.storedPlain)
		}
		// What GET answers can be given back, and neither a mask nor an empty key takes the place of a secret.
		body := b.must(t, 200, b.acme, "GET", path, nil)
		for _, name := range []string{"id", "account_id", "status", "status_reason", "secrets", "created_at", "updated_at"} {
			delete(body, name)
		}
		delete(body["channel"].(object), "header_names")
		delete(body["channel"].(object), "auth_type")
		body["name"] = "Mine"
		after := b.must(t, 200, b.acme, "PATCH", path, body)
		if fmt.Sprint(after["channel"]) != c.want || after["name"] != "Mine" || b.sealedAt(t, b.keyring, created["id"].(string), "channel") != c.kept {
			t.Errorf("given back: %v", after)
		}
		text := dbtest.QueryOne[string](t, b.DB, "SELECT coalesce(string_agg(concat(l.before, l.after), ' '), '') FROM mailhook.audit_log AS l")
		for _, secret := range []string{"abcdefgh", "YYYY", "uUuU", "aAaA"} {
			if strings.Contains(text, secret) {
				t.Errorf("the audit log has a secret: %s", text)
			}
		}
	}
}

func TestChannelsChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"channel": object{"url": "https://example.com/1", "headers": object{"X-A": "1"}, "auth": object{"type": "bearer", "token": "x"}}})
	path := "/v1/subscriptions/" + id
	patch := func(channel any) object {
		t.Helper()
		return b.must(t, 200, b.acme, "PATCH", path, object{"channel": channel})
	}
	kinds := func() string {
		return dbtest.QueryOne[string](t, b.DB, "SELECT coalesce(string_agg(kind, ' ' ORDER BY kind), '') FROM mailhook.subscription_credentials")
	}
	action := func() string {
		return dbtest.QueryOne[string](t, b.DB, "SELECT action FROM mailhook.audit_log ORDER BY id DESC LIMIT 1")
	}
	// Another type is another channel.
	got := patch(object{"type": "slack", "url": slackURL})
	if fmt.Sprint(got["channel"]) != "map[auth_type:<nil> header_names:[] type:slack url:https://hooks.slack.com/…]" || got["format"] != "slack" || kinds() != "channel" {
		t.Error(got, kinds())
	}
	patch(object{"url": "https://hooks.slack.com/services/other"})
	if b.sealedAt(t, b.keyring, id, "channel") != `{"url":"https://hooks.slack.com/services/other"}` || action() != "subscription.update_credentials" {
		t.Error("the URL is not replaced:", action())
	}
	patch(pushover(object{"sound": "siren", "device": "phone"}))
	if got = patch(object{"priority": -2}); fmt.Sprint(got["channel"]) != "map[auth_type:<nil> device:phone header_names:[] priority:-2 sound:siren type:pushover]" || action() != "subscription.update" {
		t.Error(got, action())
	}
	if got = patch(object{"sound": nil, "priority": nil, "device": nil}); fmt.Sprint(got["channel"]) != "map[auth_type:<nil> header_names:[] priority:0 sound:pushover type:pushover]" {
		t.Error(got)
	}
	patch(object{"user_key": strings.Repeat("b", 30), "api_token": strings.Repeat("c", 30)})
	if b.sealedAt(t, b.keyring, id, "channel") != `{"api_token":"`+strings.Repeat("c", 30)+`","user_key":"`+strings.Repeat("b", 30)+`"}` || action() != "subscription.update_credentials" {
		t.Error("the keys are not replaced:", action())
	}
	for _, c := range []struct {
		channel     any
		field, code string
	}{
		{object{"user_key": strings.Repeat("b", 30)}, "channel.api_token", "required"},
		{object{"api_token": nil}, "channel.api_token", "required"},
		{object{"type": "teams"}, "channel.url", "required"},
		{object{"type": "web"}, "channel.url", "required"},
		{nil, "channel.url", "required"},
		{object{"url": "https://example.com/"}, "channel.url", "not_allowed"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "PATCH", path, object{"channel": c.channel})
	}
	b.mustFail(t, 422, "format", "not_allowed", b.acme, "PATCH", path, object{"format": "standard"})
	b.must(t, 200, b.acme, "PATCH", path, object{"format": "pushover"})
	got = patch(object{"type": "web", "url": "https://example.com/2"})
	if fmt.Sprint(got["channel"]) != "map[auth_type:<nil> header_names:[] type:web url:https://example.com/2]" || got["format"] != "standard" || kinds() != "" {
		t.Error(got, kinds())
	}
}

func TestImpossibleChannels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct {
		channel     object
		field, code string
	}{
		{object{"type": "pushover"}, "channel.user_key", "required"},
		{pushover(object{"user_key": nil}), "channel.user_key", "required"},
		{pushover(object{"api_token": "short"}), "channel.api_token", "invalid_credentials"},
		{pushover(object{"user_key": strings.Repeat("ü", 15)}), "channel.user_key", "invalid_credentials"},
		{pushover(object{"sound": "silent"}), "channel.sound", "not_allowed"},
		{pushover(object{"sound": ""}), "channel.sound", "not_allowed"},
		{pushover(object{"priority": 3}), "channel.priority", "out_of_range"},
		{pushover(object{"priority": "high"}), "channel.priority", "wrong_type"},
		{pushover(object{"device": "my phone"}), "channel.device", "invalid"},
		{pushover(object{"url": "https://api.pushover.net/1/messages.json"}), "channel.url", "not_allowed"},
		{pushover(object{"headers": object{"X-A": "1"}}), "channel.headers", "not_allowed"},
		{object{"type": "slack"}, "channel.url", "required"},
		{object{"type": "slack", "url": "https://hooks.slack.com/…"}, "channel.url", "invalid_url"},
		{object{"type": "slack", "url": "http://hooks.slack.com/services/x"}, "channel.url", "invalid_url"},
		{object{"type": "teams", "url": "https://127.0.0.1/"}, "channel.url", "invalid_url"},
		{object{"type": "teams", "url": teamsURL, "auth": object{"type": "bearer", "token": "x"}}, "channel.auth", "not_allowed"},
		{object{"type": "web", "url": "https://example.com", "sound": "siren"}, "channel.sound", "not_allowed"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": c.channel}))
	}
	r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": pushover(object{"sound": "silent"})}))
	for _, name := range []string{"pushover, bike", "pianobar", "none"} {
		if !strings.Contains(r.text, name) {
			t.Errorf("the allowed sounds are not named: %s", r.text)
		}
	}
	b.mustFail(t, 422, "format", "not_allowed", b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": pushover(nil), "format": "standard"}))
	b.mustFail(t, 422, "format", "not_allowed", b.acme, "POST", "/v1/subscriptions", subscription(object{"format": "slack"}))
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_credentials"); n != 0 {
		t.Errorf("%d credentials are stored", n)
	}
}
