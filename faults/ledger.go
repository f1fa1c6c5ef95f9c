package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// A ledger is a file of JSON lines that is only appended to. What is in it decides: the checker reads the files, and
// trusts no counter beside them.
type ledger struct {
	file *os.File

	mu      sync.Mutex
	synced  *sync.Cond
	written int64 // lines handed to the system
	durable int64 // of these, on disk
	syncing bool
	err     error // the first; a ledger that cannot write proves nothing
}

func newLedger(path string) (*ledger, error) {
	file, err := os.Create(path) //nolint:gosec // a path of ours
	if err != nil {
		return nil, err
	}
	l := &ledger{file: file}
	l.synced = sync.NewCond(&l.mu)
	return l, nil
}

// append writes a line before it returns. It survives this process, not the machine.
func (l *ledger) append(entry any) error {
	line, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(line)
}

// appendDurably returns when the line is on disk. Those that come while a sync runs share the next one.
func (l *ledger) appendDurably(entry any) error {
	line, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.write(line); err != nil {
		return err
	}
	for mine := l.written; l.durable < mine && l.err == nil; {
		if l.syncing {
			l.synced.Wait()
			continue
		}
		upTo := l.written
		l.syncing = true
		l.mu.Unlock()
		err := l.file.Sync()
		l.mu.Lock()
		l.syncing, l.durable, l.err = false, upTo, errors.Join(l.err, err)
		l.synced.Broadcast()
	}
	return l.err
}

func (l *ledger) write(line []byte) error {
	if l.err == nil {
		_, l.err = l.file.Write(append(line, '\n'))
		l.written++
	}
	return l.err
}

// readLedger hands every line of a ledger to f, in the order in which they were written.
func readLedger[T any](l *ledger, f func(T)) error {
	file, err := os.Open(l.file.Name())
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	lines := json.NewDecoder(bufio.NewReaderSize(file, 1<<20))
	for {
		var entry T
		err := lines.Decode(&entry)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file.Name(), err)
		}
		f(entry)
	}
}
