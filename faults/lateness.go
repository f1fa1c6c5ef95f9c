package main

import (
	"slices"
	"time"
)

// lateness is how long after its commit a healthy pair was delivered.
type lateness struct {
	committed int64 // µs
	took      time.Duration
}

// measureRecovery finds how long the work that a fault held up took after it, the longest of all. For a kill that work is
// what the worker had leased, and the time is from the kill to the recorded end; when all workers are killed before that,
// from there, for nobody remembers how long a heartbeat has stood. For any other fault it is what was
// committed before the fault ended and had no end by then, for healthy endpoints; the time is from there, without further
// outages.
func (c *checker) measureRecovery() {
	for p, x := range c.fates {
		s := c.field.subscriptions[p.subscription]
		if !s.healthy || x.ends == 0 {
			continue
		}
		committed := c.field.began.Add(time.Duration(c.facts.committed[p.key].at) * time.Microsecond)
		took := c.field.heldUp(p, committed, x.endedAt)
		c.verdict.recovery = max(c.verdict.recovery, took)
		c.verdict.netRecovery = max(c.verdict.netRecovery, took-c.field.stalled(x.endedAt.Add(-took), x.endedAt))
	}
}

// heldUp is how long one pair took after the fault that held it up.
func (f *field) heldUp(p pair, committed, ended time.Time) (took time.Duration) {
	var from time.Time
	for _, x := range f.faults {
		switch {
		case x.stranded[p], x.everybody && !from.IsZero() && x.to.Before(ended):
			from = later(from, x.to) // again: from the last
		case x.stranded != nil:
		case from.IsZero() && !x.to.Before(committed):
			from = x.to
		}
	}
	if from.IsZero() || ended.Before(from) {
		return 0
	}
	took = ended.Sub(from)
	for _, x := range f.faults {
		if x.outage && x.from.After(from) && x.from.Before(ended) {
			took -= x.to.Sub(x.from)
		}
	}
	return max(0, took)
}

// lateBetween are the latenesses of what was committed between two moments, sorted; without what was on its way while the
// machine stood still.
func (c *checker) lateBetween(from, to time.Time) []time.Duration {
	return c.lateDuring([]interval{{from, to}})
}

func (c *checker) lateDuring(times []interval) []time.Duration {
	var took []time.Duration
	for _, l := range c.lateness {
		at := c.field.began.Add(time.Duration(l.committed) * time.Microsecond)
		within := func(x interval) bool { return !at.Before(x.from) && at.Before(x.to) }
		if slices.ContainsFunc(times, within) && c.field.stalled(at.Add(-stallLimit), at.Add(l.took)) == 0 {
			took = append(took, l.took)
		}
	}
	slices.Sort(took)
	return took
}

// p99 of sorted values; 0 of none.
func p99(sorted []time.Duration) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)*99/100]
}
