package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	// targetDeliveries is how many deliveries one dispatch should make at most: 1,000 rows × 1,000 matches would be a million.
	targetDeliveries = 4000
	// batchBytes bounds the event data of one dispatch.
	batchBytes = 8 << 20
	// slowBatch is how long one dispatch should take at most: what an account's filters cost is not known before.
	slowBatch = time.Second
	// retryPause is how long a dispatch that failed waits for the next, doubled up to a second.
	retryPause = 20 * time.Millisecond
	// firstBatch is the number of rows while nothing is known of the fan-out.
	firstBatch = 50
	// lingerTime is how long a worker that found nothing keeps looking before it arms the trigger and sleeps, and
	// lingerPause how often it looks: under steady traffic no host has to notify.
	lingerTime  = 100 * time.Millisecond
	lingerPause = 2 * time.Millisecond
	// writersPause is how often a worker asks whether the transactions that inserted before it armed have ended.
	writersPause = 50 * time.Millisecond
)

// maxID is above all ids: a dispatch after it takes those that it names and no others.
const maxID = math.MaxInt64

// A dispatcher is the state of one worker's dispatch loop.
type dispatcher struct {
	w        *Worker
	requests context.Context // of the requests it starts
	urgent   bool            // of the urgent lane
	isSecond bool            // runs beside the ordinary one

	floor   floor
	sweep   sweep
	limit   int     // rows a batch: less after a data error or a time-out
	fanOut  float64 // deliveries a row, of late; less than 0: none was seen yet
	batched float64 // of these, for batches
	full    bool    // the last batch was: there is more, no need to peek
	foundAt time.Time

	leftSome bool      // the last batch had more deliveries than free slots
	askedAt  time.Time // for help

	armed   bool
	writers map[string]bool // transactions that inserted before we armed
}

// dispatch takes the outbox to deliveries until ctx ends: look, and while there is nothing to find, linger, arm, sleep.
func (w *Worker) dispatch(ctx, requests context.Context) {
	d := &dispatcher{w: w, requests: requests, limit: w.cfg.BatchRows, fanOut: -1}
	rest := retryPause
	for ctx.Err() == nil {
		free, bytes, ok := d.waitForRoom(ctx)
		if !ok {
			continue
		}
		n, err := d.look(ctx, free, bytes)
		w.dispatching.Store(err == nil && n > 0)
		switch {
		case err != nil:
			w.complain(ctx, "dispatch", err)
			pause(ctx, rest)
			rest = min(2*rest, time.Second)
		case n > 0:
			rest = retryPause
			d.found(ctx)
		default:
			rest = retryPause
			d.idle(ctx)
		}
	}
	// Nobody is left to be notified; the next watcher arms for itself.
	if d.armed {
		d.setOff(context.WithoutCancel(ctx))
	}
}

// isBusy lets the urgent lane look for as long as this has something to do, or waits for a claim.
func (d *dispatcher) isBusy() {
	d.w.dispatching.Store(true)
	signal(d.w.busy)
}

// waitForRoom waits until delivery is on, the worker is well, and enough slots are free for a batch to be worth a
// round trip.
func (d *dispatcher) waitForRoom(ctx context.Context) (free int, bytes int64, ok bool) {
	w := d.w
	unwell := w.state.alive(time.Now()) != nil
	if !w.state.sending() || unwell {
		w.ready.Store(true)
		w.dispatching.Store(false)
		if unwell {
			d.askForHelp(ctx) // what comes now is not for us
		} else {
			d.disarm(ctx) // nobody is to notify, and what was armed would be over by the time
		}
		select {
		case <-ctx.Done():
		case <-w.state.changed:
		case <-time.After(pulseInterval):
		}
		return 0, 0, false
	}
	patience := time.NewTimer(10 * time.Millisecond)
	defer patience.Stop()
	for patient := true; ; {
		room := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
		// Senders begin within moments: for those there is no signal.
		if w.calm.rows(1) == 0 {
			if !pause(ctx, time.Millisecond) {
				return 0, 0, false
			}
			continue
		}
		if room.bytes > 0 && (d.isEnough(room) || (room.dispatch > 0 && !patient)) {
			return room.dispatch, room.bytes, true
		}
		d.isBusy()
		select {
		case <-room.more:
		case <-patience.C:
			patient = false
			d.askForHelp(ctx) // as above
			patience.Reset(helpInterval)
		case <-ctx.Done():
			return 0, 0, false
		}
	}
}

// isEnough says that a batch will find its slots, of both kinds.
func (d *dispatcher) isEnough(r room) bool {
	n := d.w.cfg.MaxInFlight
	return r.dispatch >= n/4 && (d.batched <= 0 || r.batched >= batchedOfEachSlot*n/4)
}

// look takes one batch and starts its deliveries. It answers how many rows it took.
func (d *dispatcher) look(ctx context.Context, free int, bytes int64) (int, error) {
	now := time.Now()
	d.floor.passed(d.w.early.take())
	after, probes := d.sweep.start(d.floor.after, now), d.floor.probes(now, d.full)
	if !d.full {
		if _, err := d.peek(ctx, after, probes); errors.Is(err, pgx.ErrNoRows) {
			d.w.ready.Store(true)
			d.sweep.came(math.MaxInt64, time.Now())
			return 0, nil
		} else if err != nil {
			return 0, err
		}
	}
	d.isBusy()
	rows := d.rows(free)
	taken, err := d.take(ctx, after, probes, rows, free, min(bytes, batchBytes))
	if isHeadTaken(err) {
		return 1, nil // look again at once
	}
	if isUndispatchable(err) {
		return d.halve(ctx, after, probes, rows, err)
	}
	if err != nil {
		return 0, err
	}
	isWhole := d.limit >= d.w.cfg.BatchRows // else some row is looked for
	if d.limit = min(d.w.cfg.BatchRows, 2*d.limit); time.Since(now) > slowBatch {
		d.limit = max(1, len(taken)/2)
	}
	d.full = len(taken) >= rows || dataBytes(taken) >= batchBytes/2
	d.learn(taken, time.Now())
	if isWhole {
		d.offer(taken, rows)
	}
	if !d.full {
		d.sweep.came(math.MaxInt64, time.Now())
	}
	return len(taken), nil
}

// peek is the first id that a dispatch would take, or pgx.ErrNoRows: two index look-ups instead of a statement of twenty
// steps, for a worker that looks some hundred times a second while it lingers.
func (d *dispatcher) peek(ctx context.Context, after int64, probes []int64) (id int64, err error) {
	err = call(ctx, func(ctx context.Context) (err error) {
		id, err = d.w.genericQ.PeekOutbox(ctx, db.PeekOutboxParams{AfterID: after, Holes: probes})
		return err
	})
	return id, err
}

// rows is how many outbox rows to take, so that their deliveries find free slots: what finds none is written as
// waiting and costs a claim later. Those for batches have enough, or have been waited for.
func (d *dispatcher) rows(free int) int {
	if d.fanOut < 0 {
		return min(d.limit, firstBatch)
	}
	bySlots := float64(min(free, targetDeliveries)) / max(d.fanOut-d.batched, 0.01)
	n := max(1, min(d.limit, int(min(bySlots, targetDeliveries/max(d.fanOut, 0.01)))))
	if d.urgent {
		return n
	}
	return max(1, d.w.calm.rows(n))
}

func (d *dispatcher) learn(taken []db.DispatchRow, now time.Time) {
	if len(taken) == 0 {
		return
	}
	ids := idsOf(taken)
	slices.Sort(ids)
	d.floor.saw(ids, now)
	d.sweep.came(ids[len(ids)-1], now)
	d.weigh(taken)
}

// weigh learns the fan-out of what was taken.
func (d *dispatcher) weigh(taken []db.DispatchRow) {
	listed := listedOf(taken)
	learnRate(&d.fanOut, float64(listed.Deliveries)/float64(len(taken)))
	learnRate(&d.batched, float64(listed.ForBatches)/float64(len(taken)))
}

// learnRate follows a jump up at once, and the way down slowly.
func learnRate(rate *float64, last float64) {
	if *rate < 0 || last > *rate {
		*rate = last
	} else {
		*rate += (last - *rate) / 8
	}
}

// take runs the statement and starts what it leased.
func (d *dispatcher) take(ctx context.Context, after int64, probes []int64, rows, free int, bytes int64) ([]db.DispatchRow, error) {
	w := d.w
	defer d.lockLeasing()()
	// Once more under the lock: a claim may have taken of it.
	room := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	batched := min(room.batched, targetDeliveries)
	switch {
	case d.isSecond:
		free, batched, bytes = 0, targetDeliveries, secondBytes // promised to it
	case d.urgent:
		free, bytes = min(free, room.urgent), min(bytes, room.urgentBytes)
	default:
		free, bytes = min(free, room.dispatch), min(bytes, room.bytes)
	}
	free = max(0, free)
	lease, load := w.leases.expect(), w.leases.load(w.cfg.MaxInFlight, !d.urgent)
	started := time.Now()
	var taken []db.DispatchRow
	// The urgent lane waits for nobody's turn: what has an order it inserts blocked.
	inTurn := w.state.ordered() && !d.urgent
	dispatch := func(ctx context.Context) (err error) {
		q := w.genericQ
		if inTurn {
			q = db.New(db.InTurn(w.genericPool, dispatchTurn, turnPatience))
		}
		taken, err = q.Dispatch(ctx, db.DispatchParams{
			Holes: probes, AfterID: after, MaxRows: int32(rows), MaxBytes: bytes, //nolint:gosec // at most BatchRows
			InTurn: inTurn, WorkerID: w.identity.get(), LeaseID: lease, FreeSlots: int32(free), FreeBatched: int32(batched), //nolint:gosec // at most MaxInFlight, and targetDeliveries
			IsNew: w.state.isNew(), InFlight: load.inFlight, UrgentInFlight: load.urgent, Limits: load.limits, IDPrefix: idPrefix(), IsUrgent: d.urgent,
		})
		return err
	}
	err := call(ctx, dispatch)
	if inTurn && sqlState(err) == "55P03" { // somebody has the turn for long: only what has an order waits for it
		inTurn = false
		err = call(ctx, dispatch)
	}
	if err != nil {
		// It may have been committed: then reconcileLeases gives the deliveries back.
		w.leases.got(lease, nil)
		return nil, err
	}
	w.ready.Store(true) // before the first request: under a backlog the outbox is never found empty
	deliveries := w.unfold(taken, lease, d.urgent)
	w.leases.got(lease, deliveries)
	listed := listedOf(taken)
	isTold := w.leases.want(listed.Wanting) // before any of them ends
	w.start(d.requests, deliveries)
	d.leftSome = false
	if len(taken) > 0 {
		w.headless.add(blockedKeys(listed)...)
		if int(listed.Deliveries-listed.Blocked) > len(deliveries) { // some were written as waiting: for a slot, or for room
			forBatches := countBatched(deliveries)
			single := len(deliveries) - forBatches
			d.leftSome = single >= free && int(listed.Deliveries-listed.Blocked-listed.ForBatches) > single || forBatches >= batched
			if !isTold || d.leftSome {
				signal(w.due)
			}
		}
		w.metrics.dispatchSeconds.Observe(time.Since(started).Seconds())
		w.metrics.dispatched(taken)
	}
	return taken, nil
}

// lockLeasing takes the lock that a dispatch holds from the count of what is in flight to its answer. The second one has none.
func (d *dispatcher) lockLeasing() (unlock func()) {
	leasing := &d.w.leasing
	switch {
	case d.isSecond:
		return func() {}
	case d.urgent:
		leasing = &d.w.urgentLeasing
	}
	leasing.Lock()
	return leasing.Unlock
}

// idPrefix is the first 24 digits of the delivery ids that one dispatch makes: a UUIDv7 whose last 32 bits the statement
// counts up.
func idPrefix() string {
	id := uuid.Must(uuid.NewV7())
	return hex.EncodeToString(id[:12])
}

// isUndispatchable says that the same batch would fail again: for data that PostgreSQL refuses, or because its time was over.
func isUndispatchable(err error) bool { return isDataError(err) || isOverTime(err) }

// halve makes the next batch smaller, until the row that is the cause stands alone and is quarantined: for its data, or when its time
// is over for the third time.
func (d *dispatcher) halve(ctx context.Context, after int64, probes []int64, rows int, cause error) (int, error) {
	if rows > 1 && isOverTime(cause) { // each look costs the whole time
		d.limit = max(1, rows/8)
		return 0, cause
	}
	if rows > 1 {
		d.limit = rows / 2
		return 1, nil // look again at once
	}
	id, err := d.peek(ctx, after, probes)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	// Once more, for exactly this row: another worker may have taken the one that failed.
	alone := func() error {
		taken, err := d.take(ctx, maxID, []int64{id}, 1, 1, batchBytes)
		if err == nil {
			d.learn(taken, time.Now())
		}
		return err
	}
	err = alone()
	if isOverTime(err) { // for the last time, from memory by now, if it is not the database that stands still
		asked := time.Now()
		if _, peekErr := d.peek(ctx, after, probes); peekErr != nil || time.Since(asked) > time.Second {
			return 0, errors.Join(err, peekErr)
		}
		err = alone()
	}
	switch {
	case err == nil:
		return 1, nil
	case isUndispatchable(err):
		return 1, d.quarantine(ctx, id, err)
	}
	return 0, err
}

func (d *dispatcher) quarantine(ctx context.Context, id int64, cause error) error {
	return call(ctx, func(ctx context.Context) error {
		n, err := d.w.genericQ.QuarantineOutboxRow(ctx, db.QuarantineOutboxRowParams{ID: id, ErrorCode: sqlState(cause), Reason: reason(cause)})
		if n > 0 {
			d.w.metrics.eventsQuarantined.Inc()
			d.w.cfg.Log.Warn("quarantined an event that cannot be dispatched", "id", id, "error_code", sqlState(cause))
		}
		return err
	})
}

// reason is the message of a database error, without its details and values: those quote the row.
func reason(err error) string {
	if isOverTime(err) {
		return "its dispatch does not end in time: look at the filters of its account"
	}
	var pgErr interface{ SQLState() string }
	if errors.As(err, &pgErr) {
		return firstLine(db.Message(err))
	}
	return "unknown"
}
