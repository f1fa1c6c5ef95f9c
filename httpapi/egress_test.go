package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"mailhook/db"
	"mailhook/db/egress"
)

func TestEgressAddresses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if got := b.send(t, b.acme, "GET", "/v1/egress", nil); got.status != 200 || got.text != "{\"addresses\":[]}\n" {
		t.Error(got.status, got.text)
	}
	b = setup(t, func(c *Config) {
		c.PublishAddresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("198.51.100.0/28"), netip.MustParsePrefix("2001:db8::1/128")}
	})
	for _, key := range []string{b.acme, b.admin} {
		if got := fmt.Sprint(b.must(t, 200, key, "GET", "/v1/egress", nil)); got != "map[addresses:[203.0.113.7 198.51.100.0/28 2001:db8::1]]" {
			t.Error(got)
		}
	}
}

// http is for accounts that an admin has allowed it, and what had it keeps its URL when that ends.
func TestHTTPByAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	http, https := object{"channel": object{"url": "http://example.com/"}}, object{"channel": object{"url": "https://example.com/"}}
	b.mustFail(t, 422, "channel.url", "invalid_url", b.acme, "POST", "/v1/subscriptions", subscription(http))
	b.mustFail(t, 403, "", "forbidden", b.acme, "PUT", "/v1/accounts/acme", object{"allow_insecure_http": true})
	if got := b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"allow_insecure_http": true}); got["allow_insecure_http"] != true {
		t.Error(got)
	}
	path := "/v1/subscriptions/" + b.create(t, b.acme, http)
	b.create(t, b.admin, object{"account_id": "acme", "channel": object{"url": "http://example.com/"}})
	b.mustFail(t, 422, "channel.url", "invalid_url", b.evil, "POST", "/v1/subscriptions", subscription(http))
	// What is left out stays; null is the default.
	if got := b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": 7}); got["allow_insecure_http"] != true {
		t.Error(got)
	}
	b.must(t, 200, b.acme, "PATCH", path, http)
	if got := b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"allow_insecure_http": nil}); got["allow_insecure_http"] != false || got["limit"] != 7.0 {
		t.Error(got)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"name": "kept"})
	b.mustFail(t, 422, "channel.url", "invalid_url", b.acme, "PATCH", path, http)
	b.must(t, 200, b.acme, "PATCH", path, https)
	b.mustFail(t, 422, "allow_insecure_http", "wrong_type", b.admin, "PUT", "/v1/accounts/acme", object{"allow_insecure_http": "yes"})
}

// The policy of the installation is that of the API, too, and its answers say what to do.
func TestPolicyAtRegistration(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.AllowHosts = []egress.HostPattern{{Name: "hooks.internal", Below: true}, {Name: "mx.internal", Port: 25}}
		c.AllowPorts, c.DenyPorts = []uint16{9200}, []uint16{8081}
	})
	for _, url := range []string{"https://a.hooks.internal/", "https://mx.internal:25/", "https://example.com:9200/", "https://example.com:8443/"} {
		b.create(t, b.acme, object{"channel": object{"url": url}})
	}
	for url, says := range map[string]string{
		"https://hooks.internal/":    "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"https://10.0.0.1/":          "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"https://mx.internal:587/":   "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"https://example.com:8081/":  "must not use a port of mail, databases or administration: use 443, or another one",
		"https://example.com:25/":    "must not use a port of mail, databases or administration: use 443, or another one",
		"http://example.com/":        "must be an https URL; for http an admin sets allow_insecure_http of the account",
		"http://example.com:25/":     "must be an https URL; for http an admin sets allow_insecure_http of the account",
		"http://169.254.169.254/":    "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"http://[::1]:8080/":         "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"http://localhost/":          "must not lead to a private, local or reserved address: give a host that the internet can reach",
		"http://8.8.8.8/":            "must be an https URL; for http an admin sets allow_insecure_http of the account",
		"ftp://10.0.0.1/":            "must be an https URL; for http an admin sets allow_insecure_http of the account",
		"https://example.com:0/":     "must have a port from 1 to 65535",
		"https://example.com:/":      "must have a port from 1 to 65535",
		"example.com":                "must be an absolute URL, like https://example.com/hook",
		"https://u:p@example.com/":   "must not have a user or password: use channel.auth",
		"https://example.com/#":      "must not have a fragment: leave out the # and what follows",
		"https://exämple.com/":       "must have a host name of letters, digits, - and _ (xn-- for others) or an IP address",
		"https://example.com/\\a":    "must not contain spaces, control characters or backslashes: percent-encode them",
		"https://example.com/\u2028": "must not contain spaces, control characters or backslashes: percent-encode them",
	} {
		got := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": object{"url": url}}))
		if want := fmt.Sprintf("[map[code:invalid_url field:channel.url message:%s]]", says); got.status != 422 || fmt.Sprint(got.body["errors"]) != want {
			t.Errorf("%s: %d %v", url, got.status, got.body["errors"])
		}
	}
}

// An account has so many test sends a minute, however many API processes it asks and whoever asks for it.
func TestTestSendsAreLimited(t *testing.T) {
	t.Parallel()
	const limit = 5
	limited := func(c *Config) {
		c.TestsPerMinute, c.NoWorkerAfter, c.TestWait = limit, time.Minute, time.Minute
	}
	b := setup(t, limited)
	other := b.another(t, limited)
	first, second := b.create(t, b.acme, nil), b.create(t, b.acme, nil)
	foreign := b.create(t, b.evil, nil)
	b.answerTests(t)

	var group sync.WaitGroup
	statuses := make([]int, 24)
	for i := range statuses {
		group.Go(func() {
			url, key, id := []string{b.url, other}[i%2], []string{b.acme, b.admin}[i/2%2], []string{first, second}[i/4%2]
			statuses[i] = b.at(url).send(t, key, "POST", "/v1/subscriptions/"+id+"/test", nil).status
		})
	}
	group.Wait()
	slices.Sort(statuses)
	if statuses[limit-1] != 200 || statuses[limit] != 429 || statuses[len(statuses)-1] != 429 {
		t.Fatal(statuses)
	}
	for _, key := range []string{b.acme, b.admin} {
		path := "/v1/subscriptions/" + first + "/test"
		b.mustFail(t, 429, "account_id", "too_many_requests", key, "POST", path, nil)
		r := b.send(t, key, "POST", path, nil)
		if wait, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || wait < 1 || wait > 60 {
			t.Error(r.header)
		}
	}
	b.must(t, 200, b.evil, "POST", "/v1/subscriptions/"+foreign+"/test", nil)
	// A minute later there is room again, for as many as have left it.
	b.Exec(t, "UPDATE mailhook.test_deliveries SET created_at = created_at - interval '1 minute' WHERE id IN (SELECT id FROM mailhook.test_deliveries WHERE account_id = 'acme' ORDER BY created_at LIMIT 2)")
	for _, want := range []int{200, 200, 429} {
		if got := b.send(t, b.acme, "POST", "/v1/subscriptions/"+second+"/test", nil); got.status != want {
			t.Errorf("got %d, want %d: %s", got.status, want, got.text)
		}
	}
}

// another is the address of one more API process on the same database.
func (b *bundle) another(t *testing.T, change func(*Config)) (url string) {
	t.Helper()
	config := DefaultConfig()
	config.Pool, config.Keyring = &db.Pool{Pool: b.Pool}, b.keyring
	change(&config)
	handler, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.Close()
		handler.Close()
	})
	return server.URL
}

// at is the bundle with the requests going to another process.
func (b *bundle) at(url string) *bundle {
	return &bundle{DB: b.DB, url: url, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, logs: b.logs}
}

// answerTests ends every test send as a worker would, woken as one, until the test ends.
func (b *bundle) answerTests(t *testing.T) {
	t.Helper()
	conn, err := b.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "LISTEN mailhook_wakeup"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := conn.Conn().WaitForNotification(ctx); err != nil {
				return
			}
			if _, err := conn.Exec(ctx, `UPDATE mailhook.test_deliveries SET leased_by = mailhook.uuid7(), ended_at = clock_timestamp(),
				duration_ms = 5, status_code = 200, outcome = 'ok' WHERE ended_at IS NULL`); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		conn.Conn().Close(context.Background())
		conn.Release()
	})
}
