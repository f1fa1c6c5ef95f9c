package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// bundle is the API on a database of its own, with a key for each kind of caller.
type bundle struct {
	*dbtest.DB
	url               string
	client            *http.Client
	admin, acme, evil string // keys
	logs              *safeBuffer
	keyring           *db.Keyring
	api               *API
}

// safeBuffer is a log that handlers write while the test reads.
type safeBuffer struct {
	mutex sync.Mutex
	text  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(p)
}

func (b *safeBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

func (b *safeBuffer) Reset() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.text.Reset()
}

type object = map[string]any

func setup(t *testing.T, change ...func(*Config)) *bundle {
	t.Helper()
	b := &bundle{DB: dbtest.New(t), logs: &safeBuffer{}}
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	b.keyring = keyring
	config := DefaultConfig()
	config.Keyring = keyring
	if config.Pool, err = db.Open(t.Context(), b.As("mailhook_api"), db.Role{Name: "mailhook api", StatementTimeout: 30 * time.Second, MaxConns: 10}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(config.Pool.Close)
	config.RateLimit, config.StrangerRateLimit = 0, 0
	config.NoWorkerAfter, config.TestWait = 300*time.Millisecond, time.Second
	config.Logger = slog.New(slog.NewTextHandler(b.logs, nil))
	for _, f := range change {
		f(&config)
	}
	handler, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	b.url, b.client, b.api = server.URL, server.Client(), handler
	t.Cleanup(func() {
		b.client.CloseIdleConnections()
		server.Close()
		handler.Close()
		if text := b.logs.String(); strings.Contains(text, "level=ERROR") {
			t.Errorf("the API logged errors:\n%s", text)
		}
	})
	acme, evil := "acme", "evil"
	b.admin, b.acme, b.evil = b.addKey(t, nil), b.addKey(t, &acme), b.addKey(t, &evil)
	return b
}

func (b *bundle) addKey(t *testing.T, account *string) string {
	t.Helper()
	key, _ := b.addKeyWith(t, db.InsertAPIKeyParams{AccountID: account, Scope: "write"})
	return key
}

// addKeyWith makes a key and answers it with its id.
func (b *bundle) addKeyWith(t *testing.T, params db.InsertAPIKeyParams) (key string, id uuid.UUID) {
	t.Helper()
	key, params.KeyHash = db.NewAPIKey()
	row, err := db.New(b.Pool).InsertAPIKey(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	return key, row.ID
}

// response is an answer with its body read.
type response struct {
	status int
	header http.Header
	text   string
	body   object
}

func (b *bundle) send(t *testing.T, key, method, path string, body any) response {
	t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, b.url+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	if reader != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return b.do(t, request)
}

func (b *bundle) do(t *testing.T, request *http.Request) response {
	t.Helper()
	answer, err := b.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := response{status: answer.StatusCode, header: answer.Header, text: string(text)}
	if strings.Contains(answer.Header.Get("Content-Type"), "json") && len(text) > 0 {
		if err := json.Unmarshal(text, &r.body); err != nil {
			t.Fatalf("%s %s: %v: %s", request.Method, request.URL, err, text)
		}
	}
	return r
}

// must is send with a status that must come.
func (b *bundle) must(t *testing.T, status int, key, method, path string, body any) object {
	t.Helper()
	r := b.send(t, key, method, path, body)
	if r.status != status {
		t.Fatalf("%s %s: got %d, want %d: %s", method, path, r.status, status, r.text)
	}
	return r.body
}

// mustFail is must for an error: it checks the form of the problem, and one of its fields and codes.
func (b *bundle) mustFail(t *testing.T, status int, field, code, key, method, path string, body any) {
	t.Helper()
	r := b.send(t, key, method, path, body)
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%s %s: got %d %s, want %d: %s", method, path, r.status, r.header.Get("Content-Type"), status, r.text)
	}
	errs, _ := r.body["errors"].([]any)
	for _, e := range errs {
		if got, _ := e.(object)["field"].(string); got == field && e.(object)["code"] == code {
			return
		}
	}
	t.Fatalf("%s %s: want field %q code %q in %s", method, path, field, code, r.text)
}

// subscription is a valid body, with changes.
func subscription(changes object) object {
	body := object{"channel": object{"url": "https://example.com/hook"}, "event_types": []string{"email"}}
	for name, value := range changes {
		body[name] = value
	}
	return body
}

func (b *bundle) create(t *testing.T, key string, changes object) (id string) {
	t.Helper()
	return b.must(t, 201, key, "POST", "/v1/subscriptions", subscription(changes))["id"].(string)
}

// event writes a dispatched event of an account and answers its public id.
func (b *bundle) event(t *testing.T, account, eventType, recipient string, at time.Time) (public string) {
	t.Helper()
	return dbtest.QueryOne[string](t, b.DB, `
		INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, sending_domain, dedicated_ip, data)
		SELECT $1, nextval('mailhook.outbox_id_seq'), $2, $3, $1, $1, $4, 'Mail.Example.com', '2001:DB8::1', '{"recipient":"other","reason":"x","n":1.50}'
		RETURNING mailhook.event_id(inserted_at, id)`, at, account, eventType, recipient)
}

// delivery makes a waiting delivery of an event and answers its public id.
func (b *bundle) delivery(t *testing.T, event, subscription string) (public string) {
	t.Helper()
	eventID, err := db.ParseEventID(event)
	if err != nil {
		t.Fatal(err)
	}
	subscriptionID, err := db.ParseID(db.SubscriptionPrefix, subscription)
	if err != nil {
		t.Fatal(err)
	}
	id := dbtest.QueryOne[[16]byte](t, b.DB, `
		INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		SELECT $3, account_id, inserted_at, id, event_type, now() + interval '1 hour', now() FROM mailhook.events WHERE inserted_at = $1 AND id = $2
		RETURNING id`, eventID.InsertedAt, eventID.ID, subscriptionID)
	return db.FormatID(db.DeliveryPrefix, id)
}

// end ends a delivery as a worker would.
func (b *bundle) end(t *testing.T, delivery, as, outcome string, status int) {
	t.Helper()
	id, err := db.ParseID(db.DeliveryPrefix, delivery)
	if err != nil {
		t.Fatal(err)
	}
	b.Exec(t, `
		WITH ended AS (DELETE FROM mailhook.deliveries WHERE id = $1 RETURNING *),
		dead AS (
			INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, last_outcome, reason, created_at, ended_at)
			SELECT id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt + 1, $3, 'schedule_ended', created_at, now()
			FROM ended WHERE $2 = 'exhausted')
		INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
			number, duration_ms, status_code, outcome, response_excerpt, ended_as, delivery_created_at)
		SELECT clock_timestamp(), mailhook.uuid7(), id, subscription_id, account_id, event_inserted_at, event_id, event_type,
			attempt + 1, 12, $4, $3, 'a\000b\377'::bytea, $2, created_at FROM ended`, id, as, outcome, status)
}

// attempt records a failed attempt that is to be repeated.
func (b *bundle) attempt(t *testing.T, delivery string) {
	t.Helper()
	id, err := db.ParseID(db.DeliveryPrefix, delivery)
	if err != nil {
		t.Fatal(err)
	}
	b.Exec(t, `
		WITH failed AS (UPDATE mailhook.deliveries SET attempt = attempt + 1, last_outcome = 'http_5xx' WHERE id = $1 RETURNING *)
		INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
			number, duration_ms, status_code, outcome, response_excerpt, delivery_created_at)
		SELECT clock_timestamp(), mailhook.uuid7(), id, subscription_id, account_id, event_inserted_at, event_id, event_type,
			attempt, 7, 503, 'http_5xx', 'busy', created_at FROM failed`, id)
}

func ids(list object) (found []string) {
	for _, row := range list["data"].([]any) {
		found = append(found, row.(object)["id"].(string))
	}
	return found
}

// walk reads a whole list, page by page.
func (b *bundle) walk(t *testing.T, key, path string, limit string) (found []string) {
	t.Helper()
	cursor := ""
	for range 1000 {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		page := b.must(t, 200, key, "GET", path+separator+"limit="+limit+cursor, nil)
		found = append(found, ids(page)...)
		next, _ := page["next_cursor"].(string)
		if next == "" {
			return found
		}
		cursor = "&cursor=" + next
	}
	t.Fatal("the list does not end")
	return nil
}
