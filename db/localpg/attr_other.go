//go:build !unix

package localpg

import "syscall"

// processAttr is here for the commands to compile; FindBinaries finds nothing
// on such a system, so no server starts.
func processAttr(*account) *syscall.SysProcAttr { return nil }
