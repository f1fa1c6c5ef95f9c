package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// A breakage is a safeguard that the binary with the tag broken can leave out, the scenario that must turn red without it,
// and the invariant that must say so.
type breakage struct {
	what      string // of MAILHOOK_BREAK
	scenario  scenario
	invariant string
}

func breakages() []breakage {
	impatient := sigkill()
	impatient.drain = afterKill + afterFault // nobody will come
	return []breakage{
		{"fence", sigstop(), "before next_attempt_at"},
		{"rescue", impatient, "LOST"},
		{"record", impatient, "LOST"},
	}
}

// proof runs scenarios against a worker without one of its safeguards. It is green when each of them turns red.
func proof() scenario {
	return scenario{
		name: "proof", what: "without the fence, the rescue or the record's transaction, named scenarios turn red", ci: true, isLong: true,
		instead: func(ctx context.Context, o options, r *result) error {
			if o.broken == "" {
				return errors.New("MAILHOOK_BROKEN_BIN names no binary: run make faults")
			}
			o.binary = o.broken
			all := breakages()
			results := make([]result, len(all))
			var wg sync.WaitGroup
			for i, b := range all {
				s := b.scenario
				s.breaks = b.what
				wg.Go(func() { results[i] = s.execute(ctx, o) })
			}
			wg.Wait()
			for i, b := range all {
				r.Events, r.Receipts = r.Events+results[i].Events, r.Receipts+results[i].Receipts
				caught := results[i].problemWith(b.invariant)
				if caught == "" {
					r.Problems = append(r.Problems, fmt.Sprintf("without the %s, %s says nothing of %q: %s", b.what, b.scenario.name, b.invariant, results[i].line()))
					continue
				}
				r.Notes = append(r.Notes, fmt.Sprintf("without the %s, %s is red: %.160s", b.what, b.scenario.name, caught))
				os.RemoveAll(results[i].Directory) //nolint:errcheck // in a temporary directory
			}
			return nil
		},
	}
}

// problemWith is the broken invariant that has this in its name.
func (r result) problemWith(invariant string) string {
	for _, p := range r.Problems {
		if strings.Contains(p, invariant) {
			return p
		}
	}
	return ""
}
