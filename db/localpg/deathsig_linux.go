package localpg

import "syscall"

// dieWithParent makes the system send SIGQUIT (to PostgreSQL an immediate
// shutdown) when the thread that starts the program ends; see process.run.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }
