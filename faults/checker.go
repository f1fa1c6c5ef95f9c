package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A checker joins the ledgers with the database, after all has been drained.
type checker struct {
	field    *field
	facts    facts
	fates    map[pair]*fate
	verdict  verdict
	examples map[string][]string // by invariant
	counts   map[string]int
	lateness []lateness
	// promised is how many receipts there are of what a primary took along.
	promised int
}

// A fate is what became of a pair.
type fate struct {
	deliveries int // by the database: more than one only after replays
	ends       int
	delivered  int // of the ends
	endedAt    time.Time
	requests   int // that the database knows of
	receipts   int
	accepted   int // receipts that were answered 2xx
	firstAt    int64
}

// A verdict is a scenario's line.
type verdict struct {
	events, receipts, lost, duplicates int
	unrecorded                         int // requests without a row in attempts: sent, and then the worker died or was fenced
	recovery                           time.Duration
	netRecovery                        time.Duration // without the times in which the machine stood still
}

func (f *field) check(ctx context.Context) (*checker, error) {
	c := &checker{field: f, fates: map[pair]*fate{}, examples: map[string][]string{}, counts: map[string]int{}}
	var err error
	if c.facts, err = f.host.facts(); err != nil {
		return nil, err
	}
	c.verdict.events = len(c.facts.committed)
	if err := c.readAttempts(ctx); err != nil {
		return nil, err
	}
	if err := c.checkEvents(ctx); err != nil {
		return nil, err
	}
	if err := c.readReceipts(); err != nil {
		return nil, err
	}
	c.checkExpected()
	c.checkFates()
	c.measureRecovery()
	for _, t := range f.host.troubles() {
		c.broken("a statement of the host failed or was blocked", "%s", t)
	}
	c.tell()
	return c, nil
}

// broken notes a case of a broken invariant; a few of each are told.
func (c *checker) broken(invariant, format string, args ...any) {
	if c.counts[invariant]++; c.counts[invariant] <= 5 {
		c.examples[invariant] = append(c.examples[invariant], fmt.Sprintf(format, args...))
	}
}

func (c *checker) tell() {
	var names []string
	for name := range c.counts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.field.problem("%s (%d): %s", name, c.counts[name], strings.Join(c.examples[name], "; "))
	}
}

func (c *checker) fate(p pair) *fate {
	x := c.fates[p]
	if x == nil {
		x = &fate{}
		c.fates[p] = x
	}
	return x
}

// An attempt is a row of mailhook.attempts with the key of its event.
type attempt struct {
	subscription uuid.UUID
	key          int64
	delivery     uuid.UUID
	number       int
	outcome      string // '': a row without a request
	endedAs      string
	startedAt    time.Time
	took         time.Duration
}

// readAttempts checks each delivery by itself: it ends once, its attempts are numbered from 1 without gaps, none is
// before its time, and none is beyond the schedule.
func (c *checker) readAttempts(ctx context.Context) error {
	rows, err := c.field.pool.Query(ctx, `
		SELECT a.subscription_id, a.k, a.delivery_id, a.number, coalesce(a.outcome, ''), coalesce(a.ended_as, ''), a.started_at, coalesce(a.duration_ms, 0)
		FROM host.tried AS a
		WHERE a.k IS NOT NULL
		ORDER BY a.delivery_id, a.number, a.outcome IS NULL, a.started_at`)
	if err != nil {
		return err
	}
	numbers := c.field.numbers()
	var of []attempt // one delivery's
	var a attempt
	var milliseconds int64
	_, err = pgx.ForEachRow(rows, []any{&a.subscription, &a.key, &a.delivery, &a.number, &a.outcome, &a.endedAs, &a.startedAt, &milliseconds}, func() error {
		a.took = time.Duration(milliseconds) * time.Millisecond
		if len(of) > 0 && of[0].delivery != a.delivery {
			c.checkDelivery(numbers, of)
			of = of[:0]
		}
		of = append(of, a)
		return nil
	})
	if len(of) > 0 {
		c.checkDelivery(numbers, of)
	}
	return err
}

func (c *checker) checkDelivery(numbers map[uuid.UUID]int, of []attempt) {
	number, known := numbers[of[0].subscription]
	if !known {
		c.broken("an attempt of a subscription that nobody made", "%v", of[0].subscription)
		return
	}
	s, p := c.field.subscriptions[number], pair{number, of[0].key}
	x := c.fate(p)
	x.deliveries++
	ends, requests := 0, 0
	for i, a := range of {
		if a.endedAs != "" {
			ends++
			x.ends++
			x.endedAt = later(x.endedAt, a.startedAt.Add(a.took))
		}
		if a.endedAs == "delivered" {
			x.delivered++
		}
		if a.outcome == "" {
			continue
		}
		requests++
		x.requests++
		if a.number != requests {
			c.broken("attempts are not numbered from 1 without gaps", "%v: number %d is the %d. request", a.delivery, a.number, requests)
		}
		if a.number > len(s.schedule)+1 {
			c.broken("an attempt beyond the schedule", "%v: number %d of %d", a.delivery, a.number, len(s.schedule)+1)
		}
		if i > 0 && of[i-1].outcome != "" {
			c.checkSpacing(s, of[i-1], a)
		}
	}
	if ends != 1 {
		c.broken("a delivery does not end once", "%v of subscription %d, key %d: %d ends", of[0].delivery, number, of[0].key, ends)
	}
}

// checkSpacing holds two attempts against the schedule: the next is due after the delay, less its jitter, from the
// moment at which the last was recorded, which is not before its end. Two milliseconds are for rounding.
func (c *checker) checkSpacing(s *subscription, last, next attempt) {
	if last.number < 1 || last.number > len(s.schedule) || s.churned || c.field.clock != nil {
		return // told already; or replayed, or retried by hand; or by a clock that jumps, which the scenario knows better
	}
	least := time.Duration(float64(s.schedule[last.number-1]) * (1 - jitter))
	if gap := next.startedAt.Sub(last.startedAt.Add(last.took)); gap < least-2*time.Millisecond {
		c.broken("an attempt before next_attempt_at", "%v: number %d came %v after the end of the one before, at least %v are due", next.delivery, next.number, gap, least)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// checkEvents: each committed event is logged once, and none that was rolled back.
func (c *checker) checkEvents(ctx context.Context) error {
	rows, err := c.field.pool.Query(ctx, "SELECT e.k, count(*) FROM host.logged AS e WHERE e.k > 0 GROUP BY 1")
	if err != nil {
		return err
	}
	logged := map[int64]bool{}
	var key int64
	var n int
	_, err = pgx.ForEachRow(rows, []any{&key, &n}, func() error {
		logged[key] = true
		if _, known := c.facts.committed[key]; !known {
			c.broken("an event of a transaction that did not commit is logged", "key %d", key)
		}
		if n != 1 {
			c.broken("an event is logged more than once", "key %d: %d times", key, n)
		}
		return nil
	})
	for key := range c.facts.committed {
		if !logged[key] {
			c.broken("a committed event is not logged", "key %d", key)
		}
	}
	return err
}

// readReceipts checks each request by itself, and adds them up.
func (c *checker) readReceipts() error {
	return readLedger(c.field.receiver.ledger, func(r receipt) {
		c.verdict.receipts++
		if r.Problem != "" {
			c.broken("a request does not verify", "subscription %d, key %d: %s", r.Subscription, r.Key, r.Problem)
			return
		}
		if r.Key <= 0 {
			return // of the scenario's own events
		}
		if c.facts.gone[r.Key] {
			c.promised++
			return
		}
		fact, known := c.facts.committed[r.Key]
		if !known {
			c.broken("a receipt of a transaction that did not commit", "key %d (rolled back: %v)", r.Key, c.facts.rolledBack[r.Key])
			return
		}
		if fact.id != "" && fact.id != r.ID {
			c.broken("the webhook-id is not what the host was told", "key %d: %s instead of %s", r.Key, r.ID, fact.id)
		}
		s := c.field.subscriptions[r.Subscription]
		c.checkClosed(s, r)
		x := c.fate(pair{r.Subscription, r.Key})
		x.receipts++
		if r.Status >= 200 && r.Status <= 299 {
			if c.field.atCrash(r.Answered) {
				c.field.allow(1)
			}
			if x.accepted++; x.accepted == 1 {
				x.firstAt = r.Answered
				if s.healthy {
					c.lateness = append(c.lateness, lateness{fact.at, time.Duration(max(0, r.At-fact.at)) * time.Microsecond})
				}
			}
		}
	})
}

// atCrash says whether an answer fell into a crash of the database or the moment before it: workers commit
// asynchronously, so that what they had recorded in the last three times wal_writer_delay (200 ms) may be gone.
func (f *field) atCrash(answered int64) bool {
	for _, x := range f.faults {
		since := x.forgets
		if since.IsZero() {
			since = x.from.Add(-600 * time.Millisecond)
		}
		if x.outage && answered >= f.at(since) && answered <= f.at(x.to) {
			return true
		}
	}
	return false
}

// checkClosed: nothing more than a second after a pause or delete was acknowledged.
func (c *checker) checkClosed(s *subscription, r receipt) {
	at := c.field.began.Add(time.Duration(r.At) * time.Microsecond)
	for _, x := range s.closed {
		if at.After(x.from.Add(time.Second)) && (x.to.IsZero() || at.Before(x.to)) {
			c.broken("a request later than 1 s after pause or delete", "subscription %d, key %d: %v after", s.number, r.Key, at.Sub(x.from))
		}
	}
}

// checkExpected: every committed event has reached an end for every subscription that matches it.
func (c *checker) checkExpected() {
	byAccount := map[string][]*subscription{}
	for _, s := range c.field.subscriptions {
		byAccount[s.account] = append(byAccount[s.account], s)
	}
	for key, fact := range c.facts.committed {
		for _, s := range byAccount[fact.account] {
			x := c.fates[pair{s.number, key}]
			switch {
			case s.churned:
			case !s.wants(fact.account, fact.eventType):
				if x != nil {
					c.broken("a delivery to a subscription that does not match", "subscription %d, key %d", s.number, key)
				}
			case x == nil || x.ends == 0:
				c.verdict.lost++
				c.broken("LOST: a committed event reached no end", "subscription %d, key %d, committed at %.3f s", s.number, key, float64(fact.at)/1e6)
			case s.healthy && x.delivered == 0:
				c.broken("an event of a healthy endpoint was not delivered", "subscription %d, key %d", s.number, key)
			}
		}
	}
}

// checkFates: what was delivered was accepted, nothing else came, and duplicates are no more than the crashes explain.
func (c *checker) checkFates() {
	for p, x := range c.fates {
		if p.key <= 0 {
			continue
		}
		if _, known := c.facts.committed[p.key]; !known {
			c.broken("a delivery of a transaction that did not commit", "subscription %d, key %d", p.subscription, p.key)
		}
		if x.delivered > 0 && x.accepted == 0 {
			c.broken("recorded as delivered, and never accepted", "subscription %d, key %d", p.subscription, p.key)
		}
		if x.deliveries == 0 {
			c.broken("a receipt of a delivery that the database does not know", "subscription %d, key %d", p.subscription, p.key)
		}
		c.verdict.unrecorded += max(0, x.receipts-x.requests)
		if more := x.accepted - max(1, x.deliveries); more > 0 {
			c.verdict.duplicates += more
		}
	}
	if c.verdict.unrecorded > 0 {
		c.field.note("%d requests sent and not recorded", c.verdict.unrecorded)
	}
	if c.verdict.duplicates > c.field.allowed {
		c.field.problem("%d duplicates after an acknowledged 2xx; %d were in flight when something crashed", c.verdict.duplicates, c.field.allowed)
	}
}
