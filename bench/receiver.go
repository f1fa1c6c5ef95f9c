package main

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync"
	"time"
)

// A receiver answers every POST with 200 at the least cost, for its cost is in every contestant's figure: one thread, one
// read and one write a request. The path says how it behaves:
//
//	/ok…     answers at once
//	/slow…   answers after 5 s
//	/never…  does not answer
type receiver struct {
	url  string
	loop *loop

	mu          sync.Mutex
	count       int64 // requests to /ok
	slow, never int64
	connections int64 // accepted since the last reset
	repeated    int64 // requests with a path and a webhook-id that had come before
	seen        hashSet
	seed        maphash.Seed
	marks       []time.Time // of the first request to /ok, and of every markEvery-th after it
	last        time.Time   // of the latest request to /ok
	goal        int64       // reached is closed when count comes to it
	reached     chan struct{}
	arrived     map[int64]time.Time // by the number in data, where it is watched
	from        int64               // the least number that is
}

// markEvery is how many requests lie between two marks.
const markEvery = 1000

func newReceiver() (*receiver, error) {
	r := &receiver{seed: maphash.MakeSeed()}
	r.reset(0)
	var err error
	if r.loop, r.url, err = listen(r.request, func() {
		r.mu.Lock()
		r.connections++
		r.mu.Unlock()
	}); err != nil {
		return nil, err
	}
	return r, nil
}

// reset forgets what came; the channel it answers closes when n more requests have come to /ok.
func (r *receiver) reset(n int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count, r.slow, r.never, r.connections, r.repeated = 0, 0, 0, 0, 0
	r.seen = newHashSet(n)
	r.marks, r.arrived = nil, nil
	return r.expectLocked(n)
}

// watch is reset for a row that asks when each event came whose number is at least from.
func (r *receiver) watch(from int64) {
	r.reset(0)
	r.mu.Lock()
	r.arrived, r.from = map[int64]time.Time{}, from
	r.mu.Unlock()
}

// expect answers a channel that closes when total requests have come to /ok since the last reset.
func (r *receiver) expect(total int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.expectLocked(total)
}

func (r *receiver) expectLocked(total int64) <-chan struct{} {
	r.goal, r.reached = total, make(chan struct{})
	if r.count >= total {
		close(r.reached)
	}
	return r.reached
}

// noteEvents counts events, each of which must come once.
func (r *receiver) noteEvents(path, id, body []byte) (n int64) {
	pathHash := maphash.Bytes(r.seed, path)
	if len(body) == 0 || body[0] != '[' {
		if !r.seen.add(pathHash ^ maphash.Bytes(r.seed, id)) {
			r.repeated++
		}
		return 1
	}
	begin := []byte(`{"id":"evt_`)
	for at := bytes.Index(body, begin); at >= 0; n++ {
		id := body[at+len(begin)-len("evt_"):][:len("evt_")+40]
		if !r.seen.add(pathHash ^ maphash.Bytes(r.seed, id)) {
			r.repeated++
		}
		body = body[at+len(begin):]
		at = bytes.Index(body, begin)
	}
	return n
}

// request notes a request and says how to answer it.
func (r *receiver) request(path, id, body []byte) behaviour {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.noteEvents(path, id, body)
	if r.arrived != nil {
		r.note(body, now)
	}
	switch {
	case bytes.HasPrefix(path, []byte("/slow")):
		r.slow++
		return answerLate
	case bytes.HasPrefix(path, []byte("/never")):
		r.never++
		return answerNever
	}
	for ; n > 0; n-- {
		if r.count%markEvery == 0 {
			r.marks = append(r.marks, now)
		}
		r.count++
		if r.count == r.goal {
			close(r.reached)
		}
	}
	r.last = now
	return answerNow
}

func (r *receiver) note(body []byte, now time.Time) {
	_, rest, _ := bytes.Cut(body, []byte(`"n":`))
	end := bytes.IndexAny(rest, ",}")
	if n, err := strconv.ParseInt(string(bytes.TrimSpace(rest[:max(0, end)])), 10, 64); err == nil && n >= r.from {
		if _, again := r.arrived[n]; !again {
			r.arrived[n] = now
		}
	}
}

// check says whether exactly n deliveries came, each of them once.
func (r *receiver) check(n int64) error {
	t := r.tally()
	if t.count+t.slow != n || t.repeated != 0 {
		return fmt.Errorf("%d deliveries came instead of %d, %d of them more than once", t.count+t.slow, n, t.repeated)
	}
	return nil
}

// A tally is what has come up to now.
type tally struct{ count, slow, never, repeated, connections int64 }

func (r *receiver) tally() tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	return tally{r.count, r.slow, r.never, r.repeated, r.connections}
}

// rate is requests a second, first to last.
func (r *receiver) rate() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.marks) == 0 || r.count < 2 {
		return 0
	}
	return float64(r.count-1) / r.last.Sub(r.marks[0]).Seconds()
}

// between is requests a second from one number of requests to another, to the next mark.
func (r *receiver) between(from, to int64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, b := from/markEvery, min(to/markEvery, int64(len(r.marks)-1))
	if b <= a {
		return 0
	}
	return float64((b-a)*markEvery) / r.marks[b].Sub(r.marks[a]).Seconds()
}

// firstAt is when the first request came to /ok, lastAt the latest.
func (r *receiver) firstAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.marks) == 0 {
		return time.Time{}
	}
	return r.marks[0]
}

func (r *receiver) lastAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// watched is how many of the numbers have come.
func (r *receiver) watched() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.arrived)
}

// arrivals is when each number came first, since watch.
func (r *receiver) arrivals() map[int64]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	arrived := r.arrived
	r.arrived = nil
	return arrived
}

// A hashSet holds hashes of 64 bits: a map of as many would be a cost to every contestant.
type hashSet struct {
	slots []uint64 // 0 is free
	used  int
}

func newHashSet(n int64) hashSet {
	size := 1 << 16
	for int64(size) < 2*n {
		size *= 2
	}
	return hashSet{slots: make([]uint64, size)}
}

// add says whether the hash is new.
func (s *hashSet) add(hash uint64) bool {
	hash = max(hash, 1)
	if 2*s.used >= len(s.slots) {
		larger := newHashSet(int64(len(s.slots)))
		for _, h := range s.slots {
			if h != 0 {
				larger.add(h)
			}
		}
		*s = larger
	}
	mask := uint64(len(s.slots) - 1) //nolint:gosec // it has slots
	for i := hash & mask; ; i = (i + 1) & mask {
		switch s.slots[i] {
		case hash:
			return false
		case 0:
			s.slots[i] = hash
			s.used++
			return true
		}
	}
}
