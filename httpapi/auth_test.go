package httpapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestWhyAKeyIsRefusedIsToldToWhoHasIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	expired, id := b.addKeyWith(t, db.InsertAPIKeyParams{Scope: "write"})
	b.Exec(t, "UPDATE mailhook.api_keys SET expires_at = now() WHERE id = $1", id)
	revoked, id := b.addKeyWith(t, db.InsertAPIKeyParams{Scope: "write"})
	b.Exec(t, "UPDATE mailhook.api_keys SET revoked_at = now() WHERE id = $1", id)
	for key, says := range map[string]string{expired: "expired", revoked: "revoked", "mhk_x": "not valid", "": "Authorization: Bearer"} {
		if r := b.send(t, key, "GET", "/v1/subscriptions", nil); r.status != 401 || !strings.Contains(r.text, says) {
			t.Errorf("%d %s, without %q", r.status, r.text, says)
		}
	}
	if used := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.api_keys WHERE last_used_at IS NOT NULL"); used != 0 {
		t.Error("a key that was refused counts as used")
	}
}

// The use of a key is noted beside the request; where that fails, the request does not.
func TestTheUseOfAKeyIsNoted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)
	const used = "SELECT count(*) FROM mailhook.api_keys WHERE account_id = 'acme' AND last_used_at IS NOT NULL"
	dbtest.Eventually(t, "the use is noted", func() bool { return dbtest.QueryOne[int64](t, b.DB, used) == 1 })
	b.Exec(t, "UPDATE mailhook.api_keys SET last_used_at = NULL")
	b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)
	b.must(t, 200, b.evil, "GET", "/v1/subscriptions", nil)
	dbtest.Eventually(t, "the other's use is noted", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.api_keys WHERE account_id = 'evil' AND last_used_at IS NOT NULL") == 1
	})
	if dbtest.QueryOne[int64](t, b.DB, used) != 0 {
		t.Error("noted twice within a minute")
	}
	b.Exec(t, "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
	b.Exec(t, "CREATE TRIGGER no BEFORE UPDATE ON mailhook.api_keys FOR EACH ROW EXECUTE FUNCTION no()")
	b.must(t, 200, b.admin, "GET", "/v1/subscriptions", nil)
	dbtest.Eventually(t, "the log says that it was not noted", func() bool { return strings.Contains(b.logs.String(), "not noted") })
}

// A process that stops has written what its last requests left to write.
func TestTheUseOfAKeyIsNotedBeforeTheEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const keys = 30
	var group sync.WaitGroup
	for range keys {
		key, _ := b.addKeyWith(t, db.InsertAPIKeyParams{Name: "last", Scope: "read"})
		group.Go(func() {
			if r := b.send(t, key, "GET", "/v1/egress", nil); r.status != 200 {
				t.Errorf("%d %s", r.status, r.text)
			}
		})
	}
	group.Wait()
	b.api.Close()
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.api_keys WHERE name = 'last' AND last_used_at IS NOT NULL"); n != keys {
		t.Errorf("the use of %d keys is noted, of %d", n, keys)
	}
	b.must(t, 200, b.acme, "GET", "/v1/egress", nil) // a late one is served, and not noted
}

// tooMany checks the answer to one request too many.
func (b *bundle) tooMany(t *testing.T, key string) {
	t.Helper()
	b.mustFail(t, 429, "", "too_many_requests", key, "GET", "/v1/subscriptions", nil)
	r := b.send(t, key, "GET", "/v1/subscriptions", nil)
	if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
	}
}

func TestEachKeyHasARateOfItsOwn(t *testing.T) {
	t.Parallel()
	// A burst of 1, and no more within the life of this test.
	b := setup(t, func(c *Config) { c.RateLimit, c.StrangerRateLimit = 1e-9, 0 })
	b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)
	b.tooMany(t, b.acme)
	b.must(t, 200, b.evil, "GET", "/v1/subscriptions", nil)
	b.must(t, 401, "mhk_x", "GET", "/v1/subscriptions", nil)
	b.must(t, 200, "", "GET", "/healthz", nil)
}

// Who sends keys that are not valid is slowed down, and does not lock out a key that has been good from the same place.
func TestRequestsWithoutAValidKeyAreSlowedDown(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.StrangerRateLimit = 0.05 }) // a burst of 2, and then one in 20 s
	b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)
	var unknown string
	for n := 0; ; n++ {
		unknown, _ = db.NewAPIKey()
		r := b.send(t, unknown, "GET", "/v1/subscriptions", nil)
		if r.status == 429 {
			break
		}
		if r.status != 401 || n > 1000 {
			t.Fatal(r.status, n, r.text)
		}
	}
	for range 5 {
		b.must(t, 200, b.acme, "GET", "/v1/subscriptions", nil)
	}
}

// Many at a time are no way around the limit: each has taken a place before its key is looked up.
func TestManyStrangersAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.StrangerRateLimit = 1e-9 }) // a burst of 1, and no more within the life of this test
	var lookedUp, slowedDown atomic.Int64
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			unknown, _ := db.NewAPIKey()
			switch r := b.send(t, unknown, "GET", "/v1/subscriptions", nil); r.status {
			case 401:
				lookedUp.Add(1)
			case 429:
				slowedDown.Add(1)
			}
		})
	}
	group.Wait()
	if lookedUp.Load() != 1 || slowedDown.Load() != 99 {
		t.Errorf("of 100 keys %d were looked up and %d not", lookedUp.Load(), slowedDown.Load())
	}
}

func TestWhatDoesNotCountIsGivenBack(t *testing.T) {
	t.Parallel()
	l := newLimiters[int](1e-9, 2)
	first, _ := l.reserve(1)
	second, _ := l.reserve(1)
	if _, wait := l.reserve(1); wait <= 0 {
		t.Error("a third has a place")
	}
	first(false)
	second(true)
	third, wait := l.reserve(1)
	if wait > 0 {
		t.Fatal("what did not count is gone")
	}
	third(true)
	if _, wait := l.reserve(1); wait <= 0 {
		t.Error("what counted is there again")
	}
}

// Keys that are good cost an address nothing, however many of them come at once.
func TestValidKeysAreNoStrangers(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.StrangerRateLimit = 1e-9 }) // a burst of 1, and no more within the life of this test
	for range 20 {
		b.must(t, 200, b.addKey(t, nil), "GET", "/v1/subscriptions", nil)
	}
	b.must(t, 401, "", "GET", "/v1/subscriptions", nil)
	b.tooMany(t, "")
	b.tooMany(t, b.addKey(t, nil)) // it is not known yet
}

func TestLimitersAreBounded(t *testing.T) {
	t.Parallel()
	l := newLimiters[int](1e-9, 1)
	for n := range 3 * mostCounted {
		if l.take(n) > 0 {
			t.Fatalf("%d has to wait at once", n)
		}
		if l.take(0) == 0 {
			t.Fatalf("0, which comes all the time, is forgotten by %d", n)
		}
	}
	if len(l.byKey) != mostCounted || l.latest.Len() != mostCounted {
		t.Errorf("%d and %d are kept", len(l.byKey), l.latest.Len())
	}
	if last := 3*mostCounted - 1; l.take(last) == 0 || !l.knows(0) || l.knows(1) {
		t.Error("it is not the latest that are kept")
	}
}

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1/32", "[::ffff:192.0.2.1]:80": "192.0.2.1/32", "[2001:db8::1]:80": "2001:db8::/64", "[fe80::1%eth0]:80": "fe80::/64",
	} {
		if got := networkOf(remote); got.String() != want {
			t.Errorf("%s: %v", remote, got)
		}
	}
	if networkOf("@") != (netip.Prefix{}) {
		t.Error("@")
	}
}

// Whatever is answered, and by whom, has the headers.
func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "" {
				panic("canary")
			}
			fmt.Fprintln(w, "a_metric 1")
		})
	})
	for path, status := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200, "/metrics?panic": 500, "/openapi.json": 200, "/v1/subscriptions": 200, "/v1/subscriptions/x": 404,
		"/nope": 404, "/v1/events?limit=0": 422, "/v1/events?recipient=%00": 400,
	} {
		r := b.send(t, b.acme, "GET", path, nil)
		if r.status != status {
			t.Errorf("%s: %d %s", path, r.status, r.text)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
			"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Server": "", "Access-Control-Allow-Origin": "",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
	}
	b.logs.Reset() // of the panic
}

// The access log has routes and key ids, and nothing that a client has put into a path, a query, a header or a body.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const canary = "canary"
	b.must(t, 200, b.acme, "GET", "/v1/deliveries?recipient="+canary+"@example.com", nil)
	b.must(t, 404, b.acme, "GET", "/v1/subscriptions/"+canary, nil)
	b.must(t, 404, b.acme, "GET", "/"+canary+"?"+canary, nil)
	b.must(t, 422, b.acme, "POST", "/v1/subscriptions", object{"name": canary})
	b.must(t, 401, "mhk_"+canary, "GET", "/v1/events", nil)
	b.must(t, 400, b.acme, "GET", "/v1/events?recipient="+canary+"%00", nil)
	id := db.FormatID(db.KeyPrefix, dbtest.QueryOne[[16]byte](t, b.DB, "SELECT id FROM mailhook.api_keys WHERE account_id = 'acme'"))
	text := b.logs.String()
	for _, want := range []string{
		`route="GET /v1/deliveries" status=200`, `route="GET /v1/subscriptions/{id}" status=404`, "route=unknown status=404",
		`route="POST /v1/subscriptions" status=422`, `route="GET /v1/events" status=401`, "route=refused status=400", "key_id=" + id, "duration_ms=",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("without %s:\n%s", want, text)
		}
	}
	for _, secret := range []string{canary, b.acme, "127.0.0.1"} {
		if strings.Contains(text, secret) {
			t.Errorf("with %s:\n%s", secret, text)
		}
	}
	if n := strings.Count(text, "api request"); n != 6 {
		t.Errorf("%d lines for 6 requests", n)
	}
}

// What JSON leaves open is refused: which of two values counts, and what follows the body.
func TestStrictBodies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const rest = `"channel":{"url":"https://example.com/"},"event_types":["email"]`
	for body, field := range map[string]string{
		`{` + rest + `,"name":"a","name":"a"}`:                                                 "name",
		`{` + rest + `,"max_in_flight":1,"MAX_IN_FLIGHT":1000000}`:                             "MAX_IN_FLIGHT",
		`{` + rest + `,"status":"active","ſtatus":"paused"}`:                                   "ſtatus",
		`{"event_types":["email"],"channel":{"url":"https://example.com/","url":"https://x"}}`: "channel.url",
		`{` + rest + `,"channel":null}`:                                                        "channel",
		`{` + rest + `,"nope":[1,{"x":[{"a":1,"a":2}]}]}`:                                      "nope.x.a",
	} {
		b.mustFail(t, 400, field, "duplicate_field", b.acme, "POST", "/v1/subscriptions", body)
	}
	for _, body := range []string{"", "{", "[]x", `{` + rest + `} {}`, `{` + rest + `}]`, "\xff", "nul", strings.Repeat("[", 20_000)} {
		b.mustFail(t, 400, "", "unreadable", b.acme, "POST", "/v1/subscriptions", body)
	}
	id := b.create(t, b.acme, nil)
	for _, r := range []struct{ method, path string }{
		{"POST", "/v1/subscriptions"}, {"PATCH", "/v1/subscriptions/" + id}, {"POST", "/v1/subscriptions/" + id + "/test"},
		{"POST", "/v1/subscriptions/" + id + "/rotate-secret"}, {"POST", "/v1/subscriptions/" + id + "/replay"},
	} {
		b.mustFail(t, 422, "nope", "unknown_field", b.acme, r.method, r.path, object{"nope": 1})
		b.mustFail(t, 413, "", "too_large", b.acme, r.method, r.path, `{"name":"`+strings.Repeat("x", maxBodyBytes)+`"}`)
		request, _ := http.NewRequestWithContext(t.Context(), r.method, b.url+r.path, strings.NewReader("{}"))
		request.Header.Set("Authorization", "Bearer "+b.acme)
		request.Header.Set("Content-Type", "text/plain")
		if got := b.do(t, request); got.status != 415 {
			t.Errorf("%s %s: text/plain is %d", r.method, r.path, got.status)
		}
	}
	b.mustFail(t, 422, "nope", "unknown_field", b.admin, "PUT", "/v1/accounts/acme", object{"nope": 1})
	b.mustFail(t, 422, "nope", "unknown_field", b.admin, "GET", "/v1/subscriptions?nope=1", nil)
}
