// Package egress decides where requests may go: one policy for the API, which refuses a URL early and with a reason, and
// for the worker, which judges every address that it is about to connect to.
package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Policy says what this installation sends to. The zero Policy is the default: https to public addresses, on any port
// but those of mail, databases and administration.
type Policy struct {
	// AllowInsecureHTTP lets every account use http.
	AllowInsecureHTTP bool
	// AllowCIDR opens addresses that are not public, with every port.
	AllowCIDR []netip.Prefix
	// DenyCIDR closes addresses, whatever else allows them.
	DenyCIDR []netip.Prefix
	// AllowHosts opens host names that lead to private addresses.
	AllowHosts []HostPattern
	// AllowPorts opens ports that are denied by default.
	AllowPorts []uint16
	// DenyPorts closes more ports.
	DenyPorts []uint16
	// SourceAddresses are the addresses that connections come from, at most one of IPv4 and one of IPv6. With one
	// alone, nothing is sent to the other family. None: as the routing table says.
	SourceAddresses []netip.Addr
}

// Validate says what is wrong with a policy, by the name of the flag. It binds the source addresses for a moment.
func (p Policy) Validate() error {
	for _, port := range p.AllowPorts {
		if slices.Contains(p.DenyPorts, port) {
			return fmt.Errorf("port %d is given to --allow-port and to --deny-port", port)
		}
	}
	for i, a := range p.SourceAddresses {
		for _, b := range p.SourceAddresses[:i] {
			if a.Is4() == b.Is4() {
				return errors.New("--source-address takes one IPv4 and one IPv6 address, not two of a kind")
			}
		}
		listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			return fmt.Errorf("--source-address %v is not an address of this machine: see ip addr", a)
		}
		listener.Close() //nolint:errcheck // it has shown what it was for
	}
	return nil
}

// AllowsScheme says whether URLs of this scheme are sent to; accountHTTP is whether the account may use http.
func (p Policy) AllowsScheme(scheme string, accountHTTP bool) bool {
	return scheme == "https" || scheme == "http" && (p.AllowInsecureHTTP || accountHTTP)
}

// A HostPattern is a host name, or all names below one, and a port.
type HostPattern struct {
	// Name is in lower case, without the dot at its end.
	Name string
	// Below means the names that end in .Name, and not Name itself.
	Below bool
	// Port is the only one that is meant; it may be a denied one. 0: every port that is not denied.
	Port uint16
}

func (h HostPattern) matches(name string, port uint16) bool {
	if h.Port != 0 && h.Port != port {
		return false
	}
	if h.Below {
		return strings.HasSuffix(name, "."+h.Name)
	}
	return name == h.Name
}

// ParseHostPattern reads name, *.name, name:port or *.name:port.
func ParseHostPattern(text string) (HostPattern, error) {
	name, port, hasPort := strings.Cut(text, ":")
	var h HostPattern
	if name, h.Below = strings.CutPrefix(name, "*."); !validName(plainName(name)) {
		return h, errors.New("is not a host name like hooks.internal, *.hooks.internal or hooks.internal:8443 (for addresses there is --allow-cidr)")
	}
	h.Name = plainName(name)
	if hasPort {
		var err error
		h.Port, err = ParsePort(port)
		return h, err
	}
	return h, nil
}

// ParsePort reads a port from 1 to 65535.
func ParsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("is not a port from 1 to 65535")
	}
	return uint16(port), nil
}

// ParseNetwork reads a network or a single address. IPv4 is written as IPv4.
func ParseNetwork(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" && !addr.Is4In6() {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, errors.New("is not a network like 10.0.0.0/8 or fd00::/8")
	}
	return prefix.Masked(), nil
}

// plainName is a host name as patterns have it.
func plainName(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// validName takes ASCII only: resolvers and HTTP clients map other digits and dots to ASCII ones. A last label that is a
// number would be read as an address (2130706433, 127.1, 0x7f.1).
func validName(name string) bool {
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
