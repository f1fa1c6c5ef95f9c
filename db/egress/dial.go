package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// ErrBlocked is the error of a connection that the policy does not allow. It names neither address nor reason.
var ErrBlocked = errors.New("address is not allowed")

// A Dialer makes connections that its policy allows. It judges after DNS, just before connecting, and every address that
// is tried: a check of the URL can be tricked by names, redirects and spellings, and one of the name by an answer that
// changes.
type Dialer struct {
	// Base makes the connections. Its ControlContext, if set, is asked after the policy has allowed an address.
	Base   net.Dialer
	policy Policy
}

// NewDialer makes a Dialer of a policy. Names are resolved by Go, not by libc, whatever the build: an answer means the
// same everywhere, and many lookups at once take no threads.
func NewDialer(policy Policy) *Dialer {
	return &Dialer{policy: policy, Base: net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 30 * time.Second,
		Resolver:  &net.Resolver{PreferGo: true},
	}}
}

// DialContext connects to host:port. Of the addresses of a name, those that are not allowed are passed over; ErrBlocked
// when the first of them failed so and no other took the connection.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, ErrBlocked
	}
	dialer := d.Base
	dialer.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || d.policy.judge(host, to) != nil || d.policy.bindSource(to.Addr(), c) != nil {
			return ErrBlocked
		}
		if d.Base.ControlContext != nil {
			return d.Base.ControlContext(ctx, network, address, c)
		}
		return nil
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if errors.Is(err, ErrBlocked) {
		return nil, ErrBlocked // what net adds names the address
	}
	return conn, err
}

// errNoSource is the error of a connection to the family that has no source address while the other has one.
var errNoSource = errors.New("no source address of this family")

// bindSource lets a connection come from the source address of its family. It is done here and not by LocalAddr, which
// holds one address: a name with addresses of both families is then tried with both.
func (p Policy) bindSource(to netip.Addr, c syscall.RawConn) error {
	if len(p.SourceAddresses) == 0 {
		return nil
	}
	for _, source := range p.SourceAddresses {
		if source.Is4() == to.Unmap().Is4() {
			return bind(c, source)
		}
	}
	return errNoSource
}
