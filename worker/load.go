package worker

import (
	"strconv"
	"time"

	"github.com/google/uuid"
)

const (
	// slowAfter is how long a request may take before its subscription counts as slow.
	slowAfter = 500 * time.Millisecond
	// slowMemory is how long a subscription without requests under way counts as slow for its last one, and slowMost how
	// many such are remembered.
	slowMemory = time.Minute
	slowMost   = 1000
)

// A load is what one subscription has under way in this process.
type load struct {
	slots   int
	urgent  int           // of these, by the urgent lane
	movedAt time.Time     // the last request ended, or the first one began
	took    time.Duration // the last request that ended
}

func (s *load) moved(took time.Duration) { s.movedAt, s.took = time.Now(), took }

func (s *load) isSlow(now time.Time) bool {
	return s.took > slowAfter || (s.slots > 0 && now.Sub(s.movedAt) > slowAfter)
}

// take gives a subscription a slot; l.mu is held.
func (l *leases) take(d *delivery) {
	id := d.subscriptionID
	s := l.bySubscription[id]
	switch {
	case s == nil:
		s = &load{movedAt: time.Now()}
		l.bySubscription[id] = s
	case s.slots == 0:
		l.slowAndIdle--
		s.movedAt = time.Now()
	}
	s.slots++
	if d.urgent {
		s.urgent++
	}
}

// leave takes a slot back; l.mu is held. A subscription without one is forgotten, unless its last request was slow: all of
// them may have timed out in one moment.
func (l *leases) leave(d *delivery) {
	id := d.subscriptionID
	s := l.bySubscription[id]
	if d.urgent {
		s.urgent--
	}
	if s.slots--; s.slots > 0 {
		return
	}
	if s.took > slowAfter && l.slowAndIdle < slowMost {
		l.slowAndIdle++
		return
	}
	delete(l.bySubscription, id)
}

// What dispatch and claim must know of the subscriptions here: JSON objects of subscription id to number.
type loads struct {
	inFlight []byte // by the ordinary lane
	urgent   []byte // by the urgent one
	limits   []byte // of slow ones: the slots that they may have
}

// load answers how many slots each subscription has, and the most that slow ones may have: all of those together half of
// the slots, in equal parts, so that others find free ones however many endpoints are slow or dead. While they have that
// half, none of them gets more. An ordinary dispatch or claim gives way: nothing for subscriptions where urgent deliveries wait for room.
func (l *leases) load(maxDeliveries int, givesWay bool) loads {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var inFlight, urgent, limits object
	slow, busy, slots := map[uuid.UUID]int{}, 0, 0
	for id, s := range l.bySubscription {
		if s.slots > 0 {
			inFlight.add(id, s.slots-s.urgent)
			if s.urgent > 0 {
				urgent.add(id, s.urgent)
			}
		} else if now.Sub(s.movedAt) > slowMemory {
			delete(l.bySubscription, id)
			l.slowAndIdle--
			continue
		}
		if s.isSlow(now) {
			slow[id] = s.slots
			slots += s.slots
			busy += min(s.slots, 1)
		}
	}
	half := max(1, maxDeliveries/2)
	for id, n := range slow {
		if _, ok := l.crowded[id]; ok && givesWay {
			continue
		}
		part := max(1, half/(busy+1-min(n, 1))) // divided by those with slots, and the one that asks
		if slots >= half {
			part = min(part, n)
		}
		limits.add(id, part)
	}
	if givesWay {
		for id := range l.crowded {
			limits.add(id, 0)
		}
	}
	return loads{inFlight.close(), urgent.close(), limits.close()}
}

// An object is a JSON object that is written.
type object []byte

func (o *object) add(id uuid.UUID, n int) {
	separator := byte(',')
	if len(*o) == 0 {
		separator = '{'
	}
	*o = append(*o, separator, '"')
	*o = append(*o, id.String()...)
	*o = append(*o, `":`...)
	*o = strconv.AppendInt(*o, int64(n), 10)
}

func (o *object) close() []byte {
	if len(*o) == 0 {
		return []byte("{}")
	}
	return append(*o, '}')
}
