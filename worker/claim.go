package worker

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

const (
	// claimSteps bounds the subscriptions that one claim walks.
	claimSteps = 1000
	// claimOfEach bounds what one claim takes of a subscription, so that many have their turn.
	claimOfEach = 100
	// claimBatched bounds what one claim takes for batches, but for the last batch, which it takes whole.
	claimBatched = 2000
	// claimPause lets more slots become free than the one that was, so that a claim is worth its round trip. It doubles
	// while claims find nothing: the subscription that waits for room may be one whose endpoint is dead.
	claimPause = 5 * time.Millisecond
	// claimedByClock is how long a request takes whose end is followed by no claim of its own: the next one by the clock is not much
	// later. Dispatch waits for each claim.
	claimedByClock = 2 * time.Second
	// walkInterval is how often all that is due is walked through while nothing of it can be taken, for longShare of the time.
	walkInterval = 2 * time.Second
	// lateMargin is how much later than its time a row may be written and still be seen before the next walk.
	lateMargin = time.Second
)

// A claimer is the state of one worker's claim loop. It walks through all that is due until a walk finds nothing that it may
// take; from then on it looks only at what has come due since, and walks again at times: for what was freed or resumed, and
// for what was written late.
type claimer struct {
	w        *Worker
	requests context.Context
	urgent   bool // of the urgent lane
	isFair   bool // gives way to nobody, this time

	since *time.Time // by the database's clock; nil: a walk
	walk  struct {
		resume uuid.UUID  // where it goes on; the zero id is the beginning
		began  time.Time  // by the database's clock
		before *time.Time // since, when it began
		found  bool       // something to take, or that there was no room for, or that is being released
		took   time.Duration
	}
	walkedAt time.Time
}

// A claimed is what a claim has to say.
type claimed struct {
	deliveries int
	// limited: slots or memory ran out, and more may be due.
	limited bool
	// wants: a subscription had no more room, and may have more that is due.
	wants bool
	// releasing: what was held is released at its rate, so there will be more to take before anything comes due.
	releasing bool
	// more: the walk is not at its end.
	more bool
}

// claim leases due deliveries: retries, those that found no free slot at dispatch, released and rescued ones.
func (w *Worker) claim(ctx, requests context.Context) {
	lanes := newClaimLanes(w, requests)
	rest := claimPause
	ticker := time.NewTicker(w.cfg.ClaimInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		more := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes).more
		var last claimed
		began := time.Now()
		if w.mayLease() {
			var err error
			if last, err = lanes.once(ctx); err != nil {
				w.complain(ctx, "claim", err)
				pause(ctx, w.cfg.ClaimInterval)
			}
		}
		if last.more && (last.deliveries > 0 || !last.limited) {
			if last.deliveries == 0 { // nothing of a thousand subscriptions: those behind them do not wait for the clock, nor dispatch for them
				pause(ctx, max(claimPause, 4*time.Since(began)))
			}
			continue
		}
		if rest = min(2*rest, w.cfg.ClaimInterval); last.deliveries > 0 {
			rest = claimPause
		}
		if releases := last.releasing && last.deliveries > 0; !last.limited && !releases {
			more = nil // nothing waits for any slot
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-w.due:
		case <-w.leases.wanted:
			pause(ctx, rest)
		case <-more:
			pause(ctx, rest)
		}
	}
}

// fairTurn is how often a claim goes by time alone: a flood of urgent deliveries leaves the others that part.
const fairTurn = 4

// claimLanes are the two lanes of a worker's claims.
type claimLanes struct {
	urgent, ordinary *claimer
	turn             int
}

func newClaimLanes(w *Worker, requests context.Context) *claimLanes {
	return &claimLanes{urgent: &claimer{w: w, requests: requests, urgent: true}, ordinary: &claimer{w: w, requests: requests}}
}

// once takes a batch of each lane, of the urgent one first. In each fourth turn the ordinary one is first, and gives way to
// nobody: there the urgent deliveries are what they were before there were lanes.
func (l *claimLanes) once(ctx context.Context) (claimed, error) {
	if l.ordinary.w.freed.Swap(false) {
		l.urgent.walkAgain()
		l.ordinary.walkAgain()
	}
	l.turn++
	l.ordinary.isFair = l.turn%fairTurn == 0
	order := []*claimer{l.urgent, l.ordinary}
	if l.ordinary.isFair {
		slices.Reverse(order)
	}
	var all claimed
	for _, c := range order {
		one, err := c.once(ctx)
		if err != nil {
			return all, err
		}
		all.deliveries += one.deliveries
		all.limited, all.wants, all.releasing, all.more = all.limited || one.limited, all.wants || one.wants, all.releasing || one.releasing, all.more || one.more
	}
	return all, nil
}

// once takes one batch.
func (c *claimer) once(ctx context.Context) (result claimed, err error) {
	for !c.urgent && c.w.calm.rows(1) == 0 { // senders begin within moments
		if !pause(ctx, time.Millisecond) {
			return claimed{}, nil
		}
	}
	if _, ok := c.room(); !ok {
		return claimed{limited: true}, nil
	}
	if time.Since(c.walkedAt) > max(walkInterval, longShare*c.walk.took) {
		c.walkAgain()
	}
	started := time.Now()
	isAny := true
	if c.walk.resume == uuid.Nil {
		isAny, err = c.anyDue(ctx)
	}
	if isAny && err == nil {
		if result, err = c.batch(ctx); err == nil {
			c.w.metrics.claimSeconds.Observe(time.Since(started).Seconds())
		}
	}
	if isOverTime(err) {
		c.giveUp(ctx, time.Since(started))
	} else if err == nil {
		c.learn(result, time.Since(started))
	}
	return result, err
}

// anyDue says whether there is anything to look at. With that a walk begins.
func (c *claimer) anyDue(ctx context.Context) (bool, error) {
	var row db.AnyDueRow
	err := call(ctx, func(ctx context.Context) (err error) {
		row, err = c.w.q.AnyDue(ctx, db.AnyDueParams{IsUrgent: c.urgent, Since: c.since})
		return err
	})
	if err != nil {
		return false, err
	}
	if c.since == nil {
		c.walk.began, c.walk.found, c.walk.took = row.AskedAt, false, 0
	}
	if !row.AnyDue {
		c.crowd(nil)
	}
	return row.AnyDue, nil
}

// room is what a claim may take, and whether that is anything: a walk for batches alone is for who has had some lately.
func (c *claimer) room() (room, bool) {
	r := c.w.leases.room(c.w.cfg.MaxInFlight, c.w.cfg.MaxBodyBytes)
	if c.urgent {
		r.claim, r.bytes = r.urgentClaim, r.urgentBytes
	}
	return r, (r.claim > 0 || r.batched > 0 && r.anyBatched) && r.bytes > 0
}

// walkAgain begins a walk, unless one is under way.
func (c *claimer) walkAgain() {
	if c.since != nil {
		c.since, c.walk.before, c.walk.resume = nil, c.since, uuid.Nil
	}
}

// giveUp ends a walk that takes longer than a statement may, as under a snapshot that is held for hours: it goes on as before it, or, of a
// first one, with what comes due from when it began, and the next one comes after longShare of its time.
func (c *claimer) giveUp(ctx context.Context, took time.Duration) {
	if c.since != nil {
		return
	}
	before := c.walk.before
	if before == nil {
		var now time.Time
		err := call(ctx, func(ctx context.Context) (err error) {
			now, err = c.w.q.Now(ctx)
			return err
		})
		if err != nil {
			return // it begins again
		}
		began := now.Add(-took - lateMargin)
		before = &began
	}
	c.since, c.walkedAt, c.walk.resume = before, time.Now(), uuid.Nil
	c.walk.took += took
}

func (c *claimer) learn(result claimed, took time.Duration) {
	if c.since != nil {
		if result.limited || result.wants {
			c.walkAgain() // what it left behind is older by the next look
		}
		return
	}
	c.walk.took += took
	c.walk.found = c.walk.found || result.deliveries > 0 || result.limited || result.wants || result.releasing
	if !result.more && !c.walk.found {
		since := c.walk.began.Add(-lateMargin)
		c.since, c.walkedAt = &since, time.Now()
	}
}

func (c *claimer) batch(ctx context.Context) (result claimed, err error) {
	w := c.w
	w.leasing.Lock()
	defer w.leasing.Unlock()
	if c.urgent {
		w.urgentLeasing.Lock()
		defer w.urgentLeasing.Unlock()
	}
	room, ok := c.room() // a dispatch may have taken of it
	if !ok {
		return claimed{limited: true, more: c.walk.resume != uuid.Nil}, nil
	}
	free, steps := max(0, min(room.claim, 500)), int32(claimSteps)
	if !c.urgent && w.calm.isCalm() { // as the ordinary dispatch; a claim of few is not to walk past many
		free, steps = min(free, calmBatch), calmBatch
	}
	lease, load := w.leases.expect(), w.leases.load(w.cfg.MaxInFlight, !c.urgent && !c.isFair)
	q := w.genericQ // in the place of a dispatch
	if c.urgent {
		q = db.New(urgentClaims{w.genericPool})
	}
	var rows []db.ClaimRow
	err = call(ctx, func(ctx context.Context) (err error) {
		rows, err = q.Claim(ctx, db.ClaimParams{
			Since: c.since, AfterSubscriptionID: c.walk.resume, MaxSteps: steps, MaxOfEach: claimOfEach,
			FreeSlots: int32(free), FreeBatched: int32(min(room.batched, claimBatched)), //nolint:gosec // 0 to 2,000
			MaxBytes: min(room.bytes, batchBytes),
			IsNew:    w.state.isNew(), InFlight: load.inFlight, UrgentInFlight: load.urgent, Limits: load.limits, IsUrgent: c.urgent,
			WorkerID: w.identity.get(), LeaseID: lease,
		})
		return err
	})
	if err != nil {
		w.leases.got(lease, nil)
		return result, err
	}
	if len(rows) > 0 {
		c.crowd(rows[0].Crowded)
		result.wants = len(rows[0].Wanting) > 0
	}
	deliveries := make([]*delivery, 0, len(rows))
	began := c.walk.resume
	for _, row := range rows {
		c.walk.resume, result.limited, result.releasing = row.ResumeAfter, row.Limited, row.Releasing
		if row.DeliveryID != nil {
			deliveries = append(deliveries, w.claimedDelivery(row, lease, c.urgent))
		}
	}
	w.leases.got(lease, deliveries)
	if result.wants {
		w.leases.want(rows[0].Wanting)
	}
	w.start(c.requests, deliveries)
	result.deliveries, result.more = len(deliveries), c.walk.resume != uuid.Nil
	if room.claim <= 0 { // for batches alone: the others keep their turn
		c.walk.resume, result.more = began, false
	}
	return result, nil
}

// urgentClaims has Claim planned for the urgent lane alone. A plan for both lanes takes none of the indexes of urgent deliveries,
// and to make one for each call took longer than the claim.
type urgentClaims struct{ db.DBTX }

var isUrgentParameter = regexp.MustCompile(`NOT (\$\d+::boolean) OR \(mailhook\.is_urgent`)

// Query runs the statement with true in the place of its parameter, which is still there to be given a type.
func (u urgentClaims) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	parameter := isUrgentParameter.FindStringSubmatch(sql)[1]
	return u.DBTX.Query(ctx, strings.ReplaceAll(sql, parameter, "(CASE WHEN true THEN true ELSE "+parameter+" END)"), args...)
}

// crowd tells dispatch and the ordinary claims where urgent deliveries wait for room, from the beginning of each walk anew.
func (c *claimer) crowd(ids []uuid.UUID) {
	if c.urgent {
		c.w.leases.crowd(ids, c.walk.resume == uuid.Nil)
	}
}

func (w *Worker) claimedDelivery(row db.ClaimRow, lease uuid.UUID, urgent bool) *delivery {
	e := &event{id: db.EventID{InsertedAt: row.EventInsertedAt, ID: row.EventID, Installation: w.installation}, urgent: row.IsUrgent, Event: format.Event{
		Type: row.EventType, OccurredAt: row.OccurredAt, Recipient: row.Recipient, MessageID: row.MessageID, CampaignID: row.CampaignID,
		SendingDomain: row.SendingDomain, SendingNode: row.SendingNode, Bridge: row.Bridge, DedicatedIP: row.DedicatedIP, Data: row.Data,
	}}
	if !row.EventFound {
		e.Data = nil // its partition is gone: the attempt ends as render_failed
	}
	d := &delivery{
		id: *row.DeliveryID, leaseID: lease, subscriptionID: row.SubscriptionID, attempt: int(row.Attempt), claimed: true, urgent: urgent, orderKey: row.OrderKey, event: e,
		requests: int(row.Requests), isProbe: row.IsProbe, isWell: row.IsWell,
	}
	if row.BatchID != nil {
		d.batchID = *row.BatchID
	}
	return d
}
