package httpapi

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"mailhook/db/dbtest"
)

// hostileTexts are what strangers may write.
func hostileTexts() []string {
	return []string{
		"<script>alert(1)</script>", "\x1b[31mred\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "\u009b31m", "abc\u202egnp.exe", "\u2066isolated\u2069\u200f",
		`"},{"forged":true,"x":"`, `\`, "line\u2028separator\u2029", "line\nforged: header\r\n\r\n", "\x7f\b", "\U000e0041tag", "\ufeffmark", strings.Repeat("long ", 100), "'; DROP SCHEMA mailhook; --",
	}
}

// Every list and object that shows what strangers wrote is JSON in UTF-8, says so, and has the text as it was written.
func TestHostileTextsInAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	for i, text := range append(hostileTexts(), "a\x00b", "\x9b31m", "bad \xff\xfe utf-8 \xed\xa0\x80") {
		shown := strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
		event := b.event(t, "acme", "email.failed", shown, time.Now())
		data, err := json.Marshal(map[string]string{"reason": shown, shown: "key"})
		if err != nil {
			t.Fatal(err)
		}
		data = append(data[:len(data)-1], `,"half":"\ud800","\udc00":1}`...)
		b.Exec(t, `UPDATE mailhook.events SET message_id = $1, campaign_id = $1, sending_domain = $1, sending_node = $1, bridge = $1, data = $2 WHERE recipient = $1`, shown, data)
		delivery := b.delivery(t, event, subscription)
		b.end(t, delivery, "exhausted", "http_5xx", 500)
		b.Exec(t, "UPDATE mailhook.attempts SET response_excerpt = $1 WHERE delivery_id = (SELECT id FROM mailhook.dead_letters ORDER BY id DESC LIMIT 1)", []byte(text))
		if dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE response_excerpt = $1", []byte(text)) != 1 {
			t.Fatalf("text %d is not stored", i)
		}
		got := b.must(t, 200, b.acme, "GET", "/v1/events/"+event, nil)
		if d := got["data"].(object); d["reason"] != shown || d["recipient"] != shown || d[shown] != "key" {
			t.Errorf("%q is shown as %q", shown, d)
		}
		attempts := b.must(t, 200, b.acme, "GET", "/v1/deliveries/"+delivery, nil)["attempts"].([]any)
		if excerpt := attempts[0].(object)["response_excerpt"]; strings.Trim(excerpt.(string), "\uFFFD") == "" || !utf8.ValidString(excerpt.(string)) {
			t.Errorf("%q is shown as %q", text, excerpt)
		}
		for _, path := range []string{
			"/v1/events", "/v1/deliveries", "/v1/deliveries?recipient=" + url.QueryEscape(shown), "/v1/events/" + event,
			"/v1/deliveries/" + delivery, "/v1/events/" + event + "/explain?subscription_id=" + subscription, "/v1/quarantine", "/v1/events/" + url.PathEscape(shown),
		} {
			b.shownAsJSON(t, path)
		}
	}
}

func (b *bundle) shownAsJSON(t *testing.T, path string) {
	t.Helper()
	r := b.send(t, b.acme, "GET", path, nil)
	kind := r.header.Get("Content-Type")
	if !utf8.ValidString(r.text) || !json.Valid([]byte(r.text)) || kind != "application/json" && kind != "application/problem+json" || r.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s is answered with %d %s: %.300q", path, r.status, kind, r.text)
	}
	if i := strings.IndexFunc(r.text, func(c rune) bool { return c < ' ' && c != '\n' }); i >= 0 {
		t.Errorf("%s is answered with a bare control character: %.300q", path, r.text[i:])
	}
}

// What is no text for people is refused at the door, and a name that is one comes back as it was.
func TestHostileTextsInSubscriptions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, text := range append(hostileTexts(), "a\x00b") {
		name := text[:min(len(text), 200)]
		controls := strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
		r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"name": name}))
		switch {
		case controls && r.status != 422:
			t.Errorf("name %q: %d", name, r.status)
		case !controls && (r.status != 201 || r.body["name"] != name):
			t.Errorf("name %q: %d, %q", name, r.status, r.body["name"])
		}
		for field, body := range map[string]object{
			"channel.url":               subscription(object{"channel": object{"url": "https://example.com/" + text + "\u202e\n"}}),
			"channel.headers":           subscription(object{"channel": object{"url": "https://example.com/", "headers": object{"X-" + text + "\n": "x"}}}),
			"channel.headers.X-Text":    subscription(object{"channel": object{"url": "https://example.com/", "headers": object{"X-Text": text + "\n"}}}),
			"event_types[0]":            subscription(object{"event_types": []string{text}}),
			"filters.sending_domain[0]": subscription(object{"filters": object{"sending_domain": []string{text + "\n"}}}),
			"filters.dedicated_ip[0]":   subscription(object{"filters": object{"dedicated_ip": []string{text}}}),
			"retry_schedule[0]":         subscription(object{"retry_schedule": []string{text}}),
			"timeout":                   subscription(object{"timeout": text}),
		} {
			r := b.send(t, b.acme, "POST", "/v1/subscriptions", body)
			if r.status != 422 || !slices.Contains(fields(r), field) || strings.Contains(r.text, "\x1b") {
				t.Errorf("%s with %q: %d %.300q", field, text, r.status, r.text)
			}
		}
	}
	b.shownAsJSON(t, "/v1/subscriptions")
}

func fields(r response) (names []string) {
	errs, _ := r.body["errors"].([]any)
	for _, e := range errs {
		name, _ := e.(object)["field"].(string)
		names = append(names, name)
	}
	return names
}
