package httpapi

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"code.dny.dev/ssrf"
)

// maxURLBytes is the longest URL of a subscription.
const maxURLBytes = 2048

// checkURL says why a URL is not taken for a subscription; nil when it is. Names are not resolved: what a name leads
// to is checked by the worker when it connects, so this only spares people the wait. The error never holds the URL.
func (c Config) checkURL(text string) error {
	if len(text) > maxURLBytes {
		return fmt.Errorf("must be at most %d bytes long", maxURLBytes)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return errors.New("must be an absolute URL")
	case u.Scheme != "https" && (u.Scheme != "http" || !c.AllowInsecureHTTP):
		return errors.New("must be an https URL")
	case u.User != nil:
		return errors.New("must not have a user or password: use channel.headers")
	case u.Fragment != "" || strings.Contains(text, "#"):
		return errors.New("must not have a fragment")
	case strings.ContainsFunc(text, func(r rune) bool { return r == ' ' || unicode.IsControl(r) }):
		return errors.New("must not contain spaces or control characters")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return errors.New("must have a port from 1 to 65535")
		}
	}
	return c.checkHost(u.Hostname())
}

// checkHost refuses addresses that are not public, and names that mean one.
func (c Config) checkHost(host string) error {
	private := errors.New("must not lead to a private or local address")
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" || !c.isAllowed(addr.Unmap()) && ssrf.New(ssrf.WithAnyPort(), ssrf.WithAnyNetwork()).SafeAddr(addr.Unmap()) != nil {
			return private
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if !validHostname(name) {
		return errors.New("must have a host name of letters, digits, - and _ (xn-- for others) or an IP address")
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		if !c.isAllowed(netip.AddrFrom4([4]byte{127, 0, 0, 1})) && !c.isAllowed(netip.IPv6Loopback()) {
			return private
		}
	}
	return nil
}

func (c Config) isAllowed(addr netip.Addr) bool {
	return slices.ContainsFunc(c.AllowCIDR, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// validHostname takes ASCII only: resolvers and HTTP clients map other digits and dots to ASCII ones. A last label
// that is a number would be read as an address (2130706433, 127.1, 0x7f.1).
func validHostname(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	hex, isHex := strings.CutPrefix(last, "0x")
	isNumber := strings.Trim(last, "0123456789") == "" || isHex && strings.Trim(hex, "0123456789abcdef") == ""
	return len(name) <= 253 && !isNumber
}

// Custom headers: how many, and how much in all.
const (
	maxHeaders     = 20
	maxHeaderBytes = 4096
)

// checkHeaders checks custom headers (RFC 9110, 5.1 and 5.5). Messages name a header, never a value.
func checkHeaders(field string, headers map[string]string) []FieldError {
	var found []FieldError
	if len(headers) > maxHeaders {
		found = append(found, FieldError{field, "too_many", fmt.Sprintf("must be at most %d headers", maxHeaders)})
	}
	bytes := 0
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value := headers[name]
		bytes += len(name) + len(value)
		lower := strings.ToLower(name)
		switch {
		case !validHeaderName(name):
			found = append(found, FieldError{field, "invalid_header", "has a name that is not a header name"})
		case isReserved(lower):
			found = append(found, FieldError{field + "." + name, "reserved_header", "is set by mailhook or by HTTP itself"})
		case seen[lower]:
			found = append(found, FieldError{field + "." + name, "duplicate_header", "is there twice"})
		case !validHeaderValue(value):
			found = append(found, FieldError{field + "." + name, "invalid_header", "must not contain control characters, or spaces at its ends"})
		}
		seen[lower] = true
	}
	if bytes > maxHeaderBytes {
		found = append(found, FieldError{field, "too_long", fmt.Sprintf("must be at most %d bytes in all", maxHeaderBytes)})
	}
	return found
}

func isReserved(lower string) bool {
	switch lower {
	case "host", "connection", "x-signature", "user-agent", "transfer-encoding", "te", "trailer", "upgrade", "expect", "cookie",
		"keep-alive", "accept-encoding":
		return true
	}
	return slices.ContainsFunc([]string{"content-", "webhook-", "proxy-"}, func(p string) bool { return strings.HasPrefix(lower, p) })
}

// validHeaderName says whether name is a token (RFC 9110, 5.6.2).
func validHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func validHeaderValue(value string) bool {
	return utf8.ValidString(value) && !strings.ContainsFunc(value, unicode.IsControl) && strings.TrimSpace(value) == value
}
