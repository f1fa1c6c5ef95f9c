//go:build !unix

package egress

import (
	"errors"
	"net/netip"
	"syscall"
)

func bind(syscall.RawConn, netip.Addr) error {
	return errors.New("--source-address works on Unix only")
}
