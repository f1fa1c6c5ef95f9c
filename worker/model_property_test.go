package worker

import (
	"slices"
	"time"

	"github.com/google/uuid"
)

// The life of deliveries as the contract tells it, in memory. Times are those of the database; they are compared with
// patience, as every duration of the model is a multiple of step and a check is over long before one has passed.
const (
	step     = 30 * time.Second
	patience = 10 * time.Second

	circuitFailures   = 2
	circuitAfter      = 0 * step
	probePause        = step
	longestProbePause = 4 * step
	suspendAfter      = 20 * step
	releaseRate       = 2
)

// A lifeEvent is one in the outbox or dispatched.
type lifeEvent struct {
	id         int64
	insertedAt time.Time
	eventType  string
	about      uuid.UUID // of subscription.*
}

// A lifeDelivery is an unfinished one.
type lifeDelivery struct {
	id           uuid.UUID
	subscription *lifeSubscription
	event        lifeEvent
	attempt      int
	dueAt        time.Time
	lease        uuid.UUID // zero: it waits
	worker       uuid.UUID
	batch        uuid.UUID // zero: goes with any
}

// A lifeEnd is how a delivery ended.
type lifeEnd struct {
	subscription *lifeSubscription
	event        lifeEvent
	as           string
	isDead       bool // a dead letter stands for it
}

// A lifeSubscription is a subscription and its health.
type lifeSubscription struct {
	id           uuid.UUID
	schedule     []time.Duration
	jitter       float64
	cap          int
	maxEvents    int // of a batch; 0: it gets none
	suspendsEnd  bool
	takesOurs    bool // names subscription as well
	status       string
	reason       string
	deleted      bool
	failures     int
	firstFailed  time.Time
	openedAt     time.Time // zero: closed
	openUntil    time.Time
	probe        uuid.UUID
	failedProbes int
	waitUntil    time.Time
	limit        int // 0: never slowed
	slowedAt     time.Time
	release      time.Time // zero: none
	releasedAt   time.Time
}

// ofEach is how many deliveries a request may carry.
func (s *lifeSubscription) ofEach() int { return max(1, s.maxEvents) }

func (s *lifeSubscription) wants(e lifeEvent) bool {
	if s.deleted || s.status == "inactive" {
		return false
	}
	return e.about == uuid.Nil || s.takesOurs && e.about != s.id
}

func (s *lifeSubscription) isGone() bool { return s.deleted || s.status == "inactive" }

func (s *lifeSubscription) isOpen() bool { return !s.openedAt.IsZero() }

func (s *lifeSubscription) forget() {
	s.failures, s.firstFailed, s.openedAt, s.openUntil, s.probe, s.failedProbes = 0, time.Time{}, time.Time{}, time.Time{}, uuid.Nil, 0
	s.waitUntil, s.limit, s.slowedAt, s.release, s.releasedAt = time.Time{}, 0, time.Time{}, time.Time{}, time.Time{}
}

// pass moves the past and the future by d.
func (s *lifeSubscription) pass(d time.Duration) {
	for _, at := range []*time.Time{&s.firstFailed, &s.openedAt, &s.openUntil, &s.waitUntil, &s.slowedAt, &s.release, &s.releasedAt} {
		if !at.IsZero() {
			*at = at.Add(-d)
		}
	}
}

// slowedCap is how much of the cap the endpoint takes at a time: doubled for every 5 s since it was slowed.
func (s *lifeSubscription) slowedCap(at time.Time) int {
	since := at.Sub(s.slowedAt)
	if s.limit == 0 || since >= 50*time.Second {
		return s.cap
	}
	limit := s.limit
	for ; since >= 5*time.Second; since -= 5 * time.Second {
		limit *= 2
	}
	return min(s.cap, limit)
}

// A reply is what came of one request.
type reply struct {
	word       string
	status     int
	retryAfter time.Duration
}

var replies = []reply{
	{outcomeOK, 200, 0}, {outcomeHTTP5xx, 500, 0}, {outcomeDNS, 0, 0}, {outcomeHTTP4xx, 404, 0}, {outcomeHTTP5xx, 500, 0}, {outcomeHTTP429, 429, 0}, {outcomeHTTP5xx, 503, 2 * step},
	{outcomeHTTP429, 429, 4 * time.Hour}, {outcomeHTTP4xx, 400, 3 * step}, {outcomeHTTP410, 410, 0}, {outcomeOK, 204, 5 * step},
}

func (a reply) slowing() bool { return slices.Contains([]int{429, 502, 503, 504}, a.status) }

// A hearing is what one call of record says of a subscription.
type hearing struct {
	succeeded, gone, slows, exhausted, probed bool
	attempts                                  int
	pause                                     time.Duration
}

// heard changes the subscription, and answers the types of what is told of it.
func (s *lifeSubscription) heard(h hearing, now time.Time) (told []string) {
	switch {
	case !h.succeeded:
		told = s.failed(h, now)
	case s.isOpen():
		s.openedAt, s.openUntil, s.release, s.releasedAt = time.Time{}, time.Time{}, now, now
		told = append(told, "subscription.recovered")
		fallthrough
	default:
		s.failures, s.failedProbes, s.probe = 0, 0, uuid.Nil
	}
	if h.pause > 0 && now.Add(h.pause).After(s.waitUntil) {
		s.waitUntil = now.Add(h.pause)
	}
	if h.gone && s.status == "active" {
		s.status, s.reason = "suspended", "gone"
		told = append(told, "subscription.suspended")
	}
	return told
}

func (s *lifeSubscription) failed(h hearing, now time.Time) (told []string) {
	if s.failures == 0 {
		s.firstFailed = now
	}
	s.failures += h.attempts
	whole := time.Duration(0)
	for _, delay := range s.schedule {
		whole += delay
	}
	openFor := time.Duration(-1)
	switch {
	case s.isOpen() && h.probed:
		openFor = now.Sub(s.openedAt)
		s.failedProbes++
		s.openUntil = now.Add(min(longestProbePause, max(probePause, now.Sub(s.openedAt)/10)))
	case !s.isOpen() && s.failures >= circuitFailures && now.Sub(s.firstFailed) >= circuitAfter:
		s.openedAt, s.openUntil = now, now.Add(probePause)
		told = append(told, "subscription.failing")
	}
	if s.status != "active" || h.gone {
		return told
	}
	switch {
	case s.suspendsEnd && (h.exhausted || openFor >= whole):
		s.reason = "schedule_ended"
	case h.exhausted && now.Sub(s.firstFailed) >= suspendAfter, openFor >= max(whole, suspendAfter):
		s.reason = "failing"
	default:
		return told
	}
	s.status = "suspended"
	return append(told, "subscription.suspended")
}
