//go:build unix && !linux

package localpg

import "syscall"

// dieWithParent does nothing: macOS and the BSDs have no parent death signal,
// so a server outlives the SIGKILL of its parent there.
func dieWithParent(*syscall.SysProcAttr) {}
