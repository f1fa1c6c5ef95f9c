package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
)

// MaxURLBytes is the longest URL of a subscription.
const MaxURLBytes = 2048

// CheckURL says why a URL is not taken for a subscription, and what would be; nil when it is. accountHTTP is whether its
// account may use http. Names are not resolved: what a name leads to is judged when it is connected to, so this only
// spares people the wait. The error never holds the URL.
func (p Policy) CheckURL(text string, accountHTTP bool) error {
	if len(text) > MaxURLBytes {
		return fmt.Errorf("must be at most %d bytes long", MaxURLBytes)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r == '\\' || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errors.New("must not contain spaces, control characters or backslashes: percent-encode them")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return errors.New("must be an absolute URL, like https://example.com/hook")
	case !p.AllowsScheme(u.Scheme, accountHTTP):
		if u.Scheme == "http" && errors.Is(p.checkHost(u.Hostname(), 80), errAddress) {
			return errAddress // which no setting of the account changes
		}
		return errors.New("must be an https URL; for http an admin sets allow_insecure_http of the account")
	case u.User != nil:
		return errors.New("must not have a user or password: use channel.auth")
	case strings.Contains(text, "#"):
		return errors.New("must not have a fragment: leave out the # and what follows")
	}
	port := uint16(443)
	if u.Port() != "" || strings.HasSuffix(u.Host, ":") {
		if port, err = ParsePort(u.Port()); err != nil {
			return errors.New("must have a port from 1 to 65535")
		}
	}
	return p.checkHost(u.Hostname(), port)
}

func (p Policy) checkHost(host string, port uint16) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		return p.judge(host, netip.AddrPortFrom(addr, port))
	}
	name := plainName(host)
	switch {
	case !validName(name):
		return errors.New("must have a host name of letters, digits, - and _ (xn-- for others) or an IP address")
	case p.allowsHost(name, port):
	case isLocalhost(name) && !p.opensLoopback(), isInternalName(name) && len(p.AllowCIDR) == 0:
		return errAddress
	}
	// Where the name leads to a network that is open, every port is.
	if len(p.AllowCIDR) == 0 && !p.allowsPort(name, port) {
		return errPort
	}
	return nil
}

func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// isInternalName are names that lead nowhere on the internet: those without a dot, and the domains kept for other uses
// (RFC 6762, RFC 8375, and internal, which ICANN has set aside).
func isInternalName(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return last == name || last == "local" || last == "internal" || strings.HasSuffix(name, ".home.arpa")
}

func (p Policy) opensLoopback() bool {
	return within(p.AllowCIDR, netip.AddrFrom4([4]byte{127, 0, 0, 1})) || within(p.AllowCIDR, netip.IPv6Loopback())
}
