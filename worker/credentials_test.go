package worker

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/egress"
)

// carrying is a subscription of an account whose requests carry headers.
func carrying(t *testing.T, account, url, headers, auth string) *subscription {
	t.Helper()
	s := &subscription{format: standardFormat, url: url, timeout: 10 * time.Second, keys: [][]byte{[]byte("k")}}
	bytesOf := func(text string) []byte {
		if text == "" {
			return nil
		}
		return []byte(text)
	}
	if err := s.carry(account, bytesOf(headers), bytesOf(auth)); err != nil {
		t.Fatal(err)
	}
	return s
}

// One receiver, one request after the other, so that every connection is idle when the next request looks for one.
func TestConnectionsAreNotSharedWhereCredentialsDiffer(t *testing.T) {
	t.Parallel()
	var from string
	var carried map[string]map[string]bool // connection → what it carried
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		from = r.RemoteAddr
		if carried[from] == nil {
			carried[from] = map[string]bool{}
		}
		carried[from][r.Header.Get("Authorization")+r.Header.Get("X-Token")] = true
	}))
	defer server.Close()
	carried = map[string]map[string]bool{}
	client := newClient(testClientConfig())
	defer client.close()
	ask := func(s *subscription) string {
		t.Helper()
		if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeOK {
			t.Fatal(o.word)
		}
		return from
	}
	none, alsoNone := carrying(t, "a", server.URL, "", ""), carrying(t, "b", server.URL+"/other", "", "")
	mine, mineAgain := carrying(t, "a", server.URL, `{"X-Token":"1"}`, ""), carrying(t, "a", server.URL, `{"X-Token":"1"}`, "")
	others := []*subscription{
		none, carrying(t, "b", server.URL, `{"X-Token":"1"}`, ""), carrying(t, "a", server.URL, `{"X-Token":"2"}`, ""), carrying(t, "a", server.URL, "", "Basic dTpw"),
		carrying(t, "a", server.URL, `{"X-Token":"1"}`, "Basic dTpw"), carrying(t, "b", server.URL, "", "Bearer t"),
	}
	if ask(none) != ask(alsoNone) {
		t.Error("connections without credentials are not used again")
	}
	first := ask(mine)
	if ask(mineAgain) != first {
		t.Error("the same credentials of the same account do not use their connection again")
	}
	seen := map[string]bool{first: true}
	for i, s := range others {
		connection := ask(s)
		if seen[connection] {
			t.Errorf("%d: a connection is shared", i)
		}
		seen[connection] = true
	}
	if ask(mine) != first {
		t.Error("its connection is not kept while others come")
	}
	for connection, values := range carried {
		if len(values) != 1 {
			t.Errorf("%s carried %v", connection, values)
		}
	}
}

// A thousand subscriptions with credentials of their own keep no more idle connections than the worker may have.
func TestConnectionsWithCredentialsAreBounded(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	open := map[string]bool{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = connections(&mu, open)
	server.Start()
	defer server.Close()
	cfg := testClientConfig()
	cfg.MaxInFlight = 20
	client := newClient(cfg)
	for i := range 300 {
		if o := client.attempt(t.Context(), carrying(t, "a", server.URL, fmt.Sprintf(`{"X-Token":"%d"}`, i), ""), testDelivery()); o.word != outcomeOK {
			t.Fatal(o.word)
		}
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(open) }
	dbtest.Eventually(t, "connections beyond twice the bound of requests are closed", func() bool { return count() <= 2*cfg.MaxInFlight })
	client.transports.mu.Lock()
	scopes, counted := client.transports.byUse.Len(), client.transports.connections.Load()
	if len(client.transports.scopes) != scopes || scopes > 2*cfg.MaxInFlight || scopes < cfg.MaxInFlight || counted > int64(2*cfg.MaxInFlight) {
		t.Errorf("%d transports, %d in the map, %d connections counted", scopes, len(client.transports.scopes), counted)
	}
	client.transports.mu.Unlock()
	client.close()
	dbtest.Eventually(t, "all are closed at the end", func() bool { return count() == 0 && client.transports.connections.Load() == 0 })
}

func TestAnUnusedTransportGoes(t *testing.T) {
	t.Parallel()
	transports := newTransports(newTransport(testClientConfig(), egress.NewDialer(egress.Policy{})), 100)
	defer transports.close()
	one, two := transports.of(scope{1}), transports.of(scope{2})
	if one == two || transports.of(scope{1}) != one || transports.of(scope{}) != transports.shared {
		t.Error("transports are mixed up")
	}
	for _, element := range transports.scopes {
		element.Value.(*scopedTransport).usedAt = time.Now().Add(-3 * transports.shared.IdleConnTimeout)
	}
	if transports.of(scope{1}) != one || len(transports.scopes) != 1 || transports.byUse.Len() != 1 {
		t.Errorf("%d transports are left", len(transports.scopes))
	}
}

func connections(mu *sync.Mutex, open map[string]bool) func(conn net.Conn, state http.ConnState) {
	return func(conn net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateClosed {
			delete(open, conn.RemoteAddr().String())
		} else {
			open[conn.RemoteAddr().String()] = true
		}
	}
}

func TestWhatAReceiverEchoesIsNotKept(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		for _, name := range []string{"X-Token", "X-Env", "Authorization"} {
			fmt.Fprintf(w, "%s: %s\n", name, r.Header.Get(name))
		}
		user, password, _ := r.BasicAuth()
		fmt.Fprintf(w, "decoded %s and %s\n", user, password)
		w.Write([]byte(strings.Repeat(".", 300)))
		w.Write([]byte("top-secret-token"))
	}))
	defer server.Close()
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:pass-word"))
	s := carrying(t, "a", server.URL, `{"X-Token":"top-secret-token","X-Env":"prod"}`, auth)
	for excerpt := range 400 {
		cfg := testClientConfig()
		cfg.ExcerptBytes = excerpt
		client := newClient(cfg)
		o := client.attempt(t.Context(), s, testDelivery())
		client.close()
		for _, hidden := range []string{"top-s", "pass-w", "dXNlcj", "pass-word"} {
			if strings.Contains(string(o.excerpt), hidden) {
				t.Fatalf("%d bytes: %q", excerpt, o.excerpt)
			}
		}
		if excerpt == 399 && !strings.HasPrefix(string(o.excerpt), "X-Token: ***\nX-Env: prod\nAuthorization: ***\ndecoded user and ***\n...") {
			t.Errorf("%q", o.excerpt)
		}
	}
}

func (b *bundle) credentials(t *testing.T, id uuid.UUID, kind, plain string) {
	t.Helper()
	b.Exec(t, `INSERT INTO mailhook.subscription_credentials (subscription_id, kind, key_id, sealed) VALUES ($1, $2, $3, $4)
		ON CONFLICT (subscription_id, kind) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed`, id, kind, b.keyring.First().ID, b.keyring.First().Seal(kind, id, []byte(plain)))
}

func TestCredentialsAreSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "header_names = '{X-A}', auth_type = 'basic'")
	b.credentials(t, id, db.SealedHeaders, `{"X-A":"1"}`)
	b.credentials(t, id, db.SealedAuth, "Basic dTpw")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	r := b.waitFor(t, 1)[0]
	if user, password, _ := (&http.Request{Header: r.Header}).BasicAuth(); r.Problem != nil || r.Header.Get("X-A") != "1" || user != "u" || password != "p" {
		t.Error(r.Problem, r.Header)
	}
}

// What cannot be opened parks one subscription: no request, no_secret on its schedule, its circuit opens, and the others
// do not notice. Mended, it goes on.
func TestWhatDoesNotOpenParksOneSubscription(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ harm, says string }{
		"secrets swapped": {`UPDATE mailhook.subscription_secrets AS x SET sealed = y.sealed FROM mailhook.subscription_secrets AS y
			WHERE x.subscription_id = $1 AND y.subscription_id = $2`, "does not open"},
		"credentials swapped": {`UPDATE mailhook.subscription_credentials AS x SET sealed = y.sealed FROM mailhook.subscription_credentials AS y
			WHERE x.subscription_id = $1 AND y.subscription_id = $2 AND x.kind = y.kind`, "its headers"},
		"credentials as another kind": {`WITH moved AS (UPDATE mailhook.subscriptions SET auth_type = 'bearer', header_names = '{}' WHERE id = $1 AND $2::uuid IS NOT NULL)
			UPDATE mailhook.subscription_credentials SET kind = 'auth' WHERE subscription_id = $1`, "its auth"},
		"headers as a secret": {`UPDATE mailhook.subscription_secrets AS x SET sealed = c.sealed FROM mailhook.subscription_credentials AS c
			WHERE x.subscription_id = $1 AND c.subscription_id = $1 AND $2::uuid IS NOT NULL`, "does not open"},
		"cut short":   {"UPDATE mailhook.subscription_secrets SET sealed = substr(sealed, 1, 20) WHERE subscription_id = $1 AND $2::uuid IS NOT NULL", "does not open"},
		"empty":       {"UPDATE mailhook.subscription_secrets SET sealed = '' WHERE subscription_id = $1 AND $2::uuid IS NOT NULL", "too short"},
		"unknown key": {"UPDATE mailhook.subscription_secrets SET key_id = 'deadbeef' WHERE subscription_id = $1 AND $2::uuid IS NOT NULL", "deadbeef"},
		"unknown key of an old secret": {`INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed, expires_at)
			SELECT $1, 'deadbeef', sealed, now() + interval '1 hour' FROM mailhook.subscription_secrets WHERE subscription_id = $2`, "deadbeef"},
		"credentials gone": {"DELETE FROM mailhook.subscription_credentials WHERE subscription_id = $1 AND $2::uuid IS NOT NULL", "are not there"},
		"secret gone":      {"DELETE FROM mailhook.subscription_secrets WHERE subscription_id = $1 AND $2::uuid IS NOT NULL", "no signing secret"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 3, circuit_after = '0 s', probe_pause = '100 ms', longest_probe_pause = '100 ms'")
			var log lockedBuffer
			cfg := b.config()
			cfg.Log = log.logger()
			const set = "retry_preset = NULL, retry_jitter = 0, retry_schedule = array_fill('1 s'::interval, '{50}'), header_names = '{X-A}'"
			harmed, healthy := b.subscribe(t, "/harmed", "email", set), b.subscribe(t, "/healthy", "email", set)
			b.credentials(t, harmed, db.SealedHeaders, `{"X-A":"of harmed"}`)
			b.credentials(t, healthy, db.SealedHeaders, `{"X-A":"of healthy"}`)
			b.Exec(t, "CREATE TABLE kept AS SELECT * FROM mailhook.subscription_secrets; CREATE TABLE kept_credentials AS SELECT * FROM mailhook.subscription_credentials")
			b.Exec(t, c.harm, harmed, healthy)
			b.run(t, cfg)
			for range 4 {
				b.Exec(t, "SELECT mailhook.emit('email.sent')")
			}
			for _, r := range b.waitFor(t, 4) {
				if r.Path != "/healthy" || r.Problem != nil || r.Header.Get("X-A") != "of healthy" {
					t.Fatal(r.Path, r.Problem, r.Header)
				}
			}
			dbtest.Eventually(t, "the circuit of the harmed one opens, and probes go on without a request", func() bool {
				return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM mailhook.subscription_health WHERE subscription_id = $1 AND opened_at IS NOT NULL AND failed_probes > 0 AND last_outcome = 'no_secret')", harmed)
			})
			if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE subscription_id = $1 AND (outcome <> 'no_secret' OR status_code IS NOT NULL)", harmed); n != 0 {
				t.Errorf("%d attempts ended otherwise", n)
			}
			if len(b.waitFor(t, 4)) != 4 {
				t.Error("a request was made for the harmed one")
			}
			if text := log.String(); !strings.Contains(text, c.says) || !strings.Contains(text, db.FormatID(db.SubscriptionPrefix, harmed)) || strings.Contains(text, db.FormatID(db.SubscriptionPrefix, healthy)) ||
				strings.Contains(text, "of harmed") || strings.Count(text, "cannot be opened") > 1 {
				t.Errorf("the log says\n%s", text)
			}
			// Mended by hand; any change of the subscription makes workers read it at once.
			b.Exec(t, `DELETE FROM mailhook.subscription_secrets; INSERT INTO mailhook.subscription_secrets SELECT * FROM kept;
				DELETE FROM mailhook.subscription_credentials; INSERT INTO mailhook.subscription_credentials SELECT * FROM kept_credentials;
				UPDATE mailhook.subscriptions SET auth_type = NULL, header_names = '{X-A}'`)
			b.settled(t)
			for _, r := range b.waitFor(t, 8) {
				if r.Problem != nil {
					t.Error(r.Path, r.Problem)
				}
			}
		})
	}
}

// A worker that slept through a rotation, and lacks the key, gets no heartbeat and so starts nothing; no attempt is burned.
func TestAWorkerWithoutTheMasterKeyStandsStill(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var log lockedBuffer
	cfg := b.config()
	cfg.Log = log.logger()
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, cfg)
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil })
	own := dbtest.QueryOne[string](t, b.DB, "SELECT secret_key_id FROM mailhook.installation")
	b.Exec(t, "UPDATE mailhook.installation SET secret_key_id = 'deadbeef'")
	dbtest.Eventually(t, "it says what it lacks, and is not ready", func() bool {
		return strings.Contains(log.String(), "lacks the master key deadbeef") && w.Ready() != nil
	})
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.Exec(t, "UPDATE mailhook.installation SET secret_key_id = $1", own)
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts"); n != 1 {
		t.Errorf("%d attempts", n)
	}
}

// Values that are part of one another, or overlap: nothing of any of them is left, at the end of the excerpt neither.
func TestHiddenValuesMayOverlap(t *testing.T) {
	t.Parallel()
	hidden := hiddenIn(map[string]string{"X-A": "tenant", "X-B": "tenant-s3cret", "X-C": "s3cret-of-another"})
	for _, c := range []struct{ excerpt, want string }{
		{"A: tenant, B: tenant-s3cret.", "A: ***, B: ***."},
		{"tenant-s3cret-of-another!", "***!"},
		{"cut: tenant-s3c", "cut: ***"},
		{"cut: tenant-s3cret-of", "cut: ***"},
		{"cut: tena", "cut: ***"},
		{"tenanttenant", "***"},
		{"nothing of ours: ten", "nothing of ours: ten"},
		{"", ""},
	} {
		for range 10 { // in every order of the values
			rand.Shuffle(len(hidden), func(i, j int) { hidden[i], hidden[j] = hidden[j], hidden[i] })
			if got := hide([]byte(c.excerpt), hidden); string(got) != c.want {
				t.Errorf("%q: %q, want %q", c.excerpt, got, c.want)
			}
		}
	}
}
