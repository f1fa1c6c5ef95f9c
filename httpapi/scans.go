package httpapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// A scan reads many events, for seconds where there are many, and holds a connection for it: of all accounts together, and of one, so many
// go on at a time that everybody else finds one.
const (
	maxScans          = 4
	maxScansOfAccount = 2
	scanPatience      = 3 * time.Second
)

// scans admits them.
type scans struct {
	all *semaphore.Weighted

	mu        sync.Mutex
	byAccount map[string]int
}

func newScans() *scans {
	return &scans{all: semaphore.NewWeighted(maxScans), byAccount: map[string]int{}}
}

// begin admits a scan of an account's events, after a wait where other accounts have theirs; call end after it.
func (s *scans) begin(ctx context.Context, account string) (end func(), err error) {
	if !s.enter(account) {
		return nil, tooMany(time.Second, fmt.Sprintf("%d previews or counts of this account are under way: wait for one to end", maxScansOfAccount))
	}
	ctx, cancel := context.WithTimeout(ctx, scanPatience)
	defer cancel()
	if s.all.Acquire(ctx, 1) != nil {
		s.leave(account)
		return nil, tooMany(time.Second, "too many previews and counts are under way: try again")
	}
	return func() {
		s.all.Release(1)
		s.leave(account)
	}, nil
}

func (s *scans) enter(account string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAccount[account] >= maxScansOfAccount {
		return false
	}
	s.byAccount[account]++
	return true
}

func (s *scans) leave(account string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAccount[account]--; s.byAccount[account] == 0 {
		delete(s.byAccount, account)
	}
}
