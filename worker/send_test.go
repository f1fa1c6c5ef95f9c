package worker

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/format"
)

// raw serves connections by f, for answers that net/http would not give.
func raw(t *testing.T, f func(net.Conn, *http.Request)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				io.Copy(io.Discard, r.Body)
				f(c, r)
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/"
}

// forever keeps writing s until the other side has enough.
func forever(s string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) {
		for {
			if _, err := io.WriteString(c, s); err != nil {
				return
			}
		}
	}
}

func answer(s string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) { io.WriteString(c, s) }
}

// hang answers s and then keeps the connection open until the client closes it.
func hang(s string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) {
		io.WriteString(c, s)
		io.Copy(io.Discard, c)
	}
}

func refusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String() + "/"
}

func TestWhatReceiversDo(t *testing.T) {
	t.Parallel()
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = discardLog()
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	plain.Config.ErrorLog = discardLog()
	t.Cleanup(plain.Close)
	silent := raw(t, hang(""))

	for _, c := range []struct {
		name, url, want string
		status          int
		excerpt         string
	}{
		{"200", raw(t, answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")), outcomeOK, 200, "ok"},
		{"204", raw(t, answer("HTTP/1.1 204 No Content\r\n\r\n")), outcomeOK, 204, ""},
		{"redirect is not followed", raw(t, answer("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")), outcomeHTTP3xx, 302, ""},
		{"404", raw(t, answer("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope")), outcomeHTTP4xx, 404, "nope"},
		{"410", raw(t, answer("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")), outcomeHTTP410, 410, ""},
		{"429", raw(t, answer("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")), outcomeHTTP429, 429, ""},
		{"503", raw(t, answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")), outcomeHTTP5xx, 503, ""},
		{"999", raw(t, answer("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n")), outcomeBadResponse, 999, ""},
		{"101 and then silence", raw(t, hang("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")), outcomeHTTP1xx, 101, ""},
		{"103 before 200", raw(t, answer("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")), outcomeHTTP1xx, 0, ""},
		{"endless 1xx", raw(t, forever("HTTP/1.1 100 Continue\r\n\r\n")), outcomeHTTP1xx, 0, ""},
		{"endless headers", raw(t, func(c net.Conn, r *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			forever("X-Junk: "+strings.Repeat("j", 1000)+"\r\n")(c, r)
		}), outcomeBadResponse, 0, ""},
		{"endless body", raw(t, func(c net.Conn, r *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			forever("abcdefgh")(c, r)
		}), outcomeOK, 200, strings.Repeat("abcdefgh", 512)},
		{"garbage", raw(t, answer("SSH-2.0-OpenSSH_9.2\r\n")), outcomeBadResponse, 0, ""},
		{"nothing, and closed", raw(t, answer("")), outcomeReset, 0, ""},
		{"half a status line", raw(t, answer("HTTP/1.1 2")), outcomeBadResponse, 0, ""},
		{"silence", silent, outcomeResponseTimeout, 0, ""},
		{"body never ends", raw(t, hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")), outcomeOK, 200, "abc"},
		{"compressed stays compressed", raw(t, answer("HTTP/1.1 500 Oops\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\xff")), outcomeHTTP5xx, 500, "\x1f\x8b\x00\xff"},
		{"nobody listens", refusedAddress(t), outcomeRefused, 0, ""},
		{"unknown host", "http://no-such-host.invalid/", outcomeDNS, 0, ""},
		{"unknown authority", untrusted.URL, outcomeTLS, 0, ""},
		{"TLS to a plain port", strings.Replace(plain.URL, "http:", "https:", 1), outcomeTLS, 0, ""},
		{"private address", "http://10.1.2.3/", outcomeBlockedAddress, 0, ""},
		{"metadata service", "http://169.254.169.254/latest/", outcomeBlockedAddress, 0, ""},
		{"IPv6 loopback", "http://[::1]:9/", outcomeBlockedAddress, 0, ""},
		{"unspecified", "http://0.0.0.0:9/", outcomeBlockedAddress, 0, ""},
		{"URL that does not parse", "http://[", outcomeRenderFailed, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client := newClient(testClientConfig())
			defer client.close()
			// What hangs does so until then; all else has what a busy machine may need.
			hangs, timeout := c.name == "silence" || c.name == "body never ends", time.Minute
			if hangs {
				timeout = 5 * time.Second
			}
			s := &subscription{format: standardFormat, url: c.url, timeout: timeout, keys: [][]byte{[]byte("k")}}
			o := client.attempt(t.Context(), s, testDelivery())
			if o.word != c.want || o.statusCode != c.status || string(o.excerpt) != c.excerpt {
				t.Errorf("%s %d %q, want %s %d %q", o.word, o.statusCode, o.excerpt, c.want, c.status, c.excerpt)
			}
			if hangs && o.duration > 2*timeout {
				t.Errorf("took %v", o.duration)
			}
		})
	}
}

// What is kept of a long answer.
func TestExcerpts(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(strings.Repeat("x", 100<<10))) }))
	defer server.Close()
	for _, kept := range []int{0, DefaultConfig().ExcerptBytes, 64 << 10} {
		cfg := testClientConfig()
		cfg.ExcerptBytes = kept
		client := newClient(cfg)
		o := client.attempt(t.Context(), carrying(t, "a", server.URL, "", ""), testDelivery())
		client.close()
		if len(o.excerpt) != kept || !o.delivered() {
			t.Errorf("%s, %d bytes kept, want %d", o.word, len(o.excerpt), kept)
		}
	}
}

func testClientConfig() Config {
	cfg := DefaultConfig()
	cfg.AllowInsecureHTTP = true
	cfg.AllowCIDR = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

var standardFormat, _ = format.Find("standard")

func testDelivery() *delivery {
	return &delivery{event: &event{
		id:    db.EventID{InsertedAt: time.UnixMicro(1), ID: 1, Installation: "00000000"},
		Event: format.Event{Type: "email.sent", OccurredAt: time.UnixMicro(1), Data: []byte("{}")},
	}}
}

func TestLoopbackIsRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	cfg := DefaultConfig()
	cfg.AllowInsecureHTTP = true
	client := newClient(cfg)
	defer client.close()
	// Spellings that a check of the URL would let pass.
	for _, host := range []string{"127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "[::ffff:127.0.0.1]", "[::]", "0"} {
		s := &subscription{format: standardFormat, url: "http://" + host + ":" + port + "/", timeout: time.Minute, keys: [][]byte{[]byte("k")}}
		o := client.attempt(t.Context(), s, testDelivery())
		if o.word != outcomeBlockedAddress && o.word != outcomeDNS && o.word != outcomeRenderFailed && o.word != outcomeBadResponse {
			t.Errorf("%s: %s", host, o.word)
		}
	}
}

func TestHTTPNeedsLeave(t *testing.T) {
	t.Parallel()
	cfg := testClientConfig()
	cfg.AllowInsecureHTTP = false
	client := newClient(cfg)
	defer client.close()
	s := &subscription{format: standardFormat, url: raw(t, answer("HTTP/1.1 200 OK\r\n\r\n")), timeout: time.Minute, keys: [][]byte{[]byte("k")}}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeBlockedAddress {
		t.Error(o.word)
	}
}

func TestNoSecretNoRequest(t *testing.T) {
	t.Parallel()
	client := newClient(testClientConfig())
	defer client.close()
	asked := make(chan struct{}, 1)
	s := &subscription{format: standardFormat, url: raw(t, func(c net.Conn, _ *http.Request) { asked <- struct{}{} }), timeout: time.Second}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeNoSecret || len(asked) != 0 {
		t.Error(o.word, len(asked))
	}
}

// Customers' own secrets are used as they are; whsec_ ones are base64; during a rotation both sign, and X-Signature is
// the newest's. The receiver is the official library.
func TestSignaturesVerify(t *testing.T) {
	t.Parallel()
	for _, newest := range []string{testSecret, "a secret of sixteen characters or more", "ein Geheimnis mit Umlauten äöü"} {
		for _, older := range []string{"", "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQ="} {
			keys := [][]byte{mustKey(t, newest)}
			if older != "" {
				keys = append(keys, mustKey(t, older))
			}
			for _, known := range []string{newest, older} {
				var got receiver.Receipt
				server := httptest.NewServer(&receiver.Receiver{Secret: func(string) string { return known }, Answer: func(_ http.ResponseWriter, r receiver.Receipt) { got = r }})
				client := newClient(testClientConfig())
				s := &subscription{format: standardFormat, url: server.URL, timeout: time.Minute, keys: keys}
				if known == "" {
					server.Close()
					continue
				}
				client.attempt(t.Context(), s, testDelivery())
				client.close()
				server.Close()
				switch {
				case known == newest && got.Problem != nil:
					t.Errorf("newest %q: %v", newest, got.Problem)
				case known == older && (got.Problem == nil || got.Problem.Error() != "X-Signature does not match"):
					t.Errorf("older %q: %v", older, got.Problem)
				}
				if agent := got.Header.Get("User-Agent"); !strings.HasPrefix(agent, "mailhook/") {
					t.Error(agent)
				}
			}
		}
	}
}

func mustKey(t *testing.T, secret string) []byte {
	t.Helper()
	key, err := format.SigningKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestCustomHeadersDoNotReplaceOurs(t *testing.T) {
	t.Parallel()
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer server.Close()
	client := newClient(testClientConfig())
	defer client.close()
	s := &subscription{format: standardFormat, url: server.URL, timeout: time.Minute, keys: [][]byte{[]byte("k")}, headers: map[string]string{"Authorization": "Bearer x", "Content-Type": "text/plain", "Webhook-Id": "forged"}}
	client.attempt(t.Context(), s, testDelivery())
	if got.Get("Authorization") != "Bearer x" || got.Get("Content-Type") != "application/json" || got.Get("Webhook-Id") == "forged" || got.Get("Idempotency-Key") != "" {
		t.Error(got)
	}
}

// Nothing that is stored or logged about a failed attempt names the URL or its secrets.
func TestNoSecretInWhatIsStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var log lockedBuffer
	cfg := b.config()
	cfg.Log = log.logger()
	id := b.subscribe(t, "/", "email", "retry_schedule = '{1s}'")
	b.Exec(t, "UPDATE mailhook.subscriptions SET url = $2 WHERE id = $1", id, "http://user-s3cret@no-such-host.invalid/path-s3cret?token=s3cret")
	b.run(t, cfg)
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.settled(t)
	stored := dbtest.QueryOne[string](t, b.DB, `SELECT coalesce(string_agg(a::text, ''), '') || (SELECT coalesce(string_agg(d::text, ''), '') FROM mailhook.dead_letters AS d)
		|| (SELECT coalesce(string_agg(h::text, ''), '') FROM mailhook.subscription_health AS h) FROM mailhook.attempts AS a`)
	if !strings.Contains(stored, "dns") || strings.Contains(stored+log.String(), "s3cret") {
		t.Errorf("%s\n%s", stored, log.String())
	}
}

func TestTLSVersions(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	server.Config.ErrorLog = discardLog()
	server.StartTLS()
	defer server.Close()
	client := newClient(testClientConfig())
	defer client.close()
	s := &subscription{format: standardFormat, url: server.URL, timeout: time.Minute, keys: [][]byte{[]byte("k")}}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeTLS {
		t.Error(fmt.Sprint(o.word))
	}
}
