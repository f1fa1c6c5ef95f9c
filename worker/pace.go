package worker

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// longestTurn is how far ahead a turn may be for a delivery to keep its slot while it waits. One of the urgent lane takes the
// next turn, and leaves its own to those that wait: it may be one more.
const longestTurn = time.Second

// A pace is a rate limit, in the requests of one subscription by this worker. Turns come at the rate; each goes to the delivery that
// waits for longest, an urgent one first.
type pace struct {
	limiter *rate.Limiter

	mu               sync.Mutex
	urgent, ordinary []chan struct{} // closed when it is one's turn
}

// wait waits for a turn, and answers 0; or how long it would be, if that is more than a slot should be held. Where ctx ends the
// wait, it answers 0, too: the caller looks. Without a limit, nil, it is always one's turn.
func (p *pace) wait(ctx context.Context, urgent bool) time.Duration {
	if p == nil {
		return 0
	}
	turn := p.limiter.Reserve()
	delay := turn.Delay()
	if delay == 0 {
		return 0
	}
	if next := time.Duration(float64(time.Second) / float64(p.limiter.Limit())); delay > longestTurn && (!urgent || next > longestTurn) {
		turn.Cancel()
		return delay
	}
	mine := make(chan struct{})
	p.mu.Lock()
	if urgent {
		p.urgent = append(p.urgent, mine)
	} else {
		p.ordinary = append(p.ordinary, mine)
	}
	p.mu.Unlock()
	// Whether its own turn comes with ctx still there or not: it may be another's by then.
	time.AfterFunc(delay, p.give)
	select {
	case <-mine:
	case <-ctx.Done():
	}
	return 0
}

// give gives a turn that has come to the first who waits. There are as many turns as there are who wait.
func (p *pace) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	queue := &p.urgent
	if len(*queue) == 0 {
		queue = &p.ordinary
	}
	if len(*queue) > 0 {
		close((*queue)[0])
		*queue = (*queue)[1:]
	}
}
