package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"mailhook/db/egress"
)

// The network that stands for the internet in these tests: no packet leaves the machine.
const publicNetwork, publicAddress = "127.66.0.0/16", "127.66.0.1"

// publicReceiver listens on the address that stands for a public one, answers 200, and notes who asks.
type publicReceiver struct {
	port string
	mu   sync.Mutex
	from []string
}

func receivePublicly(t *testing.T, addresses ...string) *publicReceiver {
	t.Helper()
	r := &publicReceiver{port: quietPort(t)}
	for _, address := range append([]string{publicAddress}, addresses...) {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, r.port))
		if err != nil {
			if runtime.GOOS != "linux" {
				t.Skip("this system has one loopback address only")
			}
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.from = append(r.from, request.RemoteAddr)
		})}
		server.SetKeepAlivesEnabled(false)
		go server.Serve(listener)
		t.Cleanup(func() { server.Close() })
	}
	return r
}

// quietPort is one that is free on every address, and below those that systems give out: other tests do not take it before
// all who need it have it.
func quietPort(t *testing.T) string {
	t.Helper()
	for range 100 {
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(20_000+rand.IntN(10_000)))
		if err == nil {
			defer listener.Close()
			_, port, _ := net.SplitHostPort(listener.Addr().String())
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// sources are the addresses that requests came from since the last call.
func (r *publicReceiver) sources() (hosts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, from := range r.from {
		host, _, _ := net.SplitHostPort(from)
		hosts = append(hosts, host)
	}
	r.from = nil
	return hosts
}

func publicPolicy() egress.Policy {
	return egress.Policy{AllowInsecureHTTP: true, AllowCIDR: []netip.Prefix{netip.MustParsePrefix(publicNetwork)}}
}

func repeated(n int, format string) (addresses []string) {
	for i := range n {
		addresses = append(addresses, fmt.Sprintf(format, i+1))
	}
	return addresses
}

// Whatever DNS answers, forbidden addresses get no connection and allowed ones may. The forbidden ones are this machine,
// on the port that is open, and others that a connection is never made to.
func TestDNSAnswers(t *testing.T) {
	t.Parallel()
	receiver := receivePublicly(t)
	forbidden := []*door{openDoor(t, "127.0.0.1:"+receiver.port), openDoor(t, "[::1]:"+receiver.port), openDoor(t, "127.0.0.50:"+receiver.port)}
	mixed50 := append(repeated(49, "127.0.0.%d"), publicAddress)
	answers := map[string]struct {
		dnsAnswer
		want string
	}{
		"a.test":              {dnsAnswer{addresses: []string{"127.0.0.1"}}, outcomeBlockedAddress},
		"aaaa.test":           {dnsAnswer{addresses: []string{"::1"}}, outcomeBlockedAddress},
		"private.test":        {dnsAnswer{addresses: []string{"10.0.0.1", "192.168.1.1", "fd00::1"}}, outcomeBlockedAddress},
		"metadata.test":       {dnsAnswer{addresses: []string{"169.254.169.254", "fd00:ec2::254"}}, outcomeBlockedAddress},
		"mapped.test":         {dnsAnswer{addresses: []string{"::ffff:127.0.0.1"}}, outcomeBlockedAddress},
		"nat64.test":          {dnsAnswer{addresses: []string{"64:ff9b::7f00:1"}}, outcomeBlockedAddress},
		"6to4.test":           {dnsAnswer{addresses: []string{"2002:7f00:1::1"}}, outcomeBlockedAddress},
		"unspecified.test":    {dnsAnswer{addresses: []string{"0.0.0.0", "::"}}, outcomeBlockedAddress},
		"cname.test":          {dnsAnswer{cnames: []string{"localhost.test"}, addresses: []string{"127.0.0.1"}}, outcomeBlockedAddress},
		"chain.test":          {dnsAnswer{cnames: []string{"a.example", "b.example", "c.example"}, addresses: []string{"127.0.0.1", "::1"}}, outcomeBlockedAddress},
		"cnamepublic.test":    {dnsAnswer{cnames: []string{"edge.example"}, addresses: []string{publicAddress}}, outcomeOK},
		"mixed.test":          {dnsAnswer{addresses: []string{"127.0.0.1", publicAddress}}, outcomeOK},
		"mixedotherwise.test": {dnsAnswer{addresses: []string{publicAddress, "127.0.0.1"}}, outcomeOK},
		"families.test":       {dnsAnswer{addresses: []string{"::1", "fd00::1", publicAddress}}, outcomeOK},
		"cnamemixed.test":     {dnsAnswer{cnames: []string{"edge.example"}, addresses: []string{"10.0.0.1", "::1", "127.0.0.1", publicAddress}}, outcomeOK},
		"fifty.test":          {dnsAnswer{addresses: repeated(50, "127.0.0.%d")}, outcomeBlockedAddress},
		"fiftysix.test":       {dnsAnswer{addresses: repeated(50, "fd00::%d")}, outcomeBlockedAddress},
		"fiftymixed.test":     {dnsAnswer{addresses: mixed50}, outcomeOK},
		"nxdomain.test":       {dnsAnswer{code: dnsmessage.RCodeNameError}, outcomeDNS},
		"servfail.test":       {dnsAnswer{code: dnsmessage.RCodeServerFailure}, outcomeDNS},
		"empty.test":          {dnsAnswer{}, outcomeDNS},
		"silent.test":         {dnsAnswer{silent: true}, outcomeConnectTimeout}, // its time limit ends before the resolver's
	}
	dns := serveDNS(t, func(name string, _ int) dnsAnswer { return answers[name].dnsAnswer })
	client, recorder := egressClient(t, publicPolicy(), dns)
	for name, answer := range answers {
		url := "http://" + name + ":" + receiver.port + "/"
		if err := publicPolicy().CheckURL(url, false); err != nil {
			t.Errorf("%s: registration says %v", name, err)
		}
		s := &subscription{format: standardFormat, url: url, timeout: 5 * time.Second, keys: [][]byte{[]byte("k")}}
		if answer.silent {
			s.timeout = 500 * time.Millisecond
		}
		o := client.attempt(t.Context(), s, testDelivery())
		if o.word != answer.want {
			t.Errorf("%s: %s, want %s", name, o.word, answer.want)
		}
		for _, passed := range recorder.take() {
			if passed != net.JoinHostPort(publicAddress, receiver.port) {
				t.Errorf("%s: let through to %s", name, passed)
			}
		}
		if n := len(receiver.sources()); (n == 1) != (answer.want == outcomeOK) {
			t.Errorf("%s: %d requests", name, n)
		}
	}
	for _, d := range forbidden {
		if n := d.connections(t); n != 0 {
			t.Errorf("%d connections to %s", n, d.Addr())
		}
	}
}

// A name that leads to the internet when it is looked up first, and to us later: every attempt looks anew, and is judged
// anew; and an answer is judged as a whole, so nothing changes between the check and the connection.
func TestRebinding(t *testing.T) {
	t.Parallel()
	receiver := receivePublicly(t)
	forbidden := openDoor(t, "127.0.0.1:"+receiver.port)
	dns := serveDNS(t, func(_ string, before int) dnsAnswer {
		return dnsAnswer{addresses: []string{[]string{publicAddress, "127.0.0.1"}[before%2]}}
	})
	client, _ := egressClient(t, publicPolicy(), dns)
	url := "http://rebind.test:" + receiver.port + "/"
	if err := publicPolicy().CheckURL(url, false); err != nil || dns.questions() != 0 {
		t.Fatal(err, dns.questions())
	}
	for i := range 20 {
		want := []string{outcomeOK, outcomeBlockedAddress}[i%2]
		if o := sendTo(t, client, url); o.word != want {
			t.Errorf("attempt %d: %s, want %s", i+1, o.word, want)
		}
	}
	if n := len(receiver.sources()); n != 10 {
		t.Errorf("%d requests came", n)
	}
	if n := forbidden.connections(t); n != 0 {
		t.Errorf("%d connections to the forbidden address", n)
	}
}

// Connections come from the source address of their family. With one of IPv4 alone, IPv6 is passed over.
func TestSourceAddress(t *testing.T) {
	t.Parallel()
	receiver := receivePublicly(t, "::1")
	names := map[string][]string{"v4.test": {publicAddress}, "v6.test": {"::1"}, "both.test": {"::1", publicAddress}}
	dns := serveDNS(t, func(name string, _ int) dnsAnswer { return dnsAnswer{addresses: names[name]} })
	for _, c := range []struct {
		sources []string
		from    map[string]string // by name; "": blocked
	}{
		{nil, map[string]string{"v4.test": "127.0.0.1", "v6.test": "::1", "both.test": "::1"}},
		{[]string{"127.66.0.9"}, map[string]string{"v4.test": "127.66.0.9", "v6.test": "", "both.test": "127.66.0.9"}},
		{[]string{"::1"}, map[string]string{"v4.test": "", "v6.test": "::1", "both.test": "::1"}},
		{[]string{"127.66.0.9", "::1"}, map[string]string{"v4.test": "127.66.0.9", "v6.test": "::1", "both.test": "::1"}},
	} {
		policy := publicPolicy()
		policy.AllowCIDR = append(policy.AllowCIDR, netip.MustParsePrefix("::1/128"))
		for _, source := range c.sources {
			policy.SourceAddresses = append(policy.SourceAddresses, netip.MustParseAddr(source))
		}
		if err := policy.Validate(); err != nil {
			t.Fatal(err)
		}
		client, _ := egressClient(t, policy, dns)
		for name, want := range c.from {
			o := sendTo(t, client, "http://"+name+":"+receiver.port+"/")
			if got := strings.Join(receiver.sources(), " "); got != want || (o.word == outcomeBlockedAddress) != (want == "") {
				t.Errorf("from %v to %s: %s from %q, want %q", c.sources, name, o.word, got, want)
			}
		}
	}
	for _, wrong := range [][]string{{"127.0.0.1", "127.0.0.2"}, {"192.0.2.77"}, {"2001:db8::77"}} {
		policy := egress.Policy{}
		for _, source := range wrong {
			policy.SourceAddresses = append(policy.SourceAddresses, netip.MustParseAddr(source))
		}
		if err := policy.Validate(); err == nil || !strings.Contains(err.Error(), "--source-address") {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}

// proxyTestPort tells a child process of TestNoProxyFromTheEnvironment that it is one, and where the receiver is.
const proxyTestPort = "MAILHOOK_TEST_PROXY_PORT"

// A proxy would connect for us, past every check. The environment is read once in a process, so a child is asked.
func TestNoProxyFromTheEnvironment(t *testing.T) {
	t.Parallel()
	if port := os.Getenv(proxyTestPort); port != "" {
		dns := serveDNS(t, func(string, int) dnsAnswer { return dnsAnswer{addresses: []string{publicAddress}} })
		client, _ := egressClient(t, publicPolicy(), dns)
		if o := sendTo(t, client, "http://hook.test:"+port+"/"); o.word != outcomeOK {
			t.Error(o.word)
		}
		sendTo(t, client, "https://hook.test:"+port+"/")
		// The environment does name a proxy for them.
		request, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://hook.test:"+port+"/", nil)
		if proxy, err := http.ProxyFromEnvironment(request); proxy == nil || err != nil {
			t.Error("there is no proxy", err)
		}
		return
	}
	receiver, proxy := receivePublicly(t), openDoor(t, "127.0.0.1:0")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoProxyFromTheEnvironment$", "-test.count=1")
	child.Env = append(os.Environ(), proxyTestPort+"="+receiver.port)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		child.Env = append(child.Env, name+"=http://"+proxy.Addr().String())
	}
	child.Env = append(child.Env, "NO_PROXY=", "no_proxy=")
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if n := proxy.connections(t); n != 0 {
		t.Errorf("%d connections to the proxy", n)
	}
	if n := len(receiver.sources()); n != 1 {
		t.Errorf("%d requests came", n)
	}
}
