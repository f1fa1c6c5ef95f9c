package egress

import (
	"bufio"
	"bytes"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// FuzzURL: what is accepted means one thing, the same to everybody who reads it, and leads nowhere near us by itself.
func FuzzURL(f *testing.F) {
	for _, text := range []string{
		"https://example.com/hook?a=b", "http://example.com", "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/",
		"https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://[fe80::1%25eth0]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[2001::1]/",
		"https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/", "https://local\u00adhost/", "https://localhost./", "https://a.localhost", "https://user:pass@example.com/", "https://example.com:0/",
		"https://example.com:/", "https://example.com:65536", "https://example.com/#x", "https:example.com", "https:///x", "//example.com", "https://exa mple.com", "https://example.com/\r\nX: y",
		"https://169.254.169.254/latest", "https://example.com%2f@evil/", "https://xn--nxasmq6b/", "HTTPS://EXAMPLE.COM", "https://example.com\\@127.0.0.1/", "https://0/", "https://1.2.3.4.5/",
	} {
		f.Add(text)
	}
	// What inet_aton reads as an address: one to four numbers.
	number := regexp.MustCompile(`^(0[xX][0-9a-fA-F]*|[0-9]+)$`)
	f.Fuzz(func(t *testing.T, text string) {
		if (Policy{}).CheckURL(text, false) != nil {
			return
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q is accepted: %+v, %v", text, u, err)
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Host != u.Host || again.Hostname() != u.Hostname() || again.Port() != u.Port() || again.RequestURI() != u.RequestURI() {
			t.Fatalf("%q means %+v, and written again %+v, %v", text, u, again, err)
		}
		host := u.Hostname()
		if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || strings.ContainsAny(host, `/\@%`) {
			t.Fatalf("%q has the host %q", text, host)
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			if addr = addr.Unmap(); !addr.IsGlobalUnicast() || addr.IsPrivate() {
				t.Fatalf("%q is accepted, and leads to %v", text, addr)
			}
			return
		}
		labels := strings.Split(strings.TrimSuffix(host, "."), ".")
		if last := labels[len(labels)-1]; number.MatchString(last) || strings.EqualFold(last, "localhost") {
			t.Fatalf("%q is accepted, and %q may be read as an address", text, host)
		}
		request, err := http.NewRequest(http.MethodPost, text, nil)
		if err != nil {
			t.Fatalf("%q is accepted, and no request can be made of it: %v", text, err)
		}
		var wire bytes.Buffer
		if err := request.Write(&wire); err != nil {
			t.Fatalf("%q is accepted, and cannot be written: %v", text, err)
		}
		read, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil || read.Host != u.Host || wire.Len() != 0 {
			t.Fatalf("%q is read by its receiver as %+v, %v", text, read, err)
		}
	})
}
