package worker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// errBlocked is the error of a dial to an address that this installation does not send to. It names no address: what
// a customer's host name resolves to inside our network is not for the customer.
var errBlocked = errors.New("address is not allowed")

// newDialer checks the address at the dial, after DNS and for every address tried: a check of the URL can be tricked by
// names, redirects and spellings.
func newDialer(allow []netip.Prefix) *net.Dialer {
	guard := ssrf.New(ssrf.WithAnyPort())
	return &net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 30 * time.Second,
		ControlContext: func(_ context.Context, network, address string, c syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err == nil {
				for _, prefix := range allow {
					if prefix.Contains(at.Addr().Unmap()) {
						return nil
					}
				}
			}
			if guard.Safe(network, address, c) != nil {
				return errBlocked
			}
			return nil
		},
	}
}
