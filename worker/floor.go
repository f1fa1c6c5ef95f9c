package worker

import (
	"slices"
	"sync"
	"time"
)

const (
	// holeAge is how long a missing id is looked for: a transaction still open after that is left to the sweep.
	holeAge = 10 * time.Second
	// maxHoles bounds the missing ids that are remembered; beyond it the oldest are left to the sweep.
	maxHoles = 20_000
	// maxProbes bounds the newest missing ids that every scan looks for: about 1 ms of index probes.
	maxProbes = 1000
	// probeAllInterval is how often all of them are looked for, and backlogInterval how often any while there is a backlog:
	// then most of what is missing was taken by other workers, and nobody waits for the rest more than for what lies there.
	probeAllInterval = 200 * time.Millisecond
	backlogInterval  = time.Second
)

// A floor lets a scan of the outbox start above the rows that are known to be gone, whose index entries stay for as
// long as any transaction of the host holds a snapshot. Rows commit out of order: with 0–20 ms of host work after the
// INSERT two thirds commit below the highest id seen. So the ids missing below it are remembered as holes, and probed.
// A floor is used by one goroutine.
type floor struct {
	after    int64 // scans start above this id
	holes    []hole
	ahead    map[int64]struct{} // above it, and gone
	probedAt time.Time
}

type hole struct {
	id    int64
	since time.Time
}

// probes are the missing ids to look for now, newest last: all of them from time to time, else only the newest, and none
// in a backlog.
func (f *floor) probes(now time.Time, backlog bool) []int64 {
	f.forget(now)
	holes := f.holes
	switch since := now.Sub(f.probedAt); {
	case since >= backlogInterval || (!backlog && since >= probeAllInterval):
		f.probedAt = now
	case backlog:
		return nil
	case len(holes) > maxProbes:
		holes = holes[len(holes)-maxProbes:]
	}
	ids := make([]int64, len(holes))
	for i, h := range holes {
		ids[i] = h.id
	}
	return ids
}

// saw takes note of the ids that a scan has taken, in ascending order.
func (f *floor) saw(ids []int64, now time.Time) {
	f.fill(ids)
	for _, id := range ids {
		if id <= f.after {
			continue
		}
		if f.after > 0 { // below the first id ever seen nothing is known, and a sweep has looked
			for missing := max(f.after+1, id-maxHoles); missing < id; missing++ {
				if _, gone := f.ahead[missing]; !gone {
					f.holes = append(f.holes, hole{missing, now})
				}
			}
		}
		f.after = id
	}
	for early := range f.ahead {
		if early <= f.after {
			delete(f.ahead, early)
		}
	}
	if excess := len(f.holes) - maxHoles; excess > 0 {
		f.holes = f.holes[excess:]
	}
}

// passed takes note of the ids that the urgent lane or the second dispatch has taken: nothing is missing there. Of those above the floor it remembers
// no more than it would holes; the rest become holes.
func (f *floor) passed(ids []int64) {
	slices.Sort(ids)
	f.fill(ids)
	for _, id := range ids {
		if id > f.after && len(f.ahead) < maxHoles {
			if f.ahead == nil {
				f.ahead = map[int64]struct{}{}
			}
			f.ahead[id] = struct{}{}
		}
	}
}

// early is the ids that the urgent lane and the second dispatch have taken, on their way to the floor of the ordinary one.
type early struct {
	mu  sync.Mutex
	ids []int64
}

func (e *early) add(ids []int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ids) < maxHoles { // while the ordinary lane finds no room
		e.ids = append(e.ids, ids...)
	}
}

func (e *early) take() []int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := e.ids
	e.ids = nil
	return ids
}

// fill removes the holes that have been found. Both lists ascend.
func (f *floor) fill(ids []int64) {
	if len(f.holes) == 0 {
		return
	}
	kept := f.holes[:0]
	for _, h := range f.holes {
		for len(ids) > 0 && ids[0] < h.id {
			ids = ids[1:]
		}
		if len(ids) == 0 || ids[0] != h.id {
			kept = append(kept, h)
		}
	}
	f.holes = kept
}

// forget drops the holes that are too old.
func (f *floor) forget(now time.Time) {
	for len(f.holes) > 0 && now.Sub(f.holes[0].since) > holeAge {
		f.holes = f.holes[1:]
	}
}

// sweepInterval is how often the outbox is scanned from its beginning while there is traffic.
const sweepInterval = 2 * time.Second

// A sweep looks below the floor now and then: for rows that committed after their hole was forgotten. It goes upwards
// over several looks, so that a backlog is not scanned from its beginning again and again. The zero value is due.
type sweep struct {
	on      bool
	after   int64 // it has come to here
	target  int64 // and ends here
	began   time.Time
	endedAt time.Time
	took    time.Duration
}

// start is the id above which the next look scans: where the sweep has come to, else the floor.
func (s *sweep) start(floor int64, now time.Time) int64 {
	if !s.on && now.Sub(s.endedAt) > max(sweepInterval, 20*s.took) {
		*s = sweep{on: true, target: floor, began: now, took: s.took}
	}
	if s.on {
		return s.after
	}
	return floor
}

// came takes note of how far a look has come; the largest int64 is the end.
func (s *sweep) came(id int64, now time.Time) {
	if !s.on {
		return
	}
	if s.after = max(s.after, id); s.after >= s.target {
		s.on, s.endedAt, s.took = false, now, now.Sub(s.began)
	}
}

// demand makes a sweep due.
func (s *sweep) demand() { *s = sweep{} }
