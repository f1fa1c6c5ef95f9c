package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A contestant is a process that delivers: a mailhook worker, or one of those it is compared with. Each is a process of
// its own, so that what it uses can be told apart.
type contestant struct {
	cmd    *exec.Cmd
	exited chan error
	quit   bool
}

// startWorker runs the product's own binary.
func startWorker(ctx context.Context, d []*database, flags ...string) (*contestant, error) {
	args := append([]string{"worker"}, flags...)
	for _, d := range d {
		args = append(args, "--database-url", d.url)
	}
	binary := os.Getenv("MAILHOOK_BIN")
	if os.Getenv("PROFILE") != "" {
		binary = "" // a worker in a process of ours can be profiled
	}
	return start(ctx, binary, args, "MAILHOOK_SECRET_KEY="+d[0].cluster.key)
}

// startCompetitor runs one of the competitors below this command.
func startCompetitor(ctx context.Context, name string, args ...string) (*contestant, error) {
	return start(ctx, "", append([]string{name}, args...))
}

func start(ctx context.Context, binary string, args []string, env ...string) (*contestant, error) {
	if binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		binary = self
	}
	cmd := exec.CommandContext(ctx, binary, args...) //nolint:gosec // ours
	cmd.Env = append(os.Environ(), append(env, "MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8", "MAILHOOK_LOG_LEVEL=warn",
		"MAILHOOK_LISTEN=127.0.0.1:0")...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &contestant{cmd: cmd, exited: make(chan error, 1)}
	go func() { c.exited <- cmd.Wait() }()
	return c, nil
}

func (c *contestant) cpu() time.Duration { return processCPU(c.cmd.Process.Pid, false) }

// stop ends it in order.
func (c *contestant) stop() error {
	if c.quit {
		return nil
	}
	c.quit = true
	c.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	select {
	case err := <-c.exited:
		return err
	case <-time.After(40 * time.Second):
		c.cmd.Process.Kill() //nolint:errcheck // as above
		return fmt.Errorf("%s did not stop", strings.Join(c.cmd.Args[:2], " "))
	}
}

