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
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // how it ended
}

// startWorker runs the product's own binary.
func startWorker(ctx context.Context, d []*database) (*contestant, error) {
	args := []string{"worker"}
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
func startCompetitor(ctx context.Context, name string, args ...string) ([]*contestant, error) {
	c, err := start(ctx, "", append([]string{name}, args...))
	if err != nil {
		return nil, err
	}
	return []*contestant{c}, nil
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
	c := &contestant{cmd: cmd, ended: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

func (c *contestant) cpu() time.Duration { return processCPU(c.cmd.Process.Pid, false) }

func (c *contestant) memory() int64 { return peakMemory(c.cmd.Process.Pid) }

// stop ends it in order.
func (c *contestant) stop() error {
	c.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	select {
	case <-c.ended:
		return c.err
	case <-time.After(40 * time.Second):
		c.kill()
		return fmt.Errorf("%s did not stop", strings.Join(c.cmd.Args[:2], " "))
	}
}

// kill ends one whose database is thrown away in the middle of its work.
func (c *contestant) kill() {
	c.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-c.ended
}
