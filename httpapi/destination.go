package httpapi

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

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
		return errors.New("must not have a user or password: use channel.auth")
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
	_, err := strconv.ParseUint(strings.TrimPrefix(last, "0x"), 16, 64)
	isNumber := err == nil && (strings.HasPrefix(last, "0x") || strings.Trim(last, "0123456789") == "")
	return len(name) <= 253 && !isNumber && last != "0x"
}
