package worker

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

// A hostile receiver is what it does with each connection, and what the attempt must be recorded as. What it does ends
// when the worker closes the connection, and not by itself.
type hostile struct {
	name  string
	tls   bool // the worker speaks TLS to it
	serve func(net.Conn)
	want  string
	// status is what came; 0: none.
	status  int
	excerpt string
	large   bool // the request does not fit into the buffers of a connection
	hangs   bool // the attempt lasts until its timeout
	kept    bool // the connection is good for another request
}

// timeout is the subscription's. What does not hang has all the time that a busy machine may need.
func (h hostile) timeout() time.Duration {
	if h.hangs {
		return 10 * time.Second
	}
	return time.Minute
}

// hostiles are the receivers that a worker must survive.
func hostiles(authority *authority) []hostile {
	const head = "HTTP/1.1 200 OK\r\n"
	const ok = head + "Content-Length: 2\r\n\r\nok"
	chunked := head + "Transfer-Encoding: chunked\r\n\r\n"
	return []hostile{
		{name: "one endless header", serve: asked(repeat(head+"X-Junk: ", "jjjjjjjj")), want: outcomeBadResponse},
		{name: "endless headers", serve: asked(repeat(head, "X-Junk: jjjjjjjj\r\n")), want: outcomeBadResponse},
		{name: "a header value over 16 KiB", serve: asked(write(head + "X-Junk: " + strings.Repeat("j", 17<<10) + "\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse},
		{name: "1 MB of headers", serve: asked(write(head + "X-Junk: " + strings.Repeat("j", 1<<20) + "\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse},
		{name: "a flood of cookies", serve: asked(repeat(head, "Set-Cookie: a=b; Path=/\r\n")), want: outcomeBadResponse},
		{name: "headers in drips", serve: asked(drip(head+"X-Drip: ", "a")), want: outcomeResponseTimeout, hangs: true},
		{name: "a status line in drips", serve: asked(drip("HTTP/1.1 20", " ")), want: outcomeResponseTimeout, hangs: true},
		{name: "never answers", serve: asked(write("")), want: outcomeResponseTimeout, hangs: true},
		{name: "never reads", serve: stay, want: outcomeResponseTimeout, large: true, hangs: true},
		{name: "closes at once", serve: depart, want: outcomeReset},
		{name: "closes when asked", serve: asked(depart), want: outcomeReset},
		{name: "resets when asked", serve: asked(reset), want: outcomeReset},
		{name: "resets in the body", serve: asked(then(write(head+"Content-Length: 10\r\n\r\nabc"), reset)), want: outcomeOK, status: 200, excerpt: "abc"},
		{name: "half-closes before the answer", serve: asked(halfClose("")), want: outcomeReset},
		{name: "half-closes in the body", serve: asked(halfClose(head + "Content-Length: 10\r\n\r\nabc")), want: outcomeOK, status: 200, excerpt: "abc"},
		{name: "half-closes in chunks", serve: asked(halfClose(chunked + "3\r\nabc\r\n")), want: outcomeOK, status: 200, excerpt: "abc"},
		{name: "closes slowly", serve: asked(write("HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")), want: outcomeHTTP5xx, status: 500, excerpt: "ok"},

		{name: "garbage", serve: asked(repeat("", "\x00\x01\x02\xff\r\n")), want: outcomeBadResponse},
		{name: "garbage without a line", serve: asked(repeat("", "\xff")), want: outcomeBadResponse},
		{name: "HTTP/0.9", serve: asked(write("<html>hello</html>\r\n")), want: outcomeBadResponse},
		{name: "HTTP/2 preface", serve: asked(write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")), want: outcomeBadResponse},
		{name: "TLS bytes on a plain port", serve: asked(write("\x15\x03\x01\x00\x02\x02\x46\r\n")), want: outcomeBadResponse},
		{name: "a status of 000", serve: asked(write("HTTP/1.1 000 Odd\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse, kept: true},
		{name: "a status of 999", serve: asked(write("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse, status: 999, kept: true},
		{name: "a negative status", serve: asked(write("HTTP/1.1 -20 Odd\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse},
		{name: "a long status", serve: asked(write("HTTP/1.1 2000000000000 Odd\r\nContent-Length: 0\r\n\r\n")), want: outcomeBadResponse},

		{name: "endless 100", serve: asked(repeat("", "HTTP/1.1 100 Continue\r\n\r\n")), want: outcomeHTTP1xx},
		{name: "endless 102", serve: asked(repeat("", "HTTP/1.1 102 Processing\r\n\r\n")), want: outcomeHTTP1xx},
		{name: "endless 103", serve: asked(repeat("", "HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n")), want: outcomeHTTP1xx},
		{name: "103 in drips", serve: asked(drip("HTTP/1.1 103 Early Hints\r\nLink: ", "a")), want: outcomeResponseTimeout, hangs: true},
		{name: "101 and an endless stream", serve: asked(repeat("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "streaming")), want: outcomeHTTP1xx, status: 101},
		{name: "101 and drips", serve: asked(drip("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "a")), want: outcomeHTTP1xx, status: 101},
		{name: "101 and silence", serve: asked(write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")), want: outcomeHTTP1xx, status: 101},

		{name: "an endless body", serve: asked(repeat(head+"\r\n", "abcdefgh")), want: outcomeOK, status: 200, excerpt: strings.Repeat("abcdefgh", 512)},
		{name: "a body in drips", serve: asked(drip("HTTP/1.1 500 Oops\r\n\r\n", "a")), want: outcomeHTTP5xx, status: 500, excerpt: "…", hangs: true},
		{name: "a body in drips, behind the excerpt", serve: asked(drip("HTTP/1.1 500 Oops\r\n\r\n"+strings.Repeat("a", 4096), "b")), want: outcomeHTTP5xx, status: 500, excerpt: strings.Repeat("a", 4096), hangs: true},
		{name: "204 with a body", serve: asked(repeat("HTTP/1.1 204 No Content\r\n\r\n", "surplus")), want: outcomeOK, status: 204},
		{name: "shorter than its Content-Length", serve: asked(write(head + "Content-Length: 10\r\n\r\nabc")), want: outcomeOK, status: 200, excerpt: "abc", hangs: true},
		{name: "longer than its Content-Length", serve: asked(write(head + "Content-Length: 2\r\n\r\nabcdefgh")), want: outcomeOK, status: 200, excerpt: "ab"},
		{name: "a huge Content-Length", serve: asked(write(head + "Content-Length: 9223372036854775807\r\n\r\nabc")), want: outcomeOK, status: 200, excerpt: "abc", hangs: true},
		{name: "a negative Content-Length", serve: asked(write(head + "Content-Length: -1\r\n\r\nabc")), want: outcomeBadResponse},
		{name: "two Content-Lengths", serve: asked(write(head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc")), want: outcomeBadResponse},
		{name: "chunks of garbage", serve: asked(write("HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc")), want: outcomeHTTP5xx, status: 500},
		{name: "endless chunks", serve: asked(repeat(chunked, "1\r\na\r\n")), want: outcomeOK, status: 200, excerpt: strings.Repeat("a", 4096)},
		{name: "a huge chunk", serve: asked(write(chunked + "7fffffffffffffff\r\nabc")), want: outcomeOK, status: 200, excerpt: "abc", hangs: true},
		{name: "a chunk extension without end", serve: asked(repeat(chunked+"1;x=", "yyyyyyyy")), want: outcomeOK, status: 200},
		{name: "a flood of trailers", serve: asked(repeat(chunked+"1\r\na\r\n0\r\n", "X-Trailer: tttttttt\r\n")), want: outcomeOK, status: 200, excerpt: "a"},
		{name: "an unknown Transfer-Encoding", serve: asked(write(head + "Transfer-Encoding: gzip\r\n\r\nabc")), want: outcomeBadResponse},
		{name: "a gzip bomb", serve: asked(write(head + "Content-Encoding: gzip\r\nContent-Length: " + fmt.Sprint(len(bomb())) + "\r\n\r\n" + bomb())), want: outcomeOK, status: 200, excerpt: bomb()[:4096]},

		{name: "an answer before the request is read", serve: then(glance, then(write(ok), stay)), want: outcomeOK, status: 200, excerpt: "ok", large: true},
		{name: "a second answer unasked", serve: asked(write(ok + "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")), want: outcomeOK, status: 200, excerpt: "ok"},
		{name: "endless answers", serve: asked(repeat("", ok)), want: outcomeOK, status: 200, excerpt: "ok"},
		{name: "redirects to itself", serve: asked(write("HTTP/1.1 307 Again\r\nLocation: /\r\nRefresh: 0; url=/\r\nContent-Length: 0\r\n\r\n")), want: outcomeHTTP3xx, status: 307, kept: true},

		{name: "TLS: plain HTTP", tls: true, serve: then(write("HTTP/1.1 400 Bad Request\r\n\r\n"), stay), want: outcomeTLS},
		{name: "TLS: garbage", tls: true, serve: then(write("\x16\x03\x03\xff\xff"+strings.Repeat("\xff", 1<<16)), stay), want: outcomeTLS},
		{name: "TLS: silence", tls: true, serve: stay, want: outcomeConnectTimeout, hangs: true},
		{name: "TLS: a handshake in drips", tls: true, serve: drip("\x16\x03\x03\x40\x00", "\x02"), want: outcomeConnectTimeout, hangs: true},
		{name: "TLS: closes in the handshake", tls: true, serve: depart, want: outcomeReset},
		{name: "TLS: a stranger's certificate", tls: true, serve: overTLS(newAuthority().config(1), asked(write(ok))), want: outcomeTLS},
		{name: "TLS: a chain of 40 certificates", tls: true, serve: overTLS(authority.config(40), asked(write(ok))), want: outcomeOK, status: 200, excerpt: "ok", kept: true},
		{name: "TLS: a chain of 2000 certificates", tls: true, serve: overTLS(authority.config(2000), asked(write(ok))), want: outcomeTLS},
		{name: "TLS: asks for a client certificate", tls: true, serve: overTLS(authority.demanding(), asked(write(ok))), want: outcomeTLS},
		{name: "TLS: an answer in drips", tls: true, serve: overTLS(authority.config(1), asked(drip("HTTP/1.1 2", "0"))), want: outcomeResponseTimeout, hangs: true},
		{name: "TLS: an endless header", tls: true, serve: overTLS(authority.config(1), asked(repeat(head+"X-Junk: ", "jjjjjjjj"))), want: outcomeBadResponse},
		{name: "TLS: h2 and nothing else", tls: true, serve: overTLS(authority.only("h2"), asked(write("\x00\x00\x00\x04\x00\x00\x00\x00\x00\r\n"))), want: outcomeBadResponse},
	}
}

// Every one of them gets the outcome that fits, its connection is closed by the worker, and no goroutine stays. Not
// beside other tests: goroutines are counted.
func TestHostileReceivers(t *testing.T) { //nolint:paralleltest // as above
	authority := newAuthority()
	before := httpGoroutines()
	var all sync.WaitGroup
	for _, h := range hostiles(authority) {
		url, open, release := h.listen(t)
		all.Go(func() {
			h.attempt(t, authority, url, release)
			dbtest.Eventually(t, "the connection is closed: "+h.name, func() bool { return open.Load() == 0 })
		})
	}
	all.Wait()
	dbtest.Eventually(t, "the goroutines of net/http return", func() bool { return httpGoroutines() <= before })
}

// attempt makes one, and holds it against what it should be.
func (h hostile) attempt(t *testing.T, authority *authority, url string, release func()) {
	client := newClient(testClientConfig())
	client.transports.shared.TLSClientConfig = authority.trusted()
	client.transports.shared.TLSHandshakeTimeout = time.Hour // the attempt's own end must do
	s := &subscription{format: standardFormat, url: url, timeout: h.timeout(), keys: [][]byte{[]byte("k")}}
	d := testDelivery()
	if h.large {
		d.event.Data = []byte(`{"padding":"` + strings.Repeat("x", 8<<20) + `"}`)
	}
	ended := make(chan outcome, 1)
	go func() { ended <- client.attempt(t.Context(), s, d) }()
	dbtest.Eventually(t, "the attempt ends: "+h.name, func() bool { return len(ended) == 1 })
	o := <-ended
	release()
	if o.word != h.want || o.statusCode != h.status {
		t.Errorf("%s: %s %d, want %s %d", h.name, o.word, o.statusCode, h.want, h.status)
	}
	if got := string(o.excerpt); got != h.excerpt && (h.excerpt != "…" || strings.Trim(got, "a") != "") {
		t.Errorf("%s: excerpt %.80q of %d bytes, want %.80q of %d", h.name, got, len(got), h.excerpt, len(h.excerpt))
	}
	if h.kept {
		client.close()
	}
}

// The same through a worker: each delivery ends, each attempt is recorded, and no slot stays taken.
func TestAWorkerOutlivesHostileReceivers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	all := hostiles(newAuthority())
	for i, h := range all {
		url, _, _ := h.listen(t)
		id := b.subscribe(t, "/", fmt.Sprintf("email.h%d", i), "retry_schedule = '{1s}'")
		b.Exec(t, "UPDATE mailhook.subscriptions SET url = $2, timeout = $3 WHERE id = $1", id, url, h.timeout())
	}
	w, _ := b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.h' || n, data => json_build_object('padding', repeat('x', 200000))::text) FROM generate_series(0, $1::int) AS n", len(all)-1)
	b.settled(t)
	dbtest.Eventually(t, "no slot is taken", func() bool { return w.leases.held() == 0 })
	for i, h := range all {
		want := h.want
		if h.tls && want != outcomeConnectTimeout && want != outcomeReset {
			want = outcomeTLS // this worker does not know the authority
		}
		got := dbtest.QueryOne[string](t, b.DB, "SELECT coalesce(string_agg(DISTINCT a.outcome, ' '), 'none') FROM mailhook.attempts AS a WHERE a.event_type = $1 AND a.outcome IS NOT NULL", fmt.Sprintf("email.h%d", i))
		if got != want {
			t.Errorf("%s: recorded as %s, want %s", h.name, got, want)
		}
	}
	ends := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT delivery_id) FROM mailhook.attempts WHERE ended_as IS NOT NULL")
	if ends != int64(len(all)) {
		t.Errorf("%d of %d deliveries ended", ends, len(all))
	}
}

// A dial that hangs ends with its attempt; net/http alone would leave it to the dialer.
func TestADialEndsWithItsAttempt(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	client := newClient(testClientConfig())
	defer client.close()
	client.transports.shared.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}
	dialWithinAttempt(client.transports.shared)
	s := &subscription{format: standardFormat, url: "http://127.0.0.1:9/", timeout: time.Second, keys: [][]byte{[]byte("k")}}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeConnectTimeout {
		t.Error(o.word)
	}
	<-ended
}

// A server that could speak HTTP/2 is spoken to in HTTP/1.1.
func TestRequestsAreHTTP1(t *testing.T) {
	t.Parallel()
	authority := newAuthority()
	var protocol atomic.Value
	h := hostile{tls: true, serve: overTLS(authority.only("h2", "http/1.1"), func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			protocol.Store(r.Proto)
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})}
	url, _, _ := h.listen(t)
	client := newClient(testClientConfig())
	defer client.close()
	client.transports.shared.TLSClientConfig = authority.trusted()
	s := &subscription{format: standardFormat, url: url, timeout: time.Minute, keys: [][]byte{[]byte("k")}}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeOK || protocol.Load() != "HTTP/1.1" {
		t.Error(o.word, protocol.Load())
	}
}

// listen serves the receiver's connections, and counts those that are open. release lets those go that do not read.
func (h hostile) listen(t *testing.T) (url string, open *atomic.Int64, release func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(func() { release(); l.Close() })
	open = new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			go func() {
				defer open.Add(-1)
				defer c.Close()
				h.serve(held{c.(*net.TCPConn), released})
			}()
		}
	}()
	scheme := "http://"
	if h.tls {
		scheme = "https://"
	}
	return scheme + l.Addr().String() + "/", open, release
}

// held is a connection of a hostile receiver.
type held struct {
	*net.TCPConn
	released <-chan struct{} // closed when the attempt is over
}

// asked reads a request, does something, and waits for another request or for the worker to close the connection.
func asked(f func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		requests := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			f(c)
		}
	}
}

func then(f, g func(net.Conn)) func(net.Conn) { return func(c net.Conn) { f(c); g(c) } }

func write(s string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, s) } }

// repeat writes head once, and then again and again what follows.
func repeat(head, again string) func(net.Conn) {
	again = strings.Repeat(again, 512)
	return func(c net.Conn) {
		for _, err := io.WriteString(c, head); err == nil; {
			_, err = io.WriteString(c, again)
		}
	}
}

// drip writes head at once, and then something every 100 ms.
func drip(head, again string) func(net.Conn) {
	return func(c net.Conn) {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for _, err := io.WriteString(c, head); err == nil; {
			<-ticker.C
			_, err = io.WriteString(c, again)
		}
	}
}

// stay reads nothing until the attempt is over: only then can it see that the worker has closed the connection.
func stay(c net.Conn) {
	<-c.(held).released
	io.Copy(io.Discard, c)
}

// glance reads so much that the request has begun: an answer before that belongs to none.
func glance(c net.Conn) { io.ReadFull(c, make([]byte, 1)) }

func depart(c net.Conn) { c.Close() }

func reset(c net.Conn) {
	c.(held).SetLinger(0)
	c.Close()
}

// halfClose writes, ends its own direction, and keeps the other open.
func halfClose(s string) func(net.Conn) {
	return func(c net.Conn) {
		io.WriteString(c, s)
		c.(held).CloseWrite()
	}
}

// overTLS shakes hands before what follows.
func overTLS(config *tls.Config, f func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		conn := tls.Server(c, config)
		if conn.Handshake() == nil {
			f(conn)
		}
		io.Copy(io.Discard, c) // until the worker closes it
	}
}

// bomb is what 64 MiB of zeros look like when compressed.
func bomb() string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 64 {
		w.Write(zeros)
	}
	w.Close()
	return b.String()
}

// httpGoroutines is how many goroutines the client side of net/http has.
func httpGoroutines() (n int) {
	stacks := make([]byte, 8<<20)
	for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, "net/http.(*persistConn)") || strings.Contains(stack, "net/http.(*Transport)") {
			n++
		}
	}
	return n
}
