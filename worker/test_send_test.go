package worker

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/format"
	"mailhook/httpapi"
)

// A console is the API beside a worker, as a customer has it.
type console struct {
	url, key string
	client   *http.Client
}

func (b *bundle) openConsole(t *testing.T, pushoverURL string) *console {
	t.Helper()
	cfg := httpapi.DefaultConfig()
	pool, err := db.Open(t.Context(), b.As("mailhook_api"), db.Role{Name: "mailhook api", StatementTimeout: time.Minute, MaxConns: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	cfg.Pool, cfg.Keyring, cfg.Policy, cfg.Logger = pool, b.keyring, b.config().Policy, slog.New(slog.DiscardHandler)
	cfg.TestsPerMinute, cfg.PushoverURL, cfg.NoWorkerAfter, cfg.TestWait = 10_000, pushoverURL, time.Minute, time.Minute
	api, err := httpapi.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(api)
	t.Cleanup(func() {
		server.Close()
		api.Close()
	})
	key, hash := db.NewAPIKey()
	account := "default"
	if _, err := db.New(b.Pool).InsertAPIKey(t.Context(), db.InsertAPIKeyParams{AccountID: &account, Scope: "write", KeyHash: hash}); err != nil {
		t.Fatal(err)
	}
	return &console{server.URL, key, server.Client()}
}

// ask decodes an answer of the status that must come.
func (c *console) ask(t *testing.T, status int, method, path string, body, into any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, c.url+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	r.Header.Set("Content-Type", "application/json")
	response, err := c.client.Do(r)
	if err != nil {
		t.Error(err)
		return
	}
	defer response.Body.Close()
	content, _ := io.ReadAll(response.Body)
	if response.StatusCode != status || json.Unmarshal(content, into) != nil {
		t.Errorf("%s %s %s: %d %s", method, path, text, response.StatusCode, content)
	}
}

type testResult struct {
	Outcome    *string `json:"outcome"`
	StatusCode *int    `json:"status_code"`
	Request    *struct {
		Method, URL, Body string
		Headers           map[string]string
		ContentType       string `json:"content_type"`
	}
}

const testKey = "aAaAaAaAaAaAaAaAaAaAaAaAaAaAa2"

// estate makes a subscription of each channel, by its name.
func (c *console) estate(t *testing.T, receiver string) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for name, channel := range map[string]map[string]any{
		"web":      {"url": receiver + "/web", "headers": map[string]string{"X-Team": "confidential"}, "auth": map[string]string{"type": "bearer", "token": "confidential"}},
		"pushover": {"type": "pushover", "user_key": "uUuUuUuUuUuUuUuUuUuUuUuUuUuUu1", "api_token": testKey},
		"slack":    {"type": "slack", "url": receiver + "/slack/abcdefghijklmnopqrstuvwx"},
		"teams":    {"type": "teams", "url": receiver + "/teams/abcdefghijklmnopqrstuvwx"},
	} {
		var created struct{ ID string }
		c.ask(t, 201, "POST", "/v1/subscriptions", map[string]any{"channel": channel, "event_types": []string{"email"}, "secret": testSecret}, &created)
		ids[name] = created.ID
	}
	return ids
}

// Every type of the catalogue, in every format of every channel, is taken by what stands for its receiver.
func TestEveryTypeInEveryFormatCanBeTested(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := newService(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/pushover":
			fmt.Fprint(w, `{"status":1,"request":"x"}`)
		case strings.HasPrefix(r.URL.Path, "/teams"):
			w.WriteHeader(http.StatusAccepted)
		default:
			fmt.Fprint(w, "ok")
		}
	})
	c := b.openConsole(t, server.URL+"/pushover")
	ids := c.estate(t, server.URL)
	b.run(t, b.config())
	types := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(name ORDER BY name) FROM mailhook.event_types")
	var group sync.WaitGroup
	turns := make(chan struct{}, 16)
	for channel, id := range ids {
		for _, name := range format.Names(channel) {
			for _, eventType := range types {
				group.Go(func() {
					turns <- struct{}{}
					defer func() { <-turns }()
					var got testResult
					c.ask(t, 200, "POST", "/v1/subscriptions/"+id+"/test", map[string]any{"event_type": eventType, "format": name}, &got)
					if got.Outcome == nil || *got.Outcome != "ok" || got.StatusCode == nil || got.Request == nil {
						t.Errorf("%s as %s: %+v", eventType, name, got)
						return
					}
					checkBody(t, eventType+" as "+name, got.Request.ContentType, got.Request.Body)
				})
			}
		}
	}
	group.Wait()
	server.mu.Lock()
	defer server.mu.Unlock()
	count := 0
	for _, requests := range server.requests {
		count += len(requests)
	}
	if want := len(types) * (len(format.Names("web")) + 3); count != want {
		t.Errorf("%d requests, want %d", count, want)
	}
}

// checkBody parses a body by its type. What a channel shows is a sentence, never the name of a type alone.
func checkBody(t *testing.T, what, contentType, body string) {
	t.Helper()
	switch media, _, _ := strings.Cut(contentType, ";"); {
	case strings.HasSuffix(media, "json"):
		if !json.Valid([]byte(body)) {
			t.Errorf("%s is no JSON: %s", what, body)
		}
	case strings.HasSuffix(media, "xml"):
		decoder := xml.NewDecoder(strings.NewReader(body))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s is no XML: %v: %s", what, err, body)
				break
			}
		}
	case media == "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(body)
		if err != nil || form.Get("token") != "***" || form.Get("user") != "***" || form.Get("message") == "" || !strings.Contains(form.Get("title"), " ") {
			t.Errorf("%s is no message: %v: %s", what, err, body)
		}
	default:
		t.Errorf("%s has the content type %q", what, contentType)
	}
}

func TestPreviewsAndTests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := newService(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status":1}`) })
	c := b.openConsole(t, server.URL+"/pushover")
	ids := c.estate(t, server.URL)
	b.Exec(t, "INSERT INTO mailhook.event_types (name, description, sample) VALUES ('my.own', 'Ours.', '{\"recipient\":\"own@example.com\",\"fields\":{\"a\":1}}')")
	b.run(t, b.config())
	test := func(channel string, body map[string]any) testResult {
		t.Helper()
		var got testResult
		c.ask(t, 200, "POST", "/v1/subscriptions/"+ids[channel]+"/test", body, &got)
		if got.Request == nil || got.Request.Method != http.MethodPost {
			t.Fatalf("%s %v: %+v", channel, body, got)
		}
		return got
	}
	for channel, want := range map[string]string{"web": server.URL + "/web", "pushover": server.URL + "/pushover", "slack": server.URL + "/…", "teams": server.URL + "/…"} {
		got := test(channel, map[string]any{"preview": true, "event_type": "email.clicked"})
		if got.Outcome != nil || got.StatusCode != nil || got.Request.URL != want {
			t.Errorf("%s: %+v", channel, got)
		}
		if text := fmt.Sprint(got.Request); strings.Contains(text, "confidential") || strings.Contains(text, testKey) || strings.Contains(text, "abcdefgh") {
			t.Errorf("%s: a secret is shown: %s", channel, text)
		}
	}
	server.mu.Lock()
	if len(server.requests) != 0 {
		t.Error("a preview was sent")
	}
	server.mu.Unlock()

	sent := test("web", map[string]any{"event_type": "email.bounced"})
	got := server.got("/web")[0]
	if sent.Request.Body != got.body || sent.Request.Headers["Webhook-Signature"] != got.header.Get("webhook-signature") || sent.Request.ContentType != got.header.Get("Content-Type") {
		t.Errorf("another request is shown than was sent: %+v, %+v", sent.Request, got)
	}
	if sent.Request.Headers["X-Team"] != "***" || sent.Request.Headers["Authorization"] != "***" || got.header.Get("X-Team") != "confidential" {
		t.Errorf("%v, %v", sent.Request.Headers, got.header)
	}
	for given, want := range map[string][2]string{
		"my.own.kind":           {`"type":"my.own.kind"`, `"recipient":"own@example.com","fields":{"a":1}`},
		"email.bounced.mailbox": {`"type":"email.bounced.mailbox"`, `"bounce_type":"mailbox"`},
		"unheard.of":            {`"type":"unheard.of"`, `"data":{}`},
	} {
		body := test("web", map[string]any{"event_type": given, "preview": true}).Request.Body
		if !strings.Contains(body, want[0]) || !strings.Contains(body, want[1]) || !strings.Contains(body, `"test":true`) {
			t.Errorf("%s: %s", given, body)
		}
	}
}

// A test send has the type that dispatch makes of an event like its sample.
func TestTestSendsHaveTheTypesOfDispatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, _ := b.run(t, b.config())
	b.Exec(t, `INSERT INTO mailhook.outbox (account_id, event_type, data, message_id) SELECT 'default', t.name, t.sample, t.name FROM mailhook.event_types AS t`)
	b.settled(t)
	names := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(message_id ORDER BY message_id) FROM mailhook.events")
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.event_types"); n != len(names) {
		t.Errorf("%d of %d types were dispatched", len(names), n)
	}
	for _, name := range names {
		e, err := w.testEvent(t.Context(), db.ClaimTestDeliveriesRow{EventType: name})
		if want := dbtest.QueryOne[string](t, b.DB, "SELECT event_type FROM mailhook.events WHERE message_id = $1", name); err != nil || e.Type != want {
			t.Errorf("%s: %s, %v, want %s", name, e.Type, err, want)
		}
	}
}
