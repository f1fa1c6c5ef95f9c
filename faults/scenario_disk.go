package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db/localpg"
)

// diskSize is enough for the events of the scenario, and little enough to be full at once.
const diskSize = 512 << 20

// diskFull fills the disk of PostgreSQL, WAL and all, while host and workers write, and frees it.
func diskFull() scenario {
	var disk string
	return scenario{
		name: "disk-full", what: "the disk of PostgreSQL full, and freed",
		workers: 2, load: usualLoad(), recovery: afterFault, market: sluggish,
		settings: map[string]string{"max_wal_size": "64MB", "min_wal_size": "32MB"},
		ground: func(f *field, o *localpg.Options) (err error) {
			if disk, err = f.mountDisk(); err == nil {
				o.Dir = filepath.Join(disk, "data")
			}
			return err
		},
		run: func(ctx context.Context, f *field) error {
			for range f.scaled(2, 1) {
				if !pause(ctx, f.seconds(6)) {
					return ctx.Err()
				}
				if err := f.fillDisk(ctx, disk); err != nil {
					return err
				}
			}
			pause(ctx, f.seconds(6))
			return nil
		},
	}
}

// mountDisk makes a small disk of memory, which takes the right to mount.
func (f *field) mountDisk() (string, error) {
	dir, err := os.MkdirTemp("", "mailhook-disk-")
	if err != nil {
		return "", err
	}
	f.atEnd(func() { os.Remove(dir) }) //nolint:errcheck // in a temporary directory
	options := fmt.Sprintf("size=%d,mode=0755", diskSize)
	if out, err := exec.CommandContext(context.Background(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil { //nolint:gosec // ours
		return "", notRun(fmt.Sprintf("a disk that may fill takes the right to mount: %v: %.100s", err, out))
	}
	f.atEnd(func() {
		out, err := exec.CommandContext(context.Background(), "umount", dir).CombinedOutput() //nolint:gosec // ours
		if err != nil {
			progress("unmount %s: %v: %s", dir, err, out)
		}
	})
	return dir, nil
}

// fillDisk leaves not a byte for a while, gives all of it back, and starts PostgreSQL again if it has ended over it.
func (f *field) fillDisk(ctx context.Context, disk string) error {
	x := fault{from: time.Now(), outage: true}
	ballast := filepath.Join(disk, "ballast")
	for end := x.from.Add(f.seconds(6)); time.Now().Before(end); { // again: what PostgreSQL gives back is taken, too
		if err := fill(ballast); err != nil {
			return err
		}
		pause(ctx, 100*time.Millisecond)
		f.switchSegment(ctx)
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	freed := time.Now()
	restarted, err := f.revive(ctx)
	x.to = time.Now()
	f.faulty(x)
	refused := f.host.failuresBetween(x.from, x.to)
	f.note("disk full for %.1f s, %d statements of the host failed; PostgreSQL back %.1f s after, started again by us: %v", freed.Sub(x.from).Seconds(), refused, x.to.Sub(freed).Seconds(), restarted)
	if refused == 0 {
		f.problem("the host wrote on: the disk was not full, and nothing was shown")
	}
	return err
}

// switchSegment has PostgreSQL begin a new segment of WAL, so that those it has in store are soon used up: without room for
// the next it ends in a PANIC.
func (f *field) switchSegment(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	f.pool.Exec(ctx, "SELECT pg_switch_wal()") //nolint:errcheck // it is to fail in the end
}

// fill appends to a file until there is no room.
func fill(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is ballast
	for size := 1 << 20; size > 0; {
		n, err := file.Write(make([]byte, size))
		switch {
		case err == nil:
		case !errors.Is(err, syscall.ENOSPC):
			return err
		case n == 0:
			size /= 2
		}
	}
	return nil
}

// revive waits until PostgreSQL takes writes again, and starts it when nobody listens there any more.
func (f *field) revive(ctx context.Context) (restarted bool, err error) {
	return restarted, eventually(ctx, 30*time.Second, "PostgreSQL takes writes again", func() (bool, error) {
		conn, err := pgx.Connect(ctx, f.url)
		if errors.Is(err, syscall.ECONNREFUSED) {
			restarted = true
			return false, f.server.Restart(ctx)
		}
		if err != nil {
			return false, nil // it recovers
		}
		defer conn.Close(ctx) //nolint:errcheck // to be asked again
		_, err = conn.Exec(ctx, "INSERT INTO host.bystanders VALUES (now())")
		return err == nil, nil
	})
}

// failuresBetween counts the host's statements that failed in a time.
func (h *host) failuresBetween(from, to time.Time) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.trouble {
		if !t.slow && t.to.After(from) && t.from.Before(to) {
			n++
		}
	}
	return n
}
