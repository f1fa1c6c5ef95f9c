package httpapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// things are one of each, of account acme.
type things struct{ subscription, delivery, event, replay, quarantined string }

func (b *bundle) things(t *testing.T) things {
	t.Helper()
	var have things
	have.subscription = b.create(t, b.acme, nil)
	have.event = b.event(t, "acme", "email.delivered", "r@example.com", time.Now())
	have.delivery = b.delivery(t, have.event, have.subscription)
	have.quarantined = b.quarantined(t, "acme", 77)
	have.replay = b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+have.subscription+"/replay", object{"since": "2024-01-01T00:00:00Z"})["id"].(string)
	return have
}

type route struct {
	method, path string
	body         any
}

// routes are all routes about one thing.
func (h things) routes() []route {
	subscription := "/v1/subscriptions/" + h.subscription
	return []route{
		{"GET", subscription, nil},
		{"PATCH", subscription, object{"name": "x"}},
		{"POST", subscription + "/pause", nil},
		{"POST", subscription + "/resume", nil},
		{"POST", subscription + "/rotate-secret", nil},
		{"POST", subscription + "/test", nil},
		{"POST", subscription + "/replay", object{"since": "2024-01-01T00:00:00Z"}},
		{"POST", subscription + "/deactivate", nil},
		{"GET", "/v1/replays/" + h.replay, nil},
		{"DELETE", "/v1/replays/" + h.replay, nil},
		{"GET", "/v1/deliveries?subscription_id=" + h.subscription, nil},
		{"GET", "/v1/deliveries/" + h.delivery, nil},
		{"POST", "/v1/deliveries/" + h.delivery + "/retry", nil},
		{"GET", "/v1/events/" + h.event, nil},
		{"GET", "/v1/events/" + h.event + "/explain?subscription_id=" + h.subscription, nil},
		{"GET", "/v1/events/" + h.quarantined, nil},
		{"POST", "/v1/quarantine/" + h.quarantined + "/release", nil},
		{"GET", "/v1/accounts/acme", nil},
		{"PUT", "/v1/accounts/acme", object{"limit": 1}},
		{"DELETE", "/v1/accounts/acme", nil},
		{"DELETE", subscription, nil},
	}
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	have := b.things(t)
	otherInstallation := have.event[:len(have.event)-8] + "00000000"
	for _, bad := range []string{"x", "sub_", "sub_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b", strings.ToUpper(have.subscription), have.delivery + "0", "evt_" + strings.Repeat("f", 40), "evt_" + strings.Repeat("0", 40), otherInstallation, "a%20b", "%F0%9F%92%A9"} {
		for _, r := range (things{bad, bad, bad, bad, bad}).routes() {
			if strings.Contains(r.path, "/accounts/") {
				continue
			}
			b.mustFail(t, 404, "", "not_found", b.admin, r.method, r.path, r.body)
		}
	}
	b.mustFail(t, 400, "", "unreadable", b.admin, "GET", "/v1/subscriptions/%00", nil)
	b.mustFail(t, 400, "", "unreadable", b.admin, "GET", "/v1/deliveries?recipient=%00", nil)
	b.mustFail(t, 400, "", "unreadable", b.admin, "GET", "/v1/events?recipient=%ff", nil)
}

// TestEveryRouteWorks walks all routes with the keys that may.
func TestEveryRouteWorks(t *testing.T) {
	t.Parallel()
	for name, adminOnly := range map[string]bool{"account": false, "admin": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			key := b.acme
			if adminOnly {
				key = b.admin
			}
			for _, r := range b.things(t).routes() {
				want := 200
				switch {
				case strings.HasSuffix(r.path, "/test"):
					want = 504
				case strings.HasSuffix(r.path, "/retry"):
					want = 409 // deactivated before
				case r.method == "POST" && strings.HasSuffix(r.path, "/replay"):
					want = 202
				case strings.Contains(r.path, "/accounts/") && r.method != "GET" && !adminOnly:
					want = 403
				case strings.HasSuffix(r.path, "/accounts/acme") && r.method == "DELETE":
					want = 204
				case r.method == "DELETE" && strings.Contains(r.path, "/subscriptions/"):
					want = 204
					if adminOnly {
						want = 404 // gone with its account
					}
				}
				b.must(t, want, key, r.method, r.path, r.body)
			}
		})
	}
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.send(t, "", "GET", "/openapi.json", nil)
	if r.status != 200 || r.body["openapi"] != "3.1.0" {
		t.Fatal(r.status, r.text[:100])
	}
	var got []string
	for path, methods := range r.body["paths"].(object) {
		for method := range methods.(object) {
			got = append(got, strings.ToUpper(method)+" "+path)
		}
	}
	want := []string{
		"DELETE /v1/accounts/{id}", "DELETE /v1/replays/{id}", "DELETE /v1/subscriptions/{id}",
		"GET /v1/accounts/{id}", "GET /v1/deliveries", "GET /v1/deliveries/{id}", "GET /v1/egress", "GET /v1/erasures/{id}", "GET /v1/event-types", "GET /v1/event-types/{name}", "GET /v1/events", "GET /v1/events/{id}",
		"GET /v1/events/{id}/explain", "GET /v1/quarantine", "GET /v1/replays", "GET /v1/replays/{id}", "GET /v1/subscriptions", "GET /v1/subscriptions/{id}",
		"PATCH /v1/subscriptions/{id}",
		"POST /v1/deliveries/{id}/retry", "POST /v1/quarantine/{id}/release", "POST /v1/recipients/erase", "POST /v1/subscriptions", "POST /v1/subscriptions/preview", "POST /v1/subscriptions/{id}/deactivate",
		"POST /v1/subscriptions/{id}/explain",
		"POST /v1/subscriptions/{id}/pause", "POST /v1/subscriptions/{id}/replay", "POST /v1/subscriptions/{id}/resume",
		"POST /v1/subscriptions/{id}/rotate-secret", "POST /v1/subscriptions/{id}/test", "PUT /v1/accounts/{id}",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, text := range []string{`"Problem"`, "application/problem+json", "application/merge-patch+json", `"bearer"`} {
		if !strings.Contains(r.text, text) {
			t.Errorf("without %s", text)
		}
	}
	for _, text := range []string{"ErrorModel", "$schema"} {
		if strings.Contains(r.text, text) {
			t.Errorf("with %s", text)
		}
	}
	for name := range r.body["components"].(object)["schemas"].(object) {
		if !strings.Contains(r.text, "#/components/schemas/"+name+`"`) {
			t.Errorf("%s is not used", name)
		}
	}
	for i, rest := range strings.Split(r.text, `"#/components/schemas/`) {
		name, _, _ := strings.Cut(rest, `"`)
		if _, ok := r.body["components"].(object)["schemas"].(object)[name]; i > 0 && !ok {
			t.Errorf("%s is not there", name)
		}
	}
}

func TestUnknownRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/", "/v1", "/v1/nope", "/docs", "/schemas/Problem.json", "/v1/subscriptions/a/b/c"} {
		b.mustFail(t, 404, "", "not_found", b.acme, "GET", path, nil)
	}
	b.mustFail(t, 405, "", "method_not_allowed", b.acme, "PUT", "/v1/subscriptions", object{})
	if r := b.send(t, b.acme, "DELETE", "/v1/subscriptions", nil); r.header.Get("Allow") != "GET, POST" {
		t.Error(r.header)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	b := setup(t, func(c *Config) {
		c.Ready = func() error {
			if broken.Load() {
				return errors.New("the dispatch loop stands still")
			}
			return nil
		}
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "a_metric 1") })
	})
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		r := b.send(t, "", "GET", path, nil)
		if r.status != 200 || r.header.Get("X-Content-Type-Options") != "nosniff" || r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %s", path, r.status, r.header, r.text)
		}
	}
	broken.Store(true)
	b.mustFail(t, 503, "", "unavailable", "", "GET", "/readyz", nil)
	broken.Store(false)
	b.Exec(t, "UPDATE mailhook.goose_db_version SET version_id = version_id + 1000 WHERE version_id = (SELECT max(version_id) FROM mailhook.goose_db_version)")
	b.mustFail(t, 503, "", "unavailable", "", "GET", "/readyz", nil)
	b.must(t, 200, "", "GET", "/healthz", nil)
}

func TestFailuresOfOursAreNotTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, "DROP TABLE mailhook.replays CASCADE")
	b.mustFail(t, 500, "", "internal", b.admin, "GET", "/v1/replays/rpl_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b", nil)
	if r := b.send(t, b.admin, "GET", "/v1/replays/rpl_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b", nil); strings.Contains(r.text, "mailhook.replays") {
		t.Error(r.text)
	}
	if !strings.Contains(b.logs.String(), "mailhook.replays") {
		t.Error("the log does not say what is broken")
	}
	b.logs.Reset()
}

func TestWhatMayBeTriedAgainIs503(t *testing.T) {
	t.Parallel()
	s := &server{config: DefaultConfig()}
	for _, code := range []string{"40P01", "57014"} {
		var problem *Problem
		if err := s.problemOf(t.Context(), "x", fmt.Errorf("store: %w", &pgconn.PgError{Code: code})); !errors.As(err, &problem) || problem.Status != 503 {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestWhatIsToldAboutABadRequestIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var body strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&body, `"f%d":1,`, i)
	}
	for _, text := range []string{body.String() + `"x":1`, `"` + strings.Repeat("é", 400_000) + `":1`} {
		if r := b.send(t, b.acme, "POST", "/v1/subscriptions", "{"+text+"}"); r.status != 422 || len(r.text) > 5000 {
			t.Errorf("%d, %d bytes", r.status, len(r.text))
		}
	}
}

// What a panic was made of may be what a customer sent: its type is logged, and where it happened.
func TestAPanicTellsNoSecrets(t *testing.T) {
	t.Parallel()
	const canary = "canary-in-a-panic"
	for name, fail := range map[string]func(){
		"an error":  func() { panic(fmt.Errorf("cannot store %s", canary)) },
		"a text":    func() { panic("cannot store " + canary) },
		"a struct":  func() { panic(struct{ Token string }{canary}) },
		"Go's own":  func() { _ = []string{canary}[len(canary)] },
		"a wrapped": func() { panic(fmt.Errorf("%s: %w", canary, &Problem{Detail: canary})) },
	} {
		logs := &safeBuffer{}
		s := &server{config: Config{Logger: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}}
		answer, request := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/subscriptions?token="+canary, strings.NewReader(canary))
		request.Header.Set("Authorization", "Bearer "+canary)
		s.recoverPanics(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fail() })).ServeHTTP(answer, request)
		if text := logs.String(); answer.Code != 500 || !strings.Contains(text, "server_test.go") || strings.Contains(text+answer.Body.String(), canary) {
			t.Errorf("%s: %d %s\n%s", name, answer.Code, answer.Body, text)
		}
	}
}

// Who reads the schema's version may be the other part: it would be ready, and fail at each request.
func TestALoginOfTheWorkerIsRefused(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	config := DefaultConfig()
	config.Keyring = keyring
	if config.Pool, err = db.Open(t.Context(), d.As("mailhook_worker"), db.Role{Name: "mailhook api", StatementTimeout: 30 * time.Second, MaxConns: 2}); err != nil {
		t.Fatal(err)
	}
	defer config.Pool.Close()
	const want = "the database role mailhook_worker lacks SELECT on mailhook.api_keys: GRANT mailhook_api TO mailhook_worker"
	if _, err := New(t.Context(), config); err == nil || err.Error() != want {
		t.Error(err)
	}
}

// A process that was not restarted before a rotation of the master key is not ready after it.
func TestNotReadyWithoutTheMasterKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.must(t, 200, "", "GET", "/readyz", nil)
	key := dbtest.QueryOne[string](t, b.DB, "SELECT secret_key_id FROM mailhook.installation")
	b.Exec(t, "UPDATE mailhook.installation SET secret_key_id = '00000000'")
	dbtest.Eventually(t, "not ready", func() bool {
		r := b.send(t, "", "GET", "/readyz", nil)
		return r.status == 503 && strings.Contains(r.text, "lacks the master key") && !strings.Contains(r.text, "00000000")
	})
	if !strings.Contains(b.logs.String(), "00000000") {
		t.Errorf("the log does not say which: %s", b.logs.String())
	}
	b.Exec(t, "UPDATE mailhook.installation SET secret_key_id = $1", key)
	dbtest.Eventually(t, "ready again", func() bool { return b.send(t, "", "GET", "/readyz", nil).status == 200 })
}
