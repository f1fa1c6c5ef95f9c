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
	// batchedOfEachSlot is how many deliveries may wait for batches and travel in them for each slot.
	batchedOfEachSlot = 20
	// leastTold is the least number of deliveries of a subscription with batches that dispatch and claim are told of.
	leastTold = 100
)

// A load is what one subscription has under way in this process.
type load struct {
	slots     int // deliveries, those that wait for a batch too
	urgent    int // of these, by the urgent lane
	single    int // of these, each with a request of its own
	isBatched bool
	requests  int           // with batches
	movedAt   time.Time     // the last request ended, or the first one began
	took      time.Duration // the last request that ended
}

// isHeld says whether this process holds a delivery or a slot of it.
func (s *load) isHeld() bool { return s.slots > 0 || s.requests > 0 }

func (s *load) moved(took time.Duration) { s.movedAt, s.took = time.Now(), took }

func (s *load) isSlow(now time.Time) bool {
	return s.took > slowAfter || (s.isBusy() && now.Sub(s.movedAt) > slowAfter)
}

// isBusy says whether requests are under way; deliveries may wait without one.
func (s *load) isBusy() bool {
	if s.isBatched {
		return s.requests > 0
	}
	return s.slots > 0
}

// take counts a delivery for its subscription; l.mu is held.
func (l *leases) take(d *delivery) {
	s := l.bySubscription[d.subscriptionID]
	switch {
	case s == nil:
		s = &load{movedAt: time.Now()}
		l.bySubscription[d.subscriptionID] = s
	case !s.isHeld():
		l.slowAndIdle--
		s.movedAt = time.Now()
	}
	s.isBatched = d.isBatched()
	s.slots++
	if d.urgent {
		s.urgent++
	}
	if !d.isBatched() {
		s.single++
	}
}

// leave takes a delivery off; l.mu is held. A subscription without any is forgotten, unless its last request was slow: all
// of them may have timed out in one moment.
func (l *leases) leave(d *delivery) {
	s := l.bySubscription[d.subscriptionID]
	if d.urgent {
		s.urgent--
	}
	if !d.isBatched() {
		s.single--
	}
	s.slots--
	l.rest(d.subscriptionID, s)
}

func (l *leases) rest(id uuid.UUID, s *load) {
	if s.isHeld() {
		return
	}
	delete(l.wanting, id)
	if s.took > slowAfter && l.slowAndIdle < slowMost {
		l.slowAndIdle++
		return
	}
	delete(l.bySubscription, id)
}

// A turn is what a request with a batch is told when it asks for a slot.
type turn int

const (
	begun  turn = iota
	busy        // its subscription has as many as it may: when one of those is over, it may ask again
	parked      // slow ones have as many as they may: when any request with a batch is over, it may ask again
	behind      // what its subscription had before it had batches is under way: at unstarved it may ask again
	full        // all slots are taken, or those for batches: unstarved tells when to ask again
)

// begin takes a slot for a request with a batch. most is what the subscription may have here. All of them together have
// half of the slots, the slow ones half of that, in equal parts.
func (l *leases) begin(id uuid.UUID, most, maxInFlight int) turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, now := l.bySubscription[id], time.Now()
	switch {
	case s == nil || s.requests >= most:
		return busy
	case s.requests+s.single >= most:
		l.starved = true
		return behind
	case l.requests >= max(1, maxInFlight/2) || l.requests+l.deliveries-l.urgent+max(l.urgent, keptForUrgent(maxInFlight)) >= maxInFlight:
		l.starved = true
		return full
	case s.isSlow(now):
		n, requests := l.slowWithRequests(now)
		if requests > 0 && requests >= maxInFlight/4 {
			return parked
		}
		if s.requests > 0 && s.requests >= maxInFlight/4/n {
			return busy
		}
	}
	if s.requests == 0 {
		s.movedAt = now
	}
	s.requests++
	l.requests++
	return begun
}

// slowWithRequests counts the slow subscriptions with batches under way, and those; l.mu is held.
func (l *leases) slowWithRequests(now time.Time) (n, requests int) {
	for _, s := range l.bySubscription {
		if s.requests > 0 && s.isSlow(now) {
			n++
			requests += s.requests
		}
	}
	return n, requests
}

// end gives the slot of a batch back; its last request took some time, 0 where none was made.
func (l *leases) end(id uuid.UUID, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.bySubscription[id]
	if took > 0 {
		s.moved(took)
	}
	s.requests--
	l.requests--
	l.rest(id, s)
	l.feed()
	l.tell()
}

// feed tells a batch that waits for a slot that there may be one; l.mu is held.
func (l *leases) feed() {
	if l.starved {
		l.starved = false
		signal(l.unstarved)
	}
}

// What dispatch and claim must know of the subscriptions here: JSON objects of subscription id to number.
type loads struct {
	inFlight []byte // by the ordinary lane
	urgent   []byte // by the urgent one
	limits   []byte // of slow ones: the slots that they may have
}

// load answers how many deliveries each subscription has here, and the most that slow ones may have: all of those together
// half of what there is room for, in equal parts, so that others find room however many endpoints are slow or dead. While
// they have that half, none of them gets more. Those with batches have a room of their own. An ordinary dispatch or claim
// gives way: nothing for subscriptions where urgent deliveries wait for room.
func (l *leases) load(maxDeliveries int, givesWay bool) loads {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var inFlight, urgent, limits object
	single, batched := slowOnes{byID: map[uuid.UUID]int{}}, slowOnes{byID: map[uuid.UUID]int{}}
	for id, s := range l.bySubscription {
		if !s.isHeld() && now.Sub(s.movedAt) > slowMemory {
			delete(l.bySubscription, id)
			l.slowAndIdle--
			continue
		}
		// Of those with batches only what is worth telling, for there may be twenty times as many, and what has begun: they may have none any more.
		if s.slots >= leastTold || s.slots > 0 && !s.isBatched || s.requests > 0 {
			inFlight.add(id, s.slots-s.urgent)
			if s.urgent > 0 {
				urgent.add(id, s.urgent)
			}
		}
		if s.isSlow(now) && s.isBatched {
			batched.add(id, s)
		} else if s.isSlow(now) {
			single.add(id, s)
		}
	}
	crowded := l.crowded
	if !givesWay {
		crowded = nil
	}
	single.limit(&limits, maxDeliveries, crowded)
	batched.limit(&limits, batchedOfEachSlot*maxDeliveries, crowded)
	for id := range crowded {
		limits.add(id, 0)
	}
	return loads{inFlight.close(), urgent.close(), limits.close()}
}

// slowOnes are the slow subscriptions of one kind, and how many deliveries each has.
type slowOnes struct {
	byID        map[uuid.UUID]int
	busy, slots int
}

func (o *slowOnes) add(id uuid.UUID, s *load) {
	o.byID[id] = s.slots
	o.slots += s.slots
	o.busy += min(s.slots, 1)
}

// limit adds the part of each, but of those that get none at all.
func (o *slowOnes) limit(limits *object, most int, without map[uuid.UUID]struct{}) {
	half := max(1, most/2)
	for id, n := range o.byID {
		if _, ok := without[id]; ok {
			continue
		}
		part := max(1, half/(o.busy+1-min(n, 1))) // divided by those with slots, and the one that asks
		if o.slots >= half {
			part = min(part, n)
		}
		limits.add(id, part)
	}
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
