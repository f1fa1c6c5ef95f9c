//go:build !race

// The binary that is measured is without the race detector: once is enough.

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

// 100,000 events wait: the worker's memory is bounded by its flags, not by the backlog.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	f := newField(t)
	f.subscribe(t, subscriber{account: "default", types: []string{"*"}, secret: "a secret of sixteen or more"})
	f.Exec(t, "UPDATE mailhook.subscriptions SET max_in_flight = 1000")
	f.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', json_build_object('n', n, 'pad', repeat('x', 1000)) FROM generate_series(1, 100000) AS n")
	// Built by itself: this binary may be one with the race detector, whose memory is another's.
	binary := filepath.Join(t.TempDir(), "mailhook")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(binary, "worker", "--log-level", "error")
	cmd.Env, cmd.Stderr = append(os.Environ(), f.env()...), os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dbtest.Eventually(t, "all delivered", func() bool {
		return dbtest.QueryOne[int64](t, f.DB, "SELECT (SELECT count(*) FROM mailhook.deliveries) + (SELECT count(*) FROM mailhook.outbox)") == 0
	})
	peak := peakMemory(t, cmd.Process.Pid)
	t.Logf("peak resident memory %d MB", peak>>20)
	if peak > 150<<20 {
		t.Errorf("peak resident memory %d MB", peak>>20)
	}
}

// peakMemory is the most resident memory that a process has had, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	if out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output(); err == nil && !fileExists("/proc/self/status") {
		kilobytes, _ := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		return kilobytes << 10 // no peak here: what it is now
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	kilobytes, _ := strconv.ParseInt(string(match[1]), 10, 64)
	return kilobytes << 10
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
