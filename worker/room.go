package worker

import (
	"time"

	"github.com/google/uuid"
)

// A room is what may still come in.
type room struct {
	dispatch, claim int   // deliveries of the ordinary lane
	batched         int   // deliveries for batches, of either lane
	anyBatched      bool  // there were some lately
	bytes           int64 // of event data, for it
	urgent          int   // deliveries by a dispatch of the urgent lane, which runs beside those
	urgentClaim     int
	urgentBytes     int64
	more            <-chan struct{}
}

// urgentPart is what is kept for the urgent lane of the slots and of the memory: an eighth.
const urgentPart = 8

// room is what may still come in, and a channel that closes when there is more. Neither dispatch nor claim may take the
// last quarter of the slots from the other: endpoints that are slow with what is new leave room for retries, and those
// that are slow with retries for what is new. Neither may take what is kept for the urgent lane.
func (l *leases) room(maxDeliveries int, maxBytes int64) room {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left(maxDeliveries, maxBytes)
}

// left is room; l.mu is held.
func (l *leases) left(maxDeliveries int, maxBytes int64) room {
	kept := keptForUrgent(maxDeliveries)
	ordinary, share := l.deliveries-l.urgent, maxDeliveries-maxDeliveries/4
	free := maxDeliveries - ordinary - l.requests - max(l.urgent, kept)
	if l.starved {
		free -= max(1, maxDeliveries/8) // what becomes free next is for batches
	}
	r := room{
		dispatch: min(free, share-(ordinary-l.claimed)), claim: min(free, share-l.claimed), bytes: maxBytes - maxBytes/urgentPart - l.bytes - l.promisedBytes,
		urgent: min(maxDeliveries-ordinary-l.requests, kept) - l.urgent, urgentClaim: maxDeliveries - l.deliveries - l.requests, urgentBytes: maxBytes - l.bytes,
		more: l.freed,
	}
	r.anyBatched = time.Since(l.batchedAt) < time.Minute
	if l.batchedBytes < maxBytes/2 {
		r.batched = max(0, batchedOfEachSlot*maxDeliveries-l.batched-l.promised)
	}
	return r
}

// secondBytes bounds the event data of a second dispatch, and secondMemory is what that takes at most.
const (
	secondBytes  = 2 << 20
	secondMemory = 2*secondBytes + targetDeliveries*512
)

// promise keeps room for a second dispatch until release, beside as much as the first may be taking; not ok: there is less.
func (l *leases) promise(maxDeliveries int, maxBytes int64) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.left(maxDeliveries, maxBytes); r.batched < 2*targetDeliveries || r.bytes < batchBytes+secondMemory {
		return nil, false
	}
	l.promised, l.promisedBytes = targetDeliveries, secondMemory
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.promised, l.promisedBytes = 0, 0
		l.tell()
	}, true
}

// keptForUrgent is how many slots are kept for the urgent lane.
func keptForUrgent(maxDeliveries int) int {
	if maxDeliveries <= 1 {
		return 0
	}
	return max(1, maxDeliveries/urgentPart)
}

// crowd takes note of the subscriptions where urgent deliveries wait for room.
func (l *leases) crowd(ids []uuid.UUID, anew bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if anew {
		clear(l.crowded)
	}
	for _, id := range ids {
		l.crowded[id] = struct{}{}
	}
}

// want has wanted tell when one of these subscriptions may have room. It says whether each has something under way here whose end
// tells so.
func (l *leases) want(ids []uuid.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := true
	for _, id := range ids {
		if s := l.bySubscription[id]; s != nil && s.slots > 0 {
			l.wanting[id] = struct{}{}
		} else {
			all = false
		}
	}
	return all
}

// satisfy tells that a subscription has room again: if it wants it, or if it is slow, for the slow ones have their slots in common.
func (l *leases) satisfy(id uuid.UUID) {
	if len(l.wanting) == 0 {
		return
	}
	s := l.bySubscription[id]
	if _, ok := l.wanting[id]; (ok || s.isSlow(time.Now())) && s.took < claimedByClock {
		delete(l.wanting, id)
		signal(l.wanted)
	}
}
