package roundtrip

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/format"
	"mailhook/httpapi"
	"mailhook/worker"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const (
	recipient = "r@example.com"
	messageID = "19421777835146490" // more than a double holds
)

// A hook is one receiver, and what came to it.
type hook struct {
	platform
	name, secret, publicKey string

	mu       sync.Mutex
	readings map[string][]reading // by webhook-id
	problems []string
}

// ServeHTTP takes a request as the receivers of a platform do: by both signatures that all requests have, then as the platform.
func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	var readings []reading
	if err == nil {
		err = verify(h.secret, r.Header, body)
	}
	if err == nil {
		readings, err = h.read(r.Header, body, h.publicKey)
	}
	if err != nil {
		h.problems = append(h.problems, fmt.Sprintf("%v: %s", err, body))
	}
	h.readings[r.Header.Get("webhook-id")] = readings
	w.WriteHeader(http.StatusOK)
}

// verify is what a receiver of Standard Webhooks does with its library, and one of Mumara ONE with X-Signature.
func verify(secret string, header http.Header, body []byte) error {
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	if header.Get("X-Signature") != "hmac-sha256="+hex.EncodeToString(mac.Sum(nil)) {
		return errors.New("X-Signature does not match")
	}
	return webhook.Verify(body, header)
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.readings)
}

// TestRoundTrips: every type of the catalogue, emitted in SQL, arrives at the receiver of every platform, which verifies it,
// parses it, and finds its own word for it, or our name where it has none.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	if names := format.Names("web"); len(names) != len(platforms()) {
		t.Fatalf("formats %v have %d receivers", names, len(platforms()))
	}
	d := dbtest.New(t)
	hooks := subscribeAll(t, d, nil, format.Names("web"))
	ids := emitAll(t, d)
	for name, h := range hooks {
		dbtest.Eventually(t, fmt.Sprintf("%d events at %s", len(ids), name), func() bool { return h.count() == len(ids) })
	}
	sent := dispatched(t, d)
	for _, h := range hooks {
		h.judge(t, sent)
	}
}

// judge compares what came with what was emitted.
func (h *hook) judge(t *testing.T, sent map[string]string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, problem := range h.problems {
		t.Errorf("%s: %s", h.name, problem)
	}
	seen := map[string]bool{}
	for id, eventType := range sent {
		if len(h.readings[id]) != 1 {
			t.Errorf("%s reads %d events of %s", h.name, len(h.readings[id]), eventType)
			continue
		}
		got := h.readings[id][0]
		seen[got.event] = true
		if got.event != eventType && !slices.Contains(h.words, got.event) {
			t.Errorf("%s has no word %q, that came of %s", h.name, got.event, eventType)
		}
		if got.email != recipient || got.messageID != messageID && h.name != "mumara-classic" {
			t.Errorf("%s reads %+v of %s", h.name, got, eventType)
		}
	}
	for _, word := range h.words {
		if !seen[word] {
			t.Errorf("%s never got %q", h.name, word)
		}
	}
}

// subscribeAll makes a receiver and, through the API, a subscription of each of these formats, with such batches or none, and starts a worker.
func subscribeAll(t *testing.T, d *dbtest.DB, batch any, formats []string) map[string]*hook {
	t.Helper()
	hooks, mux := map[string]*hook{}, http.NewServeMux()
	for _, name := range formats {
		hooks[name] = &hook{platform: platforms()[name], name: name, readings: map[string][]reading{}}
		mux.Handle("/"+name, hooks[name])
	}
	receivers := httptest.NewServer(mux)
	t.Cleanup(receivers.Close)

	w := workerConfig(t, d)
	api := serveAPI(t, d, w, receivers.URL)
	for name, h := range hooks {
		var created struct {
			Secret    string
			PublicKey string `json:"public_key"`
		}
		api(map[string]any{"name": name, "format": name, "channel": map[string]any{"url": receivers.URL + "/" + name}, "event_types": []string{"*", "subscription"}, "batch": batch}, &created)
		h.secret, h.publicKey = created.Secret, created.PublicKey
	}
	run(t, w)
	return hooks
}

// workerConfig lets a worker, of which each test has one, reach receivers here.
func workerConfig(t *testing.T, d *dbtest.DB) worker.Config {
	t.Helper()
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	w := worker.DefaultConfig()
	w.DatabaseURL, w.Keyring, w.Version, w.Log, w.Registry = d.As("mailhook_worker"), keyring, "test", slog.New(slog.DiscardHandler), nil
	w.AllowInsecureHTTP, w.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return w
}

// serveAPI answers a function that creates a subscription.
func serveAPI(t *testing.T, d *dbtest.DB, w worker.Config, pushoverURL string) func(body, into any) {
	t.Helper()
	pool, err := db.Open(t.Context(), d.As("mailhook_api"), db.Role{Name: "mailhook api", StatementTimeout: 30 * time.Second, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	config := httpapi.DefaultConfig()
	config.PushoverURL = pushoverURL
	config.Pool, config.Keyring, config.Policy, config.Logger = pool, w.Keyring, w.Policy, slog.New(slog.DiscardHandler)
	handler, err := httpapi.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handler.Close)
	key, hash := db.NewAPIKey()
	account := "default"
	if _, err := db.New(d.Pool).InsertAPIKey(t.Context(), db.InsertAPIKeyParams{AccountID: &account, Scope: "write", KeyHash: hash}); err != nil {
		t.Fatal(err)
	}
	return func(body, into any) {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		request := httptest.NewRequest(http.MethodPost, "/v1/subscriptions", bytes.NewReader(text))
		request.Header = http.Header{"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if err := json.Unmarshal(answer.Body.Bytes(), into); err != nil || answer.Code != http.StatusCreated {
			t.Fatalf("%d, %s", answer.Code, answer.Body)
		}
	}
}

func run(t *testing.T, config worker.Config) {
	t.Helper()
	w, err := worker.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// emitAll writes an event of each type of the catalogue, with its sample, and a bounce of which nobody knows the kind; it answers
// their ids.
func emitAll(t *testing.T, d *dbtest.DB) []string {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), `
		SELECT mailhook.emit(e.name, recipient => $1, message_id => $2, data => e.sample)
		FROM (SELECT name, sample FROM mailhook.event_types UNION ALL SELECT 'email.bounced', '{"reason":"no idea"}') AS e`, recipient, messageID)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(ids) < 30 {
		t.Fatalf("%d events, %v", len(ids), err)
	}
	return ids
}

// dispatched are the types of all events, by id, as dispatch has refined them.
func dispatched(t *testing.T, d *dbtest.DB) map[string]string {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), "SELECT mailhook.event_id(inserted_at, id), event_type FROM mailhook.events")
	types := map[string]string{}
	var id, name string
	if _, err := pgx.ForEachRow(rows, []any{&id, &name}, func() error { types[id] = name; return nil }); err != nil {
		t.Fatal(err)
	}
	return types
}

// TestArrays: every type of the catalogue arrives in batches at the receivers of the formats that have arrays, which verify and parse those.
func TestArrays(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	hooks := subscribeAll(t, d, map[string]any{"max_events": 10, "max_wait": "1s"}, []string{"standard", "mailjet", "sendgrid", "cloudevents"})
	ids := emitAll(t, d)
	for name, h := range hooks {
		dbtest.Eventually(t, fmt.Sprintf("%d events at %s", len(ids), name), func() bool { return len(h.all()) >= len(ids) })
	}
	sent := slices.Sorted(maps.Values(dispatched(t, d)))
	for name, h := range hooks {
		var words, others []string
		for _, got := range h.all() {
			if got.email != recipient || got.messageID != messageID {
				t.Errorf("%s reads %+v", name, got)
			}
			if slices.Contains(h.words, got.event) {
				words = append(words, got.event)
			} else {
				others = append(others, got.event)
			}
		}
		slices.Sort(words)
		slices.Sort(others)
		if seen := slices.Compact(slices.Clone(words)); len(seen) != len(h.words) || len(words)+len(others) != len(sent) {
			t.Errorf("%s reads %d events, with the words %v and as %v", name, len(words)+len(others), seen, others)
		}
		if h.words == nil && !slices.Equal(others, sent) {
			t.Errorf("%s reads %v, sent were %v", name, others, sent)
		}
		if h.count() >= len(ids)/2 {
			t.Errorf("%d requests with %d events are no batches", h.count(), len(ids))
		}
		for _, problem := range h.problems {
			t.Errorf("%s: %s", name, problem)
		}
	}
}

// all are the readings of all requests.
func (h *hook) all() []reading {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Concat(slices.Collect(maps.Values(h.readings))...)
}
