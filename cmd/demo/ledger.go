package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"mailhook/cmd/receiver"
)

// subscriptionCount is how many receivers each event goes to.
const subscriptionCount = 2

// A ledger knows of every event what the platform did with it and where it arrived.
type ledger struct {
	mu         sync.Mutex
	begun      time.Time
	commits    map[string]time.Time // zero while the commit is under way
	rollbacks  map[string]bool
	arrivals   map[string]map[string]bool // event id → path → verified and answered 2xx
	delivered  int
	duplicates int
	forbidden  int // arrived after their rollback
	unverified int
	failures   int // answered 500 on purpose
	requests   int
	latencies  []time.Duration // commit to first receipt at the steady receiver
	changed    chan struct{}
}

func newLedger() *ledger {
	return &ledger{
		begun: time.Now(), commits: map[string]time.Time{}, rollbacks: map[string]bool{}, arrivals: map[string]map[string]bool{}, changed: make(chan struct{}),
	}
}

func (l *ledger) rolledBack(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.rollbacks[id] = true
	}
}

func (l *ledger) committing(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.commits[id] = time.Time{}
	}
}

func (l *ledger) committed(ids []string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.commits[id] = at
	}
}

// receive notes a request down and then answers it.
func (l *ledger) receive(w http.ResponseWriter, r receiver.Receipt, out io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	status := http.StatusNoContent
	switch {
	case r.Problem != nil:
		l.unverified++
		status = http.StatusBadRequest
	case r.Path == flakyPath && l.requests%5 == 0:
		l.failures++
		status = http.StatusInternalServerError
	default:
		l.arrive(r, out)
	}
	w.WriteHeader(status)
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *ledger) arrive(r receiver.Receipt, out io.Writer) {
	if l.delivered == 0 {
		fmt.Fprintf(out, "first delivery after %v, both signatures verified:\n%s\n\n", time.Since(l.begun).Round(time.Millisecond), r.Body)
	}
	paths := l.arrivals[r.ID]
	if paths == nil {
		paths = map[string]bool{}
		l.arrivals[r.ID] = paths
	}
	at, known := l.commits[r.ID]
	switch {
	case l.rollbacks[r.ID]:
		l.forbidden++
	case paths[r.Path]:
		l.duplicates++
	case known:
		l.delivered++
		if r.Path == steadyPath && !at.IsZero() {
			l.latencies = append(l.latencies, r.At.Sub(at))
		}
	}
	paths[r.Path] = true
}

// settle waits until every committed event has arrived everywhere.
func (l *ledger) settle(within time.Duration) {
	deadline := time.After(within)
	for {
		l.mu.Lock()
		missing, changed := subscriptionCount*len(l.commits)-l.delivered, l.changed
		l.mu.Unlock()
		if missing == 0 {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			return
		}
	}
}

// progress prints a line each second.
func (l *ledger) progress(ctx context.Context, out io.Writer) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l.mu.Lock()
		fmt.Fprintf(out, "%3.0f s   committed %5d   rolled back %4d   delivered %5d   failed and retried %4d\n",
			time.Since(l.begun).Seconds(), len(l.commits), len(l.rollbacks), l.delivered, l.failures)
		l.mu.Unlock()
	}
}

// close prints the ledger, and answers errLedger if it does not add up.
func (l *ledger) close(out io.Writer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	expected := subscriptionCount * len(l.commits)
	lost := expected - l.delivered
	slices.Sort(l.latencies)
	fmt.Fprintf(out, `
ledger
  committed events        %6d
  rolled back events      %6d
  deliveries expected     %6d   (each committed event for %d subscriptions)
  delivered               %6d
  lost                    %6d
  sent after rollback     %6d
  duplicates              %6d
  answered 500 on purpose %6d   (retried until delivered)
  wrong signatures        %6d   (of %d requests)
  commit → receipt        p50 %v, p99 %v
`, len(l.commits), len(l.rollbacks), expected, subscriptionCount, l.delivered, lost, l.forbidden, l.duplicates, l.failures, l.unverified, l.requests,
		quantile(l.latencies, 0.5), quantile(l.latencies, 0.99))
	if lost != 0 || l.forbidden != 0 || l.unverified != 0 || expected == 0 {
		return errLedger
	}
	return nil
}

// quantile of an ascending list, rounded for people; 0 of an empty one.
func quantile(ascending []time.Duration, q float64) time.Duration {
	if len(ascending) == 0 {
		return 0
	}
	return ascending[int(q*float64(len(ascending)-1))].Round(10 * time.Microsecond)
}
