package httpapi

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

func TestCreateSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", object{
		"name":        "Mine",
		"channel":     object{"type": "web", "url": "https://example.com/hook?x=1", "headers": object{"X-Token": "top-secret-token", "Authorization": "Basic abc"}},
		"event_types": []string{"email.bounced", "email.bounced", "*", "my.own"},
		"filters": object{
			"sending_domain": []string{"Mail.EXAMPLE.com"}, "bridge": []string{"b"},
			"dedicated_ip": []string{"192.0.2.1", "2001:0DB8:0:0::0001", "::ffff:192.0.2.1", "192.0.2.1/32", "::102:304"},
		},
		"retry_schedule": []string{"1500ms", "90s", "120m", "1d"}, "timeout": "60s", "max_in_flight": 3, "rate_limit_per_second": 0.5,
	})
	secret := got["secret"].(string)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) != 32 {
		t.Errorf("secret %q", secret)
	}
	want := map[string]string{
		"name": "Mine", "account_id": "acme", "status": "active", "status_reason": "<nil>", "format": "standard",
		"event_types": "[email.bounced * my.own]", "timeout": "60s", "max_in_flight": "3", "rate_limit_per_second": "0.5",
		"retry_schedule": "[1500ms 90s 2h 24h]",
		"channel":        "map[auth_type:<nil> header_names:[Authorization X-Token] type:web url:https://example.com/hook?x=1]",
		"filters":        "map[bridge:[b] dedicated_ip:[192.0.2.1 2001:db8::1 ::ffff:192.0.2.1 ::1.2.3.4] sending_domain:[mail.example.com] sending_node:[]]",
	}
	for name, text := range want {
		if fmt.Sprint(got[name]) != text {
			t.Errorf("%s: got %v, want %s", name, got[name], text)
		}
	}
	if !strings.HasPrefix(got["id"].(string), "sub_") || len(got["created_at"].(string)) != len("2024-01-15T10:30:00.000Z") {
		t.Errorf("id %v, created_at %v", got["id"], got["created_at"])
	}
	for _, path := range []string{"/v1/subscriptions", "/v1/subscriptions/" + got["id"].(string)} {
		text := b.send(t, b.acme, "GET", path, nil).text
		for _, hidden := range []string{secret, "top-secret-token", "Basic abc", "$schema", `"secret"`} {
			if strings.Contains(text, hidden) {
				t.Errorf("%s tells %s", path, hidden)
			}
		}
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets WHERE position($1::bytea IN sealed) = 0", []byte(secret)); n != 1 {
		t.Errorf("%d sealed secrets", n)
	}
}

func TestAddressesAreStoredAsDispatchComparesThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	given := []string{"192.0.2.1", "2001:db8:0:0:1:0:0:1", "2001:DB8::", "::ffff:10.0.0.1", "::1.2.3.4", "fe80::1", "2001:db8:0:1:1:1:1:1"}
	got := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"filters": object{"dedicated_ip": given}}))
	stored := got["filters"].(object)["dedicated_ip"].([]any)
	for i, text := range given {
		if want := dbtest.QueryOne[string](t, b.DB, "SELECT host($1::inet)", text); stored[i] != want {
			t.Errorf("%s: stored %v, dispatch compares %s", text, stored[i], want)
		}
	}
}

func TestCreateDefaults(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := b.must(t, 201, b.admin, "POST", "/v1/subscriptions", subscription(object{"account_id": "acme", "status": "paused", "secret": "0123456789abcdef"}))
	want := map[string]string{
		"account_id": "acme", "status": "paused", "status_reason": "operator", "retry_schedule": "standard", "timeout": "15s", "max_in_flight": "32",
		"rate_limit_per_second": "<nil>", "name": "", "secret": "0123456789abcdef",
		"filters": "map[bridge:[] dedicated_ip:[] sending_domain:[] sending_node:[]]",
	}
	for name, text := range want {
		if fmt.Sprint(got[name]) != text {
			t.Errorf("%s: got %v, want %s", name, got[name], text)
		}
	}
	mailjet := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"retry_schedule": "mailjet"}))
	if mailjet["retry_schedule"] != "mailjet" {
		t.Error(mailjet["retry_schedule"])
	}
	if ok := dbtest.QueryOne[bool](t, b.DB, `SELECT suspend_when_exhausted AND retry_jitter = 0 AND cardinality(retry_schedule) = 20
		AND retry_schedule[1] = '30s' AND retry_schedule[20] = '30min' FROM mailhook.subscriptions WHERE retry_preset = 'mailjet'`); !ok {
		t.Error("mailjet is not stored as the contract has it")
	}
	// The defaults of the migration and of the preset table are the same.
	b.Exec(t, "INSERT INTO mailhook.subscriptions (account_id, url, event_types) VALUES ('x', 'https://x', '{*}')")
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(DISTINCT (retry_schedule, retry_jitter, timeout, max_in_flight))::int FROM mailhook.subscriptions WHERE retry_preset = 'standard'"); n != 1 {
		t.Error("the column defaults differ from the preset standard")
	}
}

func TestInvalidInputStoresNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	long := strings.Repeat("x", 3000)
	many := func(n int, text string) []string { return slices.Repeat([]string{text}, n) }
	manyHeaders := object{}
	for i := range 21 {
		manyHeaders[fmt.Sprintf("X-%d", i)] = "v"
	}
	channel := func(url string) object { return object{"channel": object{"url": url}} }
	headers := func(h object) object {
		return object{"channel": object{"url": "https://example.com", "headers": h}}
	}
	for _, c := range []struct {
		body        object
		field, code string
	}{
		{object{"nope": 1}, "nope", "unknown_field"},
		{object{"channel": object{"url": "https://example.com", "nope": 1}}, "channel.nope", "unknown_field"},
		{object{"filters": object{"nope": []string{}}}, "filters.nope", "unknown_field"},
		{object{"id": "sub_1"}, "id", "unknown_field"},
		{object{"name": 1}, "name", "wrong_type"},
		{object{"name": long}, "name", "too_long"},
		{object{"name": "a\x00b"}, "name", "invalid"},
		{object{"channel": "https://example.com"}, "channel", "wrong_type"},
		{object{"channel": nil}, "channel", "wrong_type"},
		{object{"channel": object{}}, "channel.url", "required"},
		{object{"channel": object{"type": "sms", "url": "https://example.com"}}, "channel.type", "not_allowed"},
		{channel("example.com/hook"), "channel.url", "invalid_url"},
		{channel("http://example.com/hook"), "channel.url", "invalid_url"},
		{channel("ftp://example.com/hook"), "channel.url", "invalid_url"},
		{channel("https://u:p@example.com/hook"), "channel.url", "invalid_url"},
		{channel("https://example.com/#x"), "channel.url", "invalid_url"},
		{channel("https://example.com/" + long), "channel.url", "invalid_url"},
		{channel("https://127.0.0.1/"), "channel.url", "invalid_url"},
		{channel("https://10.1.2.3:8443/"), "channel.url", "invalid_url"},
		{channel("https://169.254.169.254/latest"), "channel.url", "invalid_url"},
		{channel("https://100.64.0.1/"), "channel.url", "invalid_url"},
		{channel("https://224.0.0.1/"), "channel.url", "invalid_url"},
		{channel("https://[::1]/"), "channel.url", "invalid_url"},
		{channel("https://[::]/"), "channel.url", "invalid_url"},
		{channel("https://[::ffff:127.0.0.1]/"), "channel.url", "invalid_url"},
		{channel("https://[fe80::1%25eth0]/"), "channel.url", "invalid_url"},
		{channel("https://localhost/"), "channel.url", "invalid_url"},
		{channel("https://LOCALHOST./"), "channel.url", "invalid_url"},
		{channel("https://a.localhost/"), "channel.url", "invalid_url"},
		{channel("https://2130706433/"), "channel.url", "invalid_url"},
		{channel("https://127.1/"), "channel.url", "invalid_url"},
		{channel("https://0x7f.1/"), "channel.url", "invalid_url"},
		{channel("https://0x7f000001/"), "channel.url", "invalid_url"},
		{channel("https://①②⑦.⓪.⓪.①/"), "channel.url", "invalid_url"},
		{channel("https://example.com:0/"), "channel.url", "invalid_url"},
		{channel("https:///x"), "channel.url", "invalid_url"},
		{headers(object{"Host": "x"}), "channel.headers.Host", "reserved_header"},
		{headers(object{"webhook-id": "x"}), "channel.headers.webhook-id", "reserved_header"},
		{headers(object{"Content-Type": "x"}), "channel.headers.Content-Type", "reserved_header"},
		{headers(object{"Proxy-Authorization": "x"}), "channel.headers.Proxy-Authorization", "reserved_header"},
		{headers(object{"X-A": "a\r\nHost: b"}), "channel.headers.X-A", "invalid_header"},
		{headers(object{"X A": "a"}), "channel.headers", "invalid_header"},
		{headers(object{"X-A": long + long}), "channel.headers", "too_long"},
		{headers(manyHeaders), "channel.headers", "too_many"},
		{headers(object{"X-A": 1}), "channel.headers.X-A", "wrong_type"},
		{object{"event_types": nil}, "event_types", "required"},
		{object{"event_types": []string{}}, "event_types", "too_few"},
		{object{"event_types": []string{"Email"}}, "event_types[0]", "invalid_event_type"},
		{object{"event_types": []string{"email", "email."}}, "event_types[1]", "invalid_event_type"},
		{object{"event_types": []string{"email.*"}}, "event_types[0]", "invalid_event_type"},
		{object{"event_types": []string{strings.Repeat("a", 101)}}, "event_types[0]", "invalid_event_type"},
		{object{"event_types": many(51, "email")}, "event_types", "too_many"},
		{object{"event_types": "email"}, "event_types", "wrong_type"},
		{object{"filters": object{"dedicated_ip": []string{"mail.example.com"}}}, "filters.dedicated_ip[0]", "invalid_address"},
		{object{"filters": object{"dedicated_ip": []string{"10.0.0.0/8"}}}, "filters.dedicated_ip[0]", "invalid_address"},
		{object{"filters": object{"bridge": []int{7}}}, "filters.bridge[0]", "wrong_type"},
		{object{"filters": object{"bridge": []string{""}}}, "filters.bridge[0]", "too_short"},
		{object{"filters": object{"bridge": []string{long}}}, "filters.bridge[0]", "too_long"},
		{object{"filters": object{"bridge": many(201, "b")}}, "filters.bridge", "too_many"},
		{object{"format": "mailgun"}, "format", "not_allowed"},
		{object{"format": "slack"}, "format", "not_allowed"},
		{object{"retry_schedule": "never"}, "retry_schedule", "not_allowed"},
		{object{"retry_schedule": []string{}}, "retry_schedule", "out_of_range"},
		{object{"retry_schedule": many(51, "5s")}, "retry_schedule", "out_of_range"},
		{object{"retry_schedule": []string{"5s", "25h"}}, "retry_schedule[1]", "out_of_range"},
		{object{"retry_schedule": []string{"500ms"}}, "retry_schedule[0]", "out_of_range"},
		{object{"retry_schedule": []string{"5 s"}}, "retry_schedule[0]", "invalid_duration"},
		{object{"retry_schedule": []int{5}}, "retry_schedule", "wrong_type"},
		{object{"timeout": "61s"}, "timeout", "out_of_range"},
		{object{"timeout": "15"}, "timeout", "invalid_duration"},
		{object{"timeout": ""}, "timeout", "invalid_duration"},
		{object{"timeout": "-5s"}, "timeout", "invalid_duration"},
		{object{"timeout": 15}, "timeout", "wrong_type"},
		{object{"max_in_flight": 0}, "max_in_flight", "out_of_range"},
		{object{"max_in_flight": 1001}, "max_in_flight", "out_of_range"},
		{object{"max_in_flight": 1.5}, "max_in_flight", "wrong_type"},
		{object{"rate_limit_per_second": 0}, "rate_limit_per_second", "out_of_range"},
		{object{"rate_limit_per_second": 1e-308}, "rate_limit_per_second", "out_of_range"},
		{object{"rate_limit_per_second": 10001}, "rate_limit_per_second", "out_of_range"},
		{object{"status": "suspended"}, "status", "not_allowed"},
		{object{"secret": "too-short-secret"[:15]}, "secret", "invalid_secret"},
		{object{"secret": "whsec_not base64 at all"}, "secret", "invalid_secret"},
		{object{"secret": "0123456789abcde\n"}, "secret", "invalid_secret"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "POST", "/v1/subscriptions", subscription(c.body))
	}
	// The mend is told.
	for body, mend := range map[string]string{
		`{"retry_schedule": [5], `: `such as ["30s", "5m"]`, `{"retry_schedule": 5, `: "the name of a preset", `{"filters": {"tag": [null]}, `: "must be a text, a number, true or false",
	} {
		r := b.send(t, b.acme, "POST", "/v1/subscriptions", body+`"event_types": ["*"], "channel": {"url": "https://example.com"}}`)
		if r.status != 422 || !strings.Contains(strings.ReplaceAll(r.text, `\"`, `"`), mend) {
			t.Errorf("%s: %d %s", body, r.status, r.text)
		}
	}
	b.mustFail(t, 422, "account_id", "required", b.admin, "POST", "/v1/subscriptions", subscription(nil))
	b.mustFail(t, 422, "event_types", "required", b.acme, "POST", "/v1/subscriptions", object{"channel": object{"url": "https://example.com"}})
	b.mustFail(t, 422, "channel", "required", b.acme, "POST", "/v1/subscriptions", object{"event_types": []string{"*"}})
	b.mustFail(t, 404, "", "not_found", b.acme, "POST", "/v1/subscriptions", subscription(object{"account_id": "evil"}))
	b.mustFail(t, 400, "", "unreadable", b.acme, "POST", "/v1/subscriptions", `{"name": `)
	b.mustFail(t, 400, "", "unreadable", b.acme, "POST", "/v1/subscriptions", nil)
	b.mustFail(t, 422, "", "wrong_type", b.acme, "POST", "/v1/subscriptions", `[]`)
	b.mustFail(t, 413, "", "too_large", b.acme, "POST", "/v1/subscriptions", `{"name": "`+strings.Repeat("x", 1<<20)+`"}`)
	for _, table := range []string{"subscriptions", "subscription_secrets", "subscription_credentials", "accounts"} {
		if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook."+table); n != 0 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
}

func TestErrorsTellNoSecrets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const token = "hunter2-hunter2"
	for _, body := range []any{
		subscription(object{"secret": token + "\n"}),
		subscription(object{"secret": "whsec_" + token}),
		subscription(object{"secret": []string{token}}),
		subscription(object{"channel": object{"url": "https://user:" + token + "@example.com/"}}),
		subscription(object{"channel": object{"url": "https://example.com/" + token, "headers": object{"X-A": token + "\n"}}}),
		subscription(object{"channel": object{"url": "https://example.com/" + token, "headers": object{"X-A": []string{token}}}}),
		subscription(object{"channel": object{"url": token}}),
		subscription(object{"secret": token + token, "nope": 1}),
		`{"secret": "` + token + `", "name": 1, }`,
		`{"secret": "` + token + `" "x"}`,
	} {
		r := b.send(t, b.acme, "POST", "/v1/subscriptions", body)
		if r.status != 422 && r.status != 400 || strings.Contains(r.text, "hunter2") {
			t.Errorf("%d %s", r.status, r.text)
		}
	}
	if strings.Contains(b.logs.String(), "hunter2") {
		t.Error("the log tells")
	}
}

func TestAllowedDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.AllowInsecureHTTP = true
		c.AllowCIDR = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}
	})
	for _, url := range []string{"http://127.0.0.1:8080/x", "http://localhost:99/", "https://10.1.2.3/", "http://[::ffff:127.0.0.1]/", "https://8.8.8.8/", "https://example.com", "https://xn--bcher-kva.example:8443/a?b=c", "https://a_b.example.com./x"} {
		b.create(t, b.acme, object{"channel": object{"url": url}})
	}
	for _, url := range []string{"http://10.2.0.1/", "http://[::1]/", "ws://example.com"} {
		b.mustFail(t, 422, "channel.url", "invalid_url", b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": object{"url": url}}))
	}
}

func TestPatchSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, object{
		"name": "Mine", "channel": object{"url": "https://example.com/1", "headers": object{"X-A": "1"}}, "filters": object{"bridge": []string{"b"}, "sending_node": []string{"n"}},
		"retry_schedule": []string{"5s"}, "timeout": "5s", "max_in_flight": 1, "rate_limit_per_second": 1,
	})
	version := dbtest.QueryOne[int](t, b.DB, "SELECT version::int FROM mailhook.subscriptions")
	got := b.must(t, 200, b.acme, "PATCH", path, object{"channel": object{"url": "https://example.com/2"}, "filters": object{"bridge": nil}, "event_types": []string{"form"}})
	want := map[string]string{
		"name": "Mine", "channel": "map[auth_type:<nil> header_names:[X-A] type:web url:https://example.com/2]", "event_types": "[form]",
		"filters": "map[bridge:[] dedicated_ip:[] sending_domain:[] sending_node:[n]]", "retry_schedule": "[5s]", "timeout": "5s",
	}
	for name, text := range want {
		if fmt.Sprint(got[name]) != text {
			t.Errorf("%s: got %v, want %s", name, got[name], text)
		}
	}
	if now := dbtest.QueryOne[int](t, b.DB, "SELECT version::int FROM mailhook.subscriptions"); now != version+1 {
		t.Errorf("version %d after %d", now, version)
	}
	got = b.must(t, 200, b.acme, "PATCH", path, object{
		"name": nil, "channel": object{"headers": nil}, "filters": nil, "retry_schedule": nil, "timeout": nil, "max_in_flight": nil, "rate_limit_per_second": nil, "format": nil,
	})
	want = map[string]string{
		"name": "", "channel": "map[auth_type:<nil> header_names:[] type:web url:https://example.com/2]", "filters": "map[bridge:[] dedicated_ip:[] sending_domain:[] sending_node:[]]",
		"retry_schedule": "standard", "timeout": "15s", "max_in_flight": "32", "rate_limit_per_second": "<nil>", "format": "standard",
	}
	for name, text := range want {
		if fmt.Sprint(got[name]) != text {
			t.Errorf("%s: got %v, want %s", name, got[name], text)
		}
	}
	b.mustFail(t, 422, "channel.url", "required", b.acme, "PATCH", path, object{"channel": object{"url": nil}})
	b.mustFail(t, 422, "channel.url", "required", b.acme, "PATCH", path, object{"channel": nil})
	b.mustFail(t, 422, "event_types", "required", b.acme, "PATCH", path, object{"event_types": nil})
	b.mustFail(t, 422, "timeout", "out_of_range", b.acme, "PATCH", path, object{"name": "other", "timeout": "2m"})
	for _, name := range []string{"id", "account_id", "status", "status_reason", "created_at", "updated_at", "secret"} {
		b.mustFail(t, 422, name, "unknown_field", b.acme, "PATCH", path, object{name: "x"})
	}
	if after := b.must(t, 200, b.acme, "GET", path, nil); fmt.Sprint(after) != fmt.Sprint(got) {
		t.Errorf("a refused patch has changed %v to %v", got, after)
	}
}

func TestWhatGetAnswersCanBePatched(t *testing.T) {
	t.Parallel()
	b := setup(t)
	web := object{"url": "https://example.com/1", "headers": object{"X-A": "1"}}
	for _, settings := range []object{
		{"name": "Mine", "channel": web, "retry_schedule": "svix", "filters": object{"dedicated_ip": []string{"::1.2.3.4"}}, "timeout": "1s"},
		{"channel": web, "retry_schedule": []string{"30s", "5m"}, "batch": object{"max_events": 10}},
		{"channel": web, "format": "sendgrid", "ordering": "message"},
		{"channel": pushover(object{"priority": 1})},
		{"channel": object{"type": "slack", "url": slackURL}},
	} {
		path := "/v1/subscriptions/" + b.create(t, b.acme, settings)
		before := b.must(t, 200, b.acme, "GET", path, nil)
		body := b.must(t, 200, b.acme, "GET", path, nil)
		for _, field := range readOnlyFields() {
			b.leaveOut(t, path, body, field)
		}
		after := b.must(t, 200, b.acme, "PATCH", path, body)
		delete(before, "updated_at")
		delete(after, "updated_at")
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("got %v, want %v", after, before)
		}
	}
	// Elsewhere they are unknown.
	b.mustFail(t, 422, "created_at", "unknown_field", b.acme, "POST", "/v1/subscriptions", subscription(object{"created_at": "x"}))
}

// leaveOut takes a read-only field out of a body, and sees that it is refused as such while it is in it.
func (b *bundle) leaveOut(t *testing.T, path string, body object, field string) {
	t.Helper()
	in, name := body, field
	if rest, ok := strings.CutPrefix(field, "channel."); ok {
		in, name = body["channel"].(object), rest
	}
	if _, ok := in[name]; !ok {
		in[name] = nil
	}
	b.mustFail(t, 422, field, "unknown_field", b.acme, "PATCH", path, body)
	if r := b.send(t, b.acme, "PATCH", path, body); !strings.Contains(r.text, "is read-only: leave it out") {
		t.Error(r.text)
	}
	delete(in, name)
}

func TestMergePatchContentType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	for contentType, status := range map[string]int{
		"application/json": 200, "application/json; charset=utf-8": 200, "Application/JSON ; charset=utf-8": 200, "application/merge-patch+json": 200,
		"text/plain": 415, "application/x-www-form-urlencoded": 415, "": 200,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, b.url+path, strings.NewReader(`{"name":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "bearer "+b.acme)
		request.Header.Set("Content-Type", contentType)
		if r := b.do(t, request); r.status != status {
			t.Errorf("%q: got %d, want %d: %s", contentType, r.status, status, r.text)
		}
	}
}

func TestStatusRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	for _, c := range []struct{ key, verb, status, reason string }{
		{b.acme, "pause", "paused", "user"},
		{b.admin, "pause", "paused", "user"},
		{b.acme, "resume", "active", "<nil>"},
		{b.admin, "pause", "paused", "operator"},
		{b.acme, "deactivate", "inactive", "user"},
		{b.acme, "resume", "active", "<nil>"},
	} {
		got := b.must(t, 200, c.key, "POST", path+"/"+c.verb, nil)
		if got["status"] != c.status || fmt.Sprint(got["status_reason"]) != c.reason {
			t.Errorf("%s: got %v %v", c.verb, got["status"], got["status_reason"])
		}
	}
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'suspended', status_reason = 'failing'")
	b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, consecutive_failures) SELECT id, 9 FROM mailhook.subscriptions")
	if got := b.must(t, 200, b.acme, "POST", path+"/resume", nil); got["status"] != "active" {
		t.Error(got)
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_health"); n != 0 {
		t.Error("resume keeps the health")
	}
}

func TestDeleteSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, object{"channel": object{"url": "https://example.com", "headers": object{"X-A": "1"}, "auth": object{"type": "bearer", "token": "x"}}})
	b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id) SELECT id FROM mailhook.subscriptions")
	b.must(t, 204, b.acme, "DELETE", path, nil)
	for _, c := range [][2]string{
		{"DELETE", ""}, {"GET", ""}, {"PATCH", ""}, {"POST", "/pause"}, {"POST", "/resume"}, {"POST", "/deactivate"}, {"POST", "/rotate-secret"}, {"POST", "/test"}, {"POST", "/replay"},
	} {
		body := any(nil)
		if c[0] == "PATCH" {
			body = object{}
		}
		if c[1] == "/replay" {
			body = object{"since": "2024-01-01T00:00:00Z"}
		}
		b.mustFail(t, 404, "", "not_found", b.acme, c[0], path+c[1], body)
	}
	if list := b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil); len(ids(list)) != 0 {
		t.Error(list)
	}
	if ok := dbtest.QueryOne[bool](t, b.DB, `SELECT deleted_at IS NOT NULL AND auth_type IS NULL AND header_names = '{}' AND NOT EXISTS (SELECT FROM mailhook.subscription_credentials)
		AND NOT EXISTS (SELECT FROM mailhook.subscription_secrets) AND NOT EXISTS (SELECT FROM mailhook.subscription_event_types)
		AND NOT EXISTS (SELECT FROM mailhook.subscription_health) FROM mailhook.subscriptions`); !ok {
		t.Error("something is left of it")
	}
}

func TestRotateSecret(t *testing.T) {
	t.Parallel()
	b := setup(t)
	created := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(nil))
	path := "/v1/subscriptions/" + created["id"].(string) + "/rotate-secret"
	live := func() int {
		return dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets WHERE expires_at IS NULL OR expires_at > now()")
	}
	// What an answer says of the secrets: how many there are, and for how many hours each signs on, the newest for ever.
	hours := func(answer object) (left []int) {
		secrets, _ := answer["secrets"].([]any)
		for _, s := range secrets {
			n := -1
			if at, ok := s.(object)["expires_at"].(string); ok {
				end, err := time.Parse("2006-01-02T15:04:05.000Z", at)
				if err != nil {
					t.Fatal(err)
				}
				n = int(time.Until(end).Round(time.Hour).Hours())
			}
			left = append(left, n)
		}
		return left
	}
	shows := func(answer object, want ...int) {
		t.Helper()
		read := b.must(t, 200, b.acme, "GET", strings.TrimSuffix(path, "/rotate-secret"), nil)
		if !slices.Equal(hours(answer), want) || !slices.Equal(hours(read), want) {
			t.Errorf("secrets for %v and %v hours, want %v: %v", hours(answer), hours(read), want, answer)
		}
		if text := fmt.Sprint(read); strings.Contains(text, answer["secret"].(string)) {
			t.Errorf("the secret is read: %s", text)
		}
	}
	shows(created, -1)
	rotated := b.must(t, 200, b.acme, "POST", path, nil)
	shows(rotated, -1, 24)
	if rotated["secret"] == created["secret"] || live() != 2 || rotated["updated_at"] == created["updated_at"] {
		t.Errorf("%d live after %v", live(), rotated)
	}
	if ok := dbtest.QueryOne[bool](t, b.DB, "SELECT expires_at BETWEEN now() + interval '23 hours' AND now() + interval '25 hours' FROM mailhook.subscription_secrets WHERE expires_at IS NOT NULL"); !ok {
		t.Error("the grace is not 24 h")
	}
	// The earlier end stays, and 3 are the most.
	shows(b.must(t, 200, b.acme, "POST", path, object{"grace": "7d", "secret": "my own secret, thank you"}), -1, 168, 24)
	shows(b.must(t, 200, b.acme, "POST", path, object{"grace": "1h"}), -1, 1, 1)
	if live() != 3 {
		t.Errorf("%d live", live())
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets WHERE expires_at > now() + interval '61 minutes'"); n != 0 {
		t.Error("a secret outlives the grace")
	}
	shows(b.must(t, 200, b.acme, "POST", path, object{"grace": "0s"}), -1)
	if live() != 1 {
		t.Errorf("%d live after a rotation without grace", live())
	}
	b.mustFail(t, 422, "grace", "out_of_range", b.acme, "POST", path, object{"grace": "8d"})
	b.mustFail(t, 422, "secret", "invalid_secret", b.acme, "POST", path, object{"secret": "short"})
	b.mustFail(t, 422, "nope", "unknown_field", b.acme, "POST", path, object{"nope": 1})
	if live() != 1 {
		t.Error("a refused rotation has changed something")
	}
}

func TestListSubscriptions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var created []string
	for range 7 {
		created = append([]string{b.create(t, b.acme, nil)}, created...)
	}
	other := b.create(t, b.evil, nil)
	for _, limit := range []string{"1", "2", "3", "7", "200"} {
		if got := b.walk(t, b.acme, "/v1/subscriptions", limit); !slices.Equal(got, created) {
			t.Errorf("limit %s: got %v, want %v", limit, got, created)
		}
	}
	if got := b.walk(t, b.admin, "/v1/subscriptions", "3"); !slices.Equal(got, append([]string{other}, created...)) {
		t.Error(got)
	}
	if got := b.walk(t, b.admin, "/v1/subscriptions?account_id=evil", "3"); !slices.Equal(got, []string{other}) {
		t.Error(got)
	}
	for _, one := range b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)["data"].([]any) {
		one := one.(object)
		got := b.must(t, 200, b.acme, "GET", "/v1/subscriptions/"+one["id"].(string), nil)
		delete(got, "secrets") // of one alone
		if fmt.Sprint(one) != fmt.Sprint(got) || one["created_at"] == nil || one["channel"] == nil {
			t.Errorf("listed %v, want %v", one, got)
		}
	}
	all := b.must(t, 200, b.admin, "GET", "/v1/subscriptions?limit=2", nil)
	if _, ok := all["usage"]; ok {
		t.Error("usage in a list of all accounts")
	}
	cursor := all["next_cursor"].(string)
	b.mustFail(t, 422, "cursor", "other_filters", b.admin, "GET", "/v1/subscriptions?account_id=acme&cursor="+cursor, nil)
	b.mustFail(t, 422, "cursor", "other_filters", b.acme, "GET", "/v1/subscriptions?cursor="+cursor, nil)
	b.mustFail(t, 422, "cursor", "invalid_cursor", b.acme, "GET", "/v1/subscriptions?cursor=%21%21", nil)
	for _, list := range []string{"subscriptions", "deliveries", "events", "quarantine"} {
		b.mustFail(t, 422, "account_id", "too_short", b.admin, "GET", "/v1/"+list+"?account_id=", nil)
	}
	b.mustFail(t, 422, "limit", "out_of_range", b.acme, "GET", "/v1/subscriptions?limit=201", nil)
	b.mustFail(t, 422, "limit", "out_of_range", b.acme, "GET", "/v1/subscriptions?limit=0", nil)
	b.mustFail(t, 422, "nope", "unknown_field", b.acme, "GET", "/v1/subscriptions?nope=1", nil)
	b.mustFail(t, 404, "", "not_found", b.acme, "GET", "/v1/subscriptions?account_id=evil", nil)
}

// A whole number is one however it is written, as JSON Schema has it.
func TestWholeNumbers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	for _, text := range []string{"40", "40.0", "4e1", "4.0E+1"} {
		if got := b.must(t, 200, b.acme, "PATCH", path, `{"max_in_flight": `+text+`}`)["max_in_flight"]; got != 40.0 {
			t.Errorf("%s became %v", text, got)
		}
		b.must(t, 200, b.acme, "PATCH", path, object{"max_in_flight": nil})
	}
	b.mustFail(t, 422, "max_in_flight", "wrong_type", b.acme, "PATCH", path, `{"max_in_flight": 4.5}`)
	b.mustFail(t, 422, "max_in_flight", "out_of_range", b.acme, "PATCH", path, `{"max_in_flight": 4e300}`)
}
