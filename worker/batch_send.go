package worker

import (
	"context"
	"math/bits"
	"slices"
	"time"
)

// vanishedParts is in how many a batch is cut whose receiver gave no answer of its own: one event of a thousand is alone after four cuts.
const vanishedParts = 8

// batchExcerpt is how much of an answer is kept with each of several deliveries of one request.
const batchExcerpt = 256

// deliverBatch is the whole way of deliveries that go together, in a slot that is theirs: as deliver.
func (w *Worker) deliverBatch(ctx context.Context, sender *sender, deliveries []*delivery) {
	id, took := deliveries[0].subscriptionID, time.Duration(0)
	slices.SortFunc(deliveries, byEvent)
	for len(deliveries) > 0 {
		s, delay := w.turn(ctx, deliveries[0])
		if s == nil || s.batch == nil {
			if s != nil {
				delay = time.Second // changed: each gets a slot the next time
			}
			w.putBack(deliveries, delay)
			break
		}
		a, broken, rest := s.array(deliveries)
		t := &trial{w: w, ctx: ctx, sender: sender, array: a}
		t.run()
		w.putBack(t.unmade, 0)
		w.conclude(append(t.outcomes, unrenderable(broken)...))
		took, deliveries = max(took, t.took), rest
		if t.isClosed {
			w.putBack(append(rest, w.batches.takeBack(id)...), time.Second) // by then it is recorded what holds them
			break
		}
	}
	w.leases.end(id, took)
	w.batches.ended(id)
}

// conclude hands over what came of deliveries that went together.
func (w *Worker) conclude(outcomes []outcome) {
	deliveries := make([]*delivery, len(outcomes))
	words := map[string]int{}
	w.concluding.Lock() // recordAlike finds what is alike side by side
	for i, o := range outcomes {
		deliveries[i] = o.delivery
		words[o.word]++
		w.outcomes <- o // waits while recording does not keep up
	}
	w.concluding.Unlock()
	for word, n := range words {
		w.metrics.attempts.WithLabelValues(word).Add(float64(n))
	}
	w.leases.sent(deliveries)
}

func unrenderable(deliveries []*delivery) []outcome {
	outcomes := make([]outcome, len(deliveries))
	for i, d := range deliveries {
		alone := []*delivery{d}
		outcomes[i] = outcome{delivery: d, word: outcomeRenderFailed, startedAt: time.Now(), batchID: batchID(alone), jitter: jitter(), uncounted: i > 0}
	}
	return outcomes
}

// A trial is the attempt of a batch. One that is refused is cut in halves, and these again, the longest first, so that an
// event that the receiver will not have is found and all others are delivered: one of n takes 2·log2 n requests. Those are
// made one after the other in the slot of the batch, and no more of them: what is left is put off in the parts that it was
// cut into, and cut further the next time.
//
// A 5xx may be about an event, too: a receiver that throws. The first attempt believes that it is about the endpoint. Each one
// after it looks two cuts further whether a part is taken, for as long as one request may take; where none is, the batch comes again
// as it was.
//
// A receiver that an event brings down gives no answer of its own. Its batch is cut where others are taken meanwhile, in more parts,
// for each look costs an attempt.
type trial struct {
	w      *Worker
	ctx    context.Context
	sender *sender
	array  *array

	outcomes []outcome     // of each delivery, that of the last request that carried it
	unmade   []*delivery   // no attempt was made: the process ends
	took     time.Duration // the longest of the requests
	isClosed bool          // the receiver wants nothing for now
}

func (t *trial) run() {
	n := len(t.array.deliveries)
	if n == 0 {
		return
	}
	t.outcomes = make([]outcome, n)
	parts := []part{t.array.whole()}
	first := t.array.deliveries[0]
	broken, patience, anyTaken, anyRefused := 0, 1+2*first.attempt, false, false
	started := time.Now()
	for budget := 2*bits.Len(uint(n-1)) + 2; budget > 0 && len(parts) > 0; budget-- {
		var p part
		p, parts = takeLongest(parts)
		o, ok := t.try(p)
		if !ok {
			parts = append(parts, p)
			break
		}
		if o.delivered() {
			broken, anyTaken = 0, true
			continue
		}
		if o.breaks() {
			broken++
		}
		anyRefused = anyRefused || o.refuses()
		mayCut := o.refuses() || o.breaks() && broken < patience && time.Since(started) < t.array.to.timeout
		if mayCut && p.len() > 1 {
			parts = append(parts, p.cut(2)...)
			continue
		}
		if o.vanishes() && first.attempt > 0 && first.isWell {
			parts = append(parts, p.cut(vanishedParts)...)
			break
		}
		t.putOff(t.array.deliveries[p.from:p.to], p.from)
		if !mayCut { // about the endpoint: more requests would end the same way
			break
		}
	}
	if t.outcomes[0].delivery == nil {
		t.outcomes, t.unmade = nil, t.array.deliveries
		return
	}
	if broken > 0 && !anyTaken && !anyRefused {
		parts = []part{t.array.whole()}
	}
	for _, p := range parts {
		t.putOff(t.array.deliveries[p.from:p.to], p.from)
	}
	t.countOnce()
}

// try makes the request about a part and notes what came of it, for each of its deliveries. Not ok: none was made.
func (t *trial) try(p part) (outcome, bool) {
	isFirst := p == t.array.whole()
	if !isFirst {
		if s, _ := t.w.turn(t.ctx, t.array.deliveries[0]); s == nil {
			return outcome{}, false
		}
	}
	o, answer := t.sender.post(t.array.to, t.array.message(p))
	if t.ctx.Err() != nil && !o.delivered() {
		return outcome{}, false // we gave up, not the receiver
	}
	t.took = max(t.took, o.duration)
	// What else waits for a dead endpoint would take the place of others here: the database knows what to hold.
	t.isClosed = t.isClosed || o.slows() || o.suspends() || !o.delivered() && !o.refuses() && o.duration > slowAfter
	t.w.metrics.batchEvents.Observe(float64(p.len()))
	t.w.metrics.attemptSeconds.Observe(o.duration.Seconds())
	if p.len() > 1 && len(o.excerpt) > 0 {
		o.excerpt = hide(o.excerpt, t.array.recipients(p))
		o.excerpt = o.excerpt[:min(len(o.excerpt), batchExcerpt)]
	}
	failed := failuresIn(answer)
	var again []*delivery
	for i := p.from; i < p.to; i++ {
		d := t.array.deliveries[i]
		t.outcomes[i] = o
		t.outcomes[i].delivery = d
		if failed.has(d) {
			t.outcomes[i].word = outcomePartialFailure
			again = append(again, d)
		}
	}
	if len(again) > 0 {
		t.putOff(again, p.from)
	}
	return o, true
}

// putOff lets deliveries, which are in the array from a place on, go together the next time.
func (t *trial) putOff(deliveries []*delivery, from int) {
	id, by := batchID(deliveries), jitter()
	for _, d := range deliveries {
		for t.outcomes[from].delivery != d {
			from++
		}
		t.outcomes[from].batchID, t.outcomes[from].jitter = id, by
	}
}

// countOnce: however many requests and deliveries failed, they are one failure of the endpoint, and none where anything
// was delivered.
func (t *trial) countOnce() {
	counted := slices.ContainsFunc(t.outcomes, outcome.delivered)
	for i := range t.outcomes {
		if !t.outcomes[i].delivered() {
			t.outcomes[i].uncounted = counted
			counted = true
		}
	}
}
