//go:build unix

package localpg

import "syscall"

// processAttr gives a program its own session and, when we are root, the
// account without root's supplementary groups. The program ends with us where
// the system can do that.
func processAttr(a *account) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	dieWithParent(attr)
	return attr
}
