package worker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/egress"
)

// errRecorded is what a recorder lets a connection end with.
var errRecorded = errors.New("recorded, and not made")

// A recorder notes the addresses that the policy has let through, and lets those of this machine happen: the others are
// never really connected to.
type recorder struct {
	mu     sync.Mutex
	passed []string
}

func (r *recorder) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	r.mu.Lock()
	r.passed = append(r.passed, address)
	r.mu.Unlock()
	if to, err := netip.ParseAddrPort(address); err == nil && (to.Addr().IsLoopback() || to.Addr().IsUnspecified()) {
		return nil
	}
	return errRecorded
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	passed := r.passed
	r.passed = nil
	return passed
}

// A door is a listener that notes the connections it accepts, and closes them.
type door struct {
	net.Listener
	mu   sync.Mutex
	from []string
}

func openDoor(t *testing.T, address string) *door {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: listener}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.from = append(d.from, conn.RemoteAddr().String())
			d.mu.Unlock()
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-ended
	})
	return d
}

// connections is how many have come so far. It knocks itself, and waits for that: connections are accepted in turn.
func (d *door) connections(t *testing.T) (n int) {
	t.Helper()
	conn, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dbtest.Eventually(t, "the door has heard its own knock", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		n = slices.Index(d.from, conn.LocalAddr().String())
		if n >= 0 {
			d.from = slices.Delete(d.from, n, n+1)
		}
		return n >= 0
	})
	return n
}

func (d *door) port() string {
	_, port, _ := net.SplitHostPort(d.Addr().String())
	return port
}

// egressClient is a worker's client with a policy, with DNS by a server of the test, and what it let through.
func egressClient(t *testing.T, policy egress.Policy, dns *dnsServer) (*client, *recorder) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Policy = policy
	c := newClient(cfg)
	t.Cleanup(c.close)
	r := &recorder{}
	c.dialer.Base.ControlContext, c.dialer.Base.Resolver = r.control, dns.resolver()
	return c, r
}

// send makes one attempt, as a worker would.
func sendTo(t *testing.T, c *client, url string) outcome {
	t.Helper()
	return c.attempt(t.Context(), &subscription{format: standardFormat, url: url, timeout: time.Minute, keys: [][]byte{[]byte("k")}}, testDelivery())
}

// loopbackForAll is a DNS server that leads everything to this machine but public.example.
func loopbackForAll(t *testing.T) *dnsServer {
	return serveDNS(t, func(name string, _ int) dnsAnswer {
		if name == "public.example" || strings.HasSuffix(name, ".public.example") {
			return dnsAnswer{addresses: []string{"8.8.4.4"}}
		}
		return dnsAnswer{addresses: []string{"127.0.0.1", "::1"}}
	})
}

// Every form is refused when it is registered, and if it is stored all the same, no connection is made: none passes the
// policy, and none comes to a listener that is bound to all addresses of this machine. http is allowed, so that it is
// not the scheme that stops it.
func TestForbiddenURLs(t *testing.T) {
	t.Parallel()
	forms := forbiddenForms()
	if len(forms) < 120 {
		t.Fatalf("%d forms", len(forms))
	}
	dns, listener := loopbackForAll(t), openDoor(t, ":0")
	policy := egress.Policy{AllowInsecureHTTP: true}
	client, recorder := egressClient(t, policy, dns)
	for _, f := range forms {
		url := strings.ReplaceAll(f.url, "PORT", listener.port())
		asked := dns.questions()
		err := policy.CheckURL(url, false)
		if (err == nil) != f.byName {
			t.Errorf("%q: registration says %v", f.url, err)
		}
		if dns.questions() != asked {
			t.Errorf("%q: registration has asked DNS", f.url)
		}
		o := sendTo(t, client, url)
		if passed := recorder.take(); len(passed) > 0 {
			t.Errorf("%q: %s, let through to %v", f.url, o.word, passed)
		}
		if !slices.Contains([]string{outcomeBlockedAddress, outcomeDNS, outcomeRenderFailed, outcomeBadResponse}, o.word) {
			t.Errorf("%q: %s", f.url, o.word)
		}
		if f.byName && o.word != outcomeBlockedAddress {
			t.Errorf("%q: %s", f.url, o.word)
		}
	}
	accepted := listener.connections(t)
	if accepted != 0 {
		t.Errorf("%d connections were accepted", accepted)
	}
	t.Logf("%d forms, %d connections accepted", len(forms), accepted)
}

// The neighbours of what is forbidden are allowed; and what observes the test above sees what is let through.
func TestAllowedURLs(t *testing.T) {
	t.Parallel()
	dns, listener := loopbackForAll(t), openDoor(t, ":0")
	policy := egress.Policy{AllowInsecureHTTP: true}
	client, recorder := egressClient(t, policy, dns)
	for url, want := range allowedForms() {
		if err := policy.CheckURL(url, false); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		if o := sendTo(t, client, url); o.word == outcomeBlockedAddress {
			t.Errorf("%s: %s", url, o.word)
		}
		if passed := recorder.take(); !slices.Equal(passed, []string{want}) {
			t.Errorf("%s: let through to %v, want %s", url, passed, want)
		}
	}
	client, recorder = egressClient(t, egress.Policy{AllowInsecureHTTP: true, AllowCIDR: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}, dns)
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		sendTo(t, client, "http://"+host+":"+listener.port()+"/")
		if passed := recorder.take(); len(passed) == 0 {
			t.Errorf("%s is not let through", host)
		}
	}
	if n := listener.connections(t); n < 2 {
		t.Errorf("the listener has seen %d of 2", n)
	}
}

// What an operator opens, and no more than that.
func TestAllowLists(t *testing.T) {
	t.Parallel()
	names := map[string][]string{
		"in.hooks.test": {"10.0.0.1"}, "hooks.test": {"10.0.0.1"}, "evilhooks.test": {"10.0.0.1"}, "port.test": {"10.0.0.2"}, "meta.hooks.test": {"169.254.169.254"},
		"alibaba.hooks.test": {"100.100.100.200"}, "aws.hooks.test": {"fd00:ec2::254"}, "ula.hooks.test": {"fd00:1::1"}, "nat64.hooks.test": {"64:ff9b::a00:1"}, "nat64.test": {"64:ff9b::a00:1"},
		"db.hooks.test": {"10.0.0.3"}, "public.test": {"8.8.4.4"},
	}
	dns := serveDNS(t, func(name string, _ int) dnsAnswer { return dnsAnswer{addresses: names[name]} })
	host := func(text string) egress.HostPattern {
		h, err := egress.ParseHostPattern(text)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	policy := egress.Policy{
		AllowCIDR:  []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("64:ff9b::/96")},
		DenyCIDR:   []netip.Prefix{netip.MustParsePrefix("10.9.9.0/24"), netip.MustParsePrefix("1.2.3.4/32")},
		AllowHosts: []egress.HostPattern{host("*.hooks.test"), host("port.test:5432"), host("Port2.test.:8443")},
		AllowPorts: []uint16{9200}, DenyPorts: []uint16{8081},
	}
	client, recorder := egressClient(t, policy, dns)
	for url, want := range map[string]string{
		"https://10.9.0.1/": "10.9.0.1:443", "https://10.9.0.1:25/": "10.9.0.1:25", "https://10.8.0.1/": "", "https://10.9.9.1/": "", "https://1.2.3.4/": "",
		"https://8.8.8.8:9200/": "8.8.8.8:9200", "https://8.8.8.8:8081/": "", "https://8.8.8.8:9300/": "", "https://public.test:8081/": "",
		"https://[64:ff9b::808:808]/": "[64:ff9b::808:808]:443", "https://[64:ff9b::7f00:1]/": "", "https://[64:ff9b::a09:1]/": "[64:ff9b::a09:1]:443", "https://[64:ff9b::808:808]:25/": "",
		"https://in.hooks.test/": "10.0.0.1:443", "https://IN.HOOKS.TEST.:8443/": "10.0.0.1:8443", "https://hooks.test/": "", "https://evilhooks.test/": "",
		"https://meta.hooks.test/": "", "https://alibaba.hooks.test/": "", "https://aws.hooks.test/": "", "https://nat64.hooks.test/": "[64:ff9b::a00:1]:443", "https://nat64.test/": "", "https://ula.hooks.test/": "[fd00:1::1]:443",
		"https://db.hooks.test:5432/": "", "https://port.test:5432/": "10.0.0.2:5432", "https://port.test/": "",
	} {
		o := sendTo(t, client, url)
		passed := strings.Join(recorder.take(), " ")
		if passed != want || want == "" && o.word != outcomeBlockedAddress {
			t.Errorf("%s: %s, let through to %q, want %q", url, o.word, passed, want)
		}
		// Registration never refuses what would be sent to.
		if err := policy.CheckURL(url, false); want != "" && err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// Nothing in an outcome tells an open port of this network from a closed one.
func TestABlockedAddressTellsNothing(t *testing.T) {
	t.Parallel()
	open := openDoor(t, "127.0.0.1:0")
	closed := strings.TrimSuffix(strings.TrimPrefix(refusedAddress(t), "http://127.0.0.1:"), "/")
	client, recorder := egressClient(t, egress.Policy{AllowInsecureHTTP: true}, loopbackForAll(t))
	for _, host := range []string{"127.0.0.1", "hook.example"} {
		for _, port := range []string{open.port(), closed} {
			o := sendTo(t, client, "http://"+host+":"+port+"/")
			if o.word != outcomeBlockedAddress || o.statusCode != 0 || o.retryAfter != 0 || len(o.excerpt) != 0 {
				t.Errorf("%s: %+v", host, o)
			}
		}
	}
	if passed := recorder.take(); len(passed) != 0 || open.connections(t) != 0 {
		t.Errorf("connected to %v", passed)
	}
	if _, err := client.dialer.DialContext(t.Context(), "tcp", "hook.example:"+open.port()); !errors.Is(err, egress.ErrBlocked) || strings.Contains(err.Error(), "127.0.0.1") {
		t.Error(err)
	}
}

// An account may use http as long as its settings say so, without a restart of anything.
func TestHTTPByAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "retry_schedule = array_fill(interval '1s', '{50}')", "retry_jitter = 0")
	cfg := b.config()
	cfg.AllowInsecureHTTP = false
	b.run(t, cfg)
	q := db.New(b.Pool)
	last := func(want string) {
		t.Helper()
		dbtest.Eventually(t, "an attempt ends as "+want, func() bool {
			return dbtest.QueryOne[bool](t, b.DB, "SELECT coalesce((SELECT outcome FROM mailhook.attempts ORDER BY started_at DESC LIMIT 1), '') = $1", want)
		})
	}
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	last(outcomeBlockedAddress)
	b.mu.Lock()
	early := len(b.receipts)
	b.mu.Unlock()
	if early != 0 {
		t.Fatal("a request went out over http")
	}
	if err := q.PutAccount(t.Context(), db.PutAccountParams{ID: "default", Status: "active", AllowInsecureHTTP: true}); err != nil {
		t.Fatal(err)
	}
	last(outcomeOK)
	b.waitFor(t, 1)
	if err := q.PutAccount(t.Context(), db.PutAccountParams{ID: "default", Status: "active"}); err != nil {
		t.Fatal(err)
	}
	dbtest.Eventually(t, "http is refused again", func() bool {
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		return dbtest.QueryOne[bool](t, b.DB, "SELECT (SELECT outcome FROM mailhook.attempts ORDER BY started_at DESC LIMIT 1) = 'blocked_address'")
	})
}
