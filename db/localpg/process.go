package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a started program and the news of its end.
type process struct {
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process is gone
	waitErr error         // what Wait returned; read it after exited
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run keeps its thread until the process is gone: Linux sends the parent death
// signal when the thread that started the process ends, not the whole parent.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.waitErr = p.cmd.Wait()
		close(p.exited)
	}
}

// runLocked runs a short program to its end, with its thread kept as in run.
func runLocked(cmd *exec.Cmd) (output []byte, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.CombinedOutput()
}

// end sends the signal and waits until the process is gone. A process that
// does not obey gets stronger signals, and the error says so.
func (p *process) end(sig syscall.Signal) error {
	steps := []struct {
		sig      syscall.Signal
		patience time.Duration
	}{
		{sig, 30 * time.Second},             // a fast shutdown writes a checkpoint
		{syscall.SIGQUIT, 10 * time.Second}, // PostgreSQL itself kills its children after 5 s
		{syscall.SIGKILL, 10 * time.Second},
	}
	for i, step := range steps {
		if err := p.cmd.Process.Signal(step.sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-p.exited:
			if i > 0 {
				return fmt.Errorf("%s %d did not obey %v; ended it by %v", filepath.Base(p.cmd.Path), p.cmd.Process.Pid, sig, step.sig)
			}
			return nil
		case <-time.After(step.patience):
		}
	}
	return fmt.Errorf("%s %d does not end", filepath.Base(p.cmd.Path), p.cmd.Process.Pid)
}

// startLimit bounds one start when the caller's context does not. Starting
// takes 0.1 s on an empty cluster; recovery after a crash may take longer.
const startLimit = time.Minute

// awaitReady pings until the server answers, its process ends or ctx does.
func awaitReady(ctx context.Context, proc *process, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := pingOnce(ctx, ping)
		if err == nil {
			return nil
		}
		select {
		case <-proc.exited:
			return fmt.Errorf("server ended while starting: %v", proc.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("server not ready: %w (last answer: %w)", ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

func pingOnce(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return ping(ctx)
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// logTail keeps the end of the server's log for error messages and passes all
// of it on.
type logTail struct {
	next io.Writer // may be nil

	mu  sync.Mutex
	end []byte
}

// Write never fails: an error would end the copying, and then the server would
// block on a full pipe.
func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const keep = 4096 // some 40 lines
	l.end = append(l.end, p...)
	l.end = l.end[max(0, len(l.end)-keep):]
	if l.next != nil {
		_, _ = l.next.Write(p)
	}
	return len(p), nil
}

func (l *logTail) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = nil
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.end))
}

// describe adds the end of the log to an error.
func (l *logTail) describe(err error) error {
	return fmt.Errorf("%w; the server's log ends:\n%s", err, l)
}
