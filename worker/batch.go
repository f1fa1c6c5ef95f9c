package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// batchBodyBytes bounds the body of a request with several events.
const batchBodyBytes = 768 << 10

// batching is what a subscription has said about batches.
type batching struct {
	maxEvents int
	maxWait   time.Duration
}

// batches collects the deliveries of subscriptions that get several events in one request. They are leased, as all that is
// in memory; they wait here until there are enough of them, or the first has waited for long enough, and then for a slot.
type batches struct {
	w *Worker

	mu        sync.Mutex
	lines     map[uuid.UUID]*line // by subscription
	ready     []*line             // that have something ripe, and may have a slot free
	parked    []*line             // ready, but for what other slow ones have under way
	behind    []*line             // ready, but for what they had under way before they had batches
	isHurried bool                // nothing waits for others any more
}

// A line is what waits of one subscription.
type line struct {
	id      uuid.UUID
	ctx     context.Context // of its requests
	most    int             // requests under way at one time
	piles   map[pileKey]*pile
	ripe    []*pile
	isReady bool
}

// Deliveries of one pile go together: those of one failed batch, or any of one lane that have been tried as often.
type pileKey struct {
	batchID  uuid.UUID
	attempt  int
	isUrgent bool
}

type pile struct {
	key        pileKey
	deliveries []*delivery
	bytes      int // of their bodies, about
	isRipe     bool
	timer      *time.Timer // nil: none runs
}

func newBatches(w *Worker) *batches { return &batches{w: w, lines: map[uuid.UUID]*line{}} }

// run starts what found no slot, when there may be one again, until ctx ends.
func (b *batches) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.w.leases.unstarved:
			b.mu.Lock()
			b.enqueueAll(&b.behind)
			b.startReady()
			b.mu.Unlock()
		}
	}
}

// add lets deliveries of one subscription wait for others, and starts what is ripe. Those of a failed batch come all at
// once, from one claim.
func (b *batches) add(ctx context.Context, s *subscription, deliveries []*delivery) {
	isCrowded := b.w.leases.isCrowded(b.w.cfg.MaxInFlight, b.w.cfg.MaxBodyBytes)
	b.mu.Lock()
	defer b.mu.Unlock()
	id := deliveries[0].subscriptionID
	l := b.lines[id]
	if l == nil {
		l = &line{id: id, piles: map[pileKey]*pile{}}
		b.lines[id] = l
	}
	l.ctx = ctx
	now := time.Now()
	for _, d := range deliveries {
		l.most, d.since = d.requests, now
		key := pileKey{batchID: d.batchID, attempt: d.attempt, isUrgent: d.event.urgent && d.batchID == uuid.Nil}
		p := l.piles[key]
		if p == nil {
			p = &pile{key: key}
			l.piles[key] = p
		}
		p.deliveries = append(p.deliveries, d)
		p.bytes += bodySize(d)
	}
	if isCrowded {
		b.ripenAll()
	}
	for _, p := range l.piles {
		b.look(l, p, s)
	}
	b.startReady()
}

// bodySize is what an event takes in a body, about; what does not fit is left to the next request.
func bodySize(d *delivery) int { return len(d.event.Data) + 256 }

// look finds out whether a pile is ripe, or sets its timer; b.mu is held.
func (b *batches) look(l *line, p *pile, s *subscription) {
	if p.isRipe {
		return
	}
	first := p.deliveries[0]
	wait := s.batch.maxWait - time.Since(first.since)
	if b.isHurried || first.isProbe || p.key.batchID != uuid.Nil || wait <= 0 || len(p.deliveries) >= s.batch.maxEvents || p.bytes >= batchBodyBytes {
		b.ripen(l, p)
		return
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if l.piles[p.key] == p && !p.isRipe {
				b.ripen(l, p)
				b.startReady()
			}
		})
	}
}

// ripen puts a pile among those that wait for nothing but a slot; b.mu is held.
func (b *batches) ripen(l *line, p *pile) {
	p.stop()
	p.isRipe = true
	if l.ripe = append(l.ripe, p); p.key.isUrgent {
		l.ripe = slices.Insert(l.ripe[:len(l.ripe)-1], 0, p) // before all others of its subscription
	}
	b.enqueue(l)
}

func (b *batches) ripenAll() {
	for _, l := range b.lines {
		for _, p := range l.piles {
			if !p.isRipe {
				b.ripen(l, p)
			}
		}
	}
}

func (p *pile) stop() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

func (b *batches) enqueue(l *line) {
	if !l.isReady && len(l.ripe) > 0 {
		l.isReady = true
		b.ready = append(b.ready, l)
	}
}

// startReady starts one request of each line in turn, as long as there are slots; b.mu is held.
func (b *batches) startReady() {
	for len(b.ready) > 0 {
		l := b.ready[0]
		if len(l.ripe) == 0 { // taken back
			b.ready, l.isReady = b.ready[1:], false
			continue
		}
		took := b.w.leases.begin(l.id, b.mostOf(l), b.w.cfg.MaxInFlight)
		if took == full {
			return
		}
		b.ready, l.isReady = b.ready[1:], false
		switch took {
		case full, busy:
		case parked:
			b.parked = append(b.parked, l)
		case behind:
			b.behind = append(b.behind, l)
		case begun:
			b.w.hand(l.ctx, job{batch: b.cut(l)})
			b.enqueue(l)
		}
	}
}

// mostOf is how many requests of a line may be under way here: what the last lease said, or less where the cap or this
// worker's share of it has become less since.
func (b *batches) mostOf(l *line) int {
	s := b.w.cache.get(l.id)
	if s == nil || s.mostAtOnce == 0 {
		return l.most
	}
	crew := b.w.state.crew()
	return min(l.most, int((s.mostAtOnce+crew-1)/crew))
}

// cut takes the deliveries of the next request from a line; b.mu is held.
func (b *batches) cut(l *line) []*delivery {
	p := l.ripe[0]
	l.ripe = l.ripe[1:]
	s := b.w.cache.get(l.id)
	most := len(p.deliveries)
	if s != nil && s.batch != nil {
		most = min(most, s.batch.maxEvents)
	}
	n, bytes := 1, bodySize(p.deliveries[0])
	for ; n < most; n++ {
		size := bodySize(p.deliveries[n])
		if bytes+size > batchBodyBytes {
			break
		}
		bytes += size
	}
	taken := p.deliveries[:n:n]
	p.deliveries, p.bytes, p.isRipe = p.deliveries[n:], p.bytes-bytes, false
	switch {
	case len(p.deliveries) == 0:
		b.remove(l, p)
	case s == nil || s.batch == nil:
		b.ripen(l, p)
	default:
		b.look(l, p, s)
	}
	return taken
}

func (b *batches) remove(l *line, p *pile) {
	p.stop()
	delete(l.piles, p.key)
	if len(l.piles) == 0 {
		delete(b.lines, l.id)
	}
}

// ended lets a subscription's next batch ask for the slot that one of its own had.
func (b *batches) ended(id uuid.UUID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enqueueAll(&b.parked) // first: a slow subscription that goes on and on would always be before those that wait for it
	if l := b.lines[id]; l != nil {
		b.enqueue(l)
	}
	b.startReady()
}

func (b *batches) enqueueAll(lines *[]*line) {
	waiting := *lines
	*lines = nil
	for _, l := range waiting {
		b.enqueue(l)
	}
}

// hurry lets nothing wait for others from now on.
func (b *batches) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.isHurried = true
	b.ripenAll()
	b.startReady()
}

// takeBack takes out what waits of one subscription.
func (b *batches) takeBack(id uuid.UUID) (deliveries []*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lines[id]
	if l == nil {
		return nil
	}
	for _, p := range l.piles {
		deliveries = append(deliveries, p.deliveries...)
		b.remove(l, p)
	}
	l.ripe = nil
	return deliveries
}

// takeAllBack takes out whatever waits.
func (b *batches) takeAllBack() (deliveries []*delivery) {
	b.mu.Lock()
	ids := make([]uuid.UUID, 0, len(b.lines))
	for id := range b.lines {
		ids = append(ids, id)
	}
	b.mu.Unlock()
	for _, id := range ids {
		deliveries = append(deliveries, b.takeBack(id)...)
	}
	return deliveries
}
