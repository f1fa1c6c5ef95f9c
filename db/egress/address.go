package egress

import (
	"errors"
	"net/netip"
	"slices"

	"code.dny.dev/ssrf"
)

// Why a connection is not made. Neither names the address: what a customer's host name leads to inside our network is
// not for the customer.
var (
	errAddress = errors.New("must not lead to a private, local or reserved address: give a host that the internet can reach")
	errPort    = errors.New("must not use a port of mail, databases or administration: use 443, or another one")
)

// judge says why no connection may be made to an address, for a URL with this host; nil when it may.
func (p Policy) judge(host string, to netip.AddrPort) error {
	addr, port := to.Addr().Unmap(), to.Port()
	switch {
	case !addr.IsValid(), addr.Zone() != "", port == 0, within(p.DenyCIDR, addr):
		return errAddress
	case within(p.AllowCIDR, addr):
		if carried, ok := carriedByNAT64(addr); ok {
			return p.judge(host, netip.AddrPortFrom(carried, port))
		}
		return nil
	case isPublic(addr), isInternal(addr) && p.allowsHost(host, port):
		if !p.allowsPort(host, port) {
			return errPort
		}
		return nil
	}
	return errAddress
}

// allowsHost says whether the operator has named this host.
func (p Policy) allowsHost(host string, port uint16) bool {
	name := plainName(host)
	return slices.ContainsFunc(p.AllowHosts, func(h HostPattern) bool { return h.matches(name, port) })
}

// allowsPort says whether a port is open at all, or for a host that the operator has named with it.
func (p Policy) allowsPort(host string, port uint16) bool {
	switch {
	case slices.Contains(p.DenyPorts, port):
		return false
	case !slices.Contains(deniedPorts(), port), slices.Contains(p.AllowPorts, port):
		return true
	}
	name := plainName(host)
	return slices.ContainsFunc(p.AllowHosts, func(h HostPattern) bool { return h.Port == port && h.matches(name, port) })
}

func within(networks []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(networks, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// isPublic goes by the registries of IANA: of IPv6 that is 2000::/3 less what is reserved in it, so no NAT64, no 6to4 and
// no Teredo, which carry IPv4 addresses.
func isPublic(addr netip.Addr) bool {
	return ssrf.New().SafeAddr(addr) == nil && !within(cloudServices(), addr)
}

// cloudServices look like public addresses, and are services of a cloud to its own machines.
func cloudServices() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("168.63.129.16/32"), // Azure: machine configuration, DNS
		netip.MustParsePrefix("161.26.0.0/16"),    // IBM Cloud: DNS, time, mirrors
		netip.MustParsePrefix("166.8.0.0/14"),     // IBM Cloud: APIs
	}
}

// isInternal are the addresses that a named host may lead to: private ones, and this machine. Link-local ones and those
// where clouds serve metadata, and with it credentials, are none.
func isInternal(addr netip.Addr) bool {
	return within([]netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"),
	}, addr) && !within([]netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"),    // Alibaba
		netip.MustParsePrefix("fd00:ec2::/32"),         // AWS
		netip.MustParsePrefix("fd20:ce::/64"),          // Google
		netip.MustParsePrefix("fd00:42::42/128"),       // Scaleway
		netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), // Linode
	}, addr)
}

// carriedByNAT64 is the IPv4 address that a gateway would connect to (RFC 6052, 2.2).
func carriedByNAT64(addr netip.Addr) (netip.Addr, bool) {
	if !ssrf.IPv6NAT64Prefix.Contains(addr) {
		return netip.Addr{}, false
	}
	bytes := addr.As16()
	return netip.AddrFrom4([4]byte(bytes[12:])), true
}

// deniedPorts are where a POST could be taken for a command, or would knock at a door that is not ours.
func deniedPorts() []uint16 {
	return []uint16{
		25, 110, 143, 465, 587, 993, 995, 2525, 4190, // mail
		7, 9, 13, 19, 20, 21, 37, 53, 69, 79, 111, 119, 123, 135, 137, 138, 139, 389, 445, 515, 548, 631, 636, 873, 2049, 3268, 3269, // names, files, printers
		22, 23, 161, 179, 512, 513, 514, 623, 2222, 2375, 2376, 2377, 2379, 2380, 3389, 4243, 5900, 5901, 5985, 5986, 6000, 6443, 10250, 10255, // administration
		1433, 1434, 1521, 3306, 5432, 5433, 5984, 6379, 6380, 6432, 7687, 9042, 9200, 9300, 11211, 26379, 27017, 27018, 27019, 33060, // databases, caches
		1883, 2181, 4222, 5671, 5672, 8883, 9092, 61613, 61616, // queues
		194, 5060, 5061, 6665, 6666, 6667, 6668, 6669, 6697, // chat, telephones
	}
}
