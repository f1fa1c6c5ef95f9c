package httpapi

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// FuzzHeaders: what is accepted is one line of the request, and none of ours.
func FuzzHeaders(f *testing.F) {
	for _, c := range [][2]string{
		{"Authorization", "Bearer x"}, {"X-A", "b\r\nX-C: d"}, {"X-A\r\nHost", "b"}, {"Host", "x"}, {"content-length", "0"}, {"X-A ", "b"}, {"X:A", "b"}, {"", ""}, {"X-A", " b"},
		{"X-A", "\x00"}, {"X-A", "é"}, {"X-É", "b"}, {"Transfer-Encoding", "chunked"}, {"webhook-id", "x"}, {"WEBHOOK-SIGNATURE", "v1,x"}, {"X-A", "\u2028"}, {"X-A", "\u0085"}, {"X-A", "\u00a0b"},
	} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if len(checkHeaders("channel.headers", map[string]string{name: value})) > 0 {
			return
		}
		request, _ := http.NewRequest(http.MethodPost, "https://example.com/", strings.NewReader("{}"))
		request.Header.Set(name, value) // as the worker does
		var wire bytes.Buffer
		if err := request.Write(&wire); err != nil {
			t.Fatalf("%q: %q is accepted, and cannot be sent: %v", name, value, err)
		}
		lines := strings.Split(wire.String(), "\r\n")
		found := 0
		for _, line := range lines {
			if line == http.CanonicalHeaderKey(name)+": "+value {
				found++
			}
		}
		// The request line, Host, User-Agent, Content-Length, the header, and an empty line before the body.
		if found != 1 || len(lines) != 7 {
			t.Fatalf("%q: %q is sent as %q", name, value, wire.String())
		}
		read, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil || read.Header.Get(name) != value || read.Host != "example.com" || read.ContentLength != 2 {
			t.Fatalf("%q: %q is read as %+v, %v", name, value, read, err)
		}
		for _, ours := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature", "X-Signature", "Content-Type", "Cookie"} {
			if read.Header.Get(ours) != "" {
				t.Fatalf("%q sets %s", name, ours)
			}
		}
	})
}
