package localpg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Clock is the wall clock of a server, or of several, which may be stepped
// while they run: Options.Clock. Monotonic clocks go on as they are, as when an
// operator or NTP sets the time. Its methods may be called from several
// goroutines.
//
// PostgreSQL's own timeouts and pg_sleep go by the wall clock: those that are
// under way at a step back are late by as much.
type Clock struct {
	library, file string

	mu     sync.Mutex
	offset time.Duration
}

// clockSource is preloaded into the server. libfaketime would not do: it shows
// the machine's time to a signal handler that interrupts a wait, so that with
// its clock 15 s ahead a statement_timeout of 1 s took 16 s of pg_sleep; and it
// opens a file at each look, in that handler too. This reads shared memory.
const clockSource = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t *offset; /* ns */

__attribute__((constructor)) static void map_offset(void) {
	const char *path = getenv("MAILHOOK_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED) {
		static const char message[] = "cannot map the clock in MAILHOOK_CLOCK\n";
		(void)!write(2, message, sizeof message - 1);
		_exit(1);
	}
	close(fd);
	offset = page;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
	int rc = syscall(SYS_clock_gettime, id, ts);
	if (rc == 0 && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		int64_t ns = ts->tv_nsec + __atomic_load_n(offset, __ATOMIC_RELAXED);
		int64_t seconds = ns / 1000000000 - (ns % 1000000000 < 0);
		ts->tv_sec += seconds;
		ts->tv_nsec = ns - seconds * 1000000000;
	}
	return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
	struct timespec ts;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t) {
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	if (t)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
`

// NewClock makes a clock that shows the right time. It compiles a few lines of C
// into dir, an existing directory that the account PostgreSQL runs as must be
// able to enter. The error is exec.ErrNotFound, and says what to install, when
// this machine has no C compiler, and errors.ErrUnsupported on anything but
// Linux.
func NewClock(dir string) (*Clock, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("make clock: %w", err)
	}
	c := &Clock{library: filepath.Join(dir, "clock.so"), file: filepath.Join(dir, "clock")}
	if err := c.compile(); err != nil {
		return nil, fmt.Errorf("make clock: %w", err)
	}
	return c, c.Step(0)
}

// Step sets the clock forward by d, or back if d is negative, from where it
// stands. Running sessions see it with their next look at the clock.
func (c *Clock) Step(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	file, err := os.OpenFile(c.file, os.O_WRONLY|os.O_CREATE, 0o644) //nolint:gosec // another user reads it, and it is no secret
	if err != nil {
		return fmt.Errorf("step clock: %w", err)
	}
	// In place, for it is mapped. Eight bytes in one write are copied as one word.
	err = errors.Join(binary.Write(file, binary.NativeEndian, int64(c.offset+d)), file.Close())
	if err != nil {
		return fmt.Errorf("step clock: %w", err)
	}
	c.offset += d
	return nil
}

// Offset is how far the clock is ahead of the machine's; negative if behind.
func (c *Clock) Offset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offset
}

func (c *Clock) compile() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("%w: it is preloaded as Linux does", errors.ErrUnsupported)
	}
	compiler, err := exec.LookPath("cc")
	if err != nil {
		return fmt.Errorf("%w: run `apt-get install gcc` (Debian, Ubuntu)", err)
	}
	cmd := exec.CommandContext(context.Background(), compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-x", "c", "-o", c.library, "-") //nolint:gosec // the compiler of this machine
	cmd.Stdin = strings.NewReader(clockSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cc: %w:\n%s", err, out)
	}
	return nil
}

// environment makes a program live by the clock; nil means the machine's.
func (c *Clock) environment() []string {
	if c == nil {
		return nil
	}
	return []string{"LD_PRELOAD=" + c.library, "MAILHOOK_CLOCK=" + c.file}
}

// check says whether the account can live by the clock: the loader starts a
// program without a library that it cannot read.
func (c *Clock) check(a *account) error {
	if c == nil || a.can("-r", c.library) && a.can("-r", c.file) {
		return nil
	}
	return fmt.Errorf("user %s cannot read %s: choose a directory that others may enter", a.name, c.library)
}
