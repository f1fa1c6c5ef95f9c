//go:build !linux

package main

import "syscall"

// dieWithParent cannot be asked of this system.
func dieWithParent() *syscall.SysProcAttr { return nil }
