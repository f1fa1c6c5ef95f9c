package worker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"mailhook/db/egress"
)

// redirectTargets are where a receiver may want to send us; PORT is that of a listener on all addresses.
func redirectTargets() []string {
	return []string{
		"http://127.0.0.1:PORT/", "http://127.66.0.1:PORT/", "http://[::1]:PORT/", "http://[::ffff:127.0.0.1]:PORT/", "http://localhost:PORT/", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/",
		"https://8.8.8.8/", "http://8.8.8.8/", "https://public.example/", "//127.0.0.1:PORT/", "//127.66.0.1:PORT/", "//8.8.8.8/", "/again", "again", "?again", "", "\thttp://127.0.0.1:PORT/",
		"file:///etc/passwd", "gopher://127.0.0.1:PORT/", "http://127.66.0.1:PORT@8.8.8.8/",
	}
}

// A redirect is an answer like any other: one request each, wherever it leads, in a chain or to itself, and none to
// where it leads, though this policy allows some of that. So is a Refresh header, or one in a page.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	target := openDoor(t, ":0")
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header()["Location"], w.Header()["Refresh"] = r.URL.Query()["to"], r.URL.Query()["refresh"]
		if chain := r.URL.Query().Get("chain"); chain != "" {
			w.Header().Set("Location", "/?status=302&chain="+chain+"x")
		}
		status := http.StatusOK
		fmt.Sscan(r.URL.Query().Get("status"), &status)
		w.WriteHeader(status)
		fmt.Fprintf(w, `<meta http-equiv="refresh" content="0; url=http://127.0.0.1:%s/">`, target.port())
	}))
	defer server.Close()
	policy := egress.Policy{AllowInsecureHTTP: true, AllowCIDR: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	client, recorder := egressClient(t, policy, loopbackForAll(t))
	client.transports.shared.DisableKeepAlives = true
	attempts := int64(0)
	attempt := func(query, want string, status int) {
		t.Helper()
		attempts++
		o := sendTo(t, client, server.URL+"/?"+query)
		if o.word != want || o.statusCode != status {
			t.Errorf("%s: %s %d", query, o.word, o.statusCode)
		}
		if n := requests.Load(); n != attempts {
			t.Errorf("%s: %d requests after %d attempts", query, n, attempts)
		}
		if passed := recorder.take(); len(passed) != 1 || !strings.HasSuffix(server.URL, passed[0]) {
			t.Errorf("%s: connected to %v", query, passed)
		}
	}
	for _, status := range []int{300, 301, 302, 303, 304, 305, 307, 308} {
		for _, to := range redirectTargets() {
			to = strings.NewReplacer("PORT", target.port(), "\t", "%09", "?", "%3F", "&", "%26").Replace(to)
			attempt(fmt.Sprintf("status=%d&to=%s", status, to), outcomeHTTP3xx, status)
		}
		attempt(fmt.Sprintf("status=%d&chain=1", status), outcomeHTTP3xx, status)
	}
	for _, refresh := range []string{"0; url=http://127.0.0.1:" + target.port() + "/", "0; url=/again", "0"} {
		refresh = strings.NewReplacer(" ", "%20", ";", "%3B", "=", "%3D").Replace(refresh)
		attempt("refresh="+refresh, outcomeOK, 200)
		attempt("status=201&to=/again&refresh="+refresh, outcomeOK, 201)
	}
	if n := target.connections(t); n != 0 {
		t.Errorf("%d connections to where a redirect led", n)
	}
	t.Logf("%d redirects, %d requests", attempts, requests.Load())
}
