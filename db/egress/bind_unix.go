//go:build unix

package egress

import (
	"net/netip"
	"runtime"
	"syscall"
)

// ipBindAddressNoPort is IP_BIND_ADDRESS_NO_PORT of Linux, which package syscall does not have.
const ipBindAddressNoPort = 24

// bind gives a socket its address, before it connects.
func bind(c syscall.RawConn, source netip.Addr) error {
	var address syscall.Sockaddr = &syscall.SockaddrInet6{Addr: source.As16()}
	if source.Is4() {
		address = &syscall.SockaddrInet4{Addr: source.As4()}
	}
	var bound error
	err := c.Control(func(fd uintptr) {
		if runtime.GOOS == "linux" {
			// The port is then chosen when it connects: 28,000 of them for each receiver, not for all. Kernels
			// before 4.2 do not know it.
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
		}
		bound = syscall.Bind(int(fd), address)
	})
	if err != nil {
		return err
	}
	return bound
}
