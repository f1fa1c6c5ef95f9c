package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

// leases is what this process remembers of what it holds: every lease from the moment before the call that may get
// it until its last delivery is recorded or given back. The database's account is compared with it (reconcileLeases).
// A slot is free again when the request is over: what waits to be recorded has an outcome and no body.
type leases struct {
	mu             sync.Mutex
	remembered     map[uuid.UUID]int // deliveries of a lease still held; 0 while the call is under way
	bySubscription map[uuid.UUID]*load
	slowAndIdle    int // of these, without a slot: remembered for being slow
	deliveries     int // with a slot
	claimed        int // of these, by ordinary claims
	urgent         int // of these, by the urgent lane
	unrecorded     int // without one any more
	bytes          int64
	batched        int       // deliveries that wait for a batch or travel in one: without a slot
	batchedBytes   int64     // of event data, that of two deliveries of one event twice
	batchedAt      time.Time // one of them came or went
	promised       int       // of these and of their event data, to the second dispatch
	promisedBytes  int64
	requests       int                    // with batches, each with a slot
	starved        bool                   // a batch waits for a slot
	unstarved      chan struct{}          // there may be one
	crowded        map[uuid.UUID]struct{} // subscriptions where urgent deliveries wait for room
	wanting        map[uuid.UUID]struct{} // subscriptions that have more due than room
	wanted         chan struct{}          // one of them may have room
	freed          chan struct{}          // closed and replaced when something is given up
	toldAt         time.Time
}

func newLeases() *leases {
	return &leases{
		remembered: map[uuid.UUID]int{}, bySubscription: map[uuid.UUID]*load{}, crowded: map[uuid.UUID]struct{}{}, wanting: map[uuid.UUID]struct{}{},
		freed: make(chan struct{}), unstarved: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
	}
}

// expect makes a fresh lease id and remembers it before the database can know it.
func (l *leases) expect() uuid.UUID {
	id := uuid.New()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remembered[id] = 0
	return id
}

// got adds what the call brought; a lease without deliveries, or of a call that failed, is forgotten.
func (l *leases) got(id uuid.UUID, deliveries []*delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(deliveries) == 0 {
		delete(l.remembered, id)
		return
	}
	l.remembered[id] = len(deliveries)
	for _, d := range deliveries {
		l.count(d, 1)
		l.take(d)
		if d.event.holders == 0 {
			l.bytes += d.event.size()
		}
		d.event.holders++
	}
}

// count adds a delivery to those in memory, or takes it out (-1).
func (l *leases) count(d *delivery, by int) {
	switch {
	case d.isBatched():
		l.batched += by
		l.batchedAt = time.Now()
		l.batchedBytes += int64(by) * d.event.size()
		return
	case d.urgent:
		l.urgent += by
	case d.claimed:
		l.claimed += by
	}
	l.deliveries += by
}

// finished frees the slot of a delivery whose request is over, after some time.
func (l *leases) finished(d *delivery, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bySubscription[d.subscriptionID].moved(took)
	l.free(d)
	l.unrecorded++
	// Not for each of some ten thousand a second: the next batch that is recorded tells, too, unless this one was in the
	// last.
	if l.unrecorded <= 0 || time.Since(l.toldAt) > time.Millisecond {
		l.tell()
	}
}

// sent is finished for the deliveries of a batch, whose slot is given back by end.
func (l *leases) sent(deliveries []*delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range deliveries {
		l.free(d)
	}
	l.unrecorded += len(deliveries)
	l.tell()
}

// isCrowded says that there is little room left for deliveries that wait for others.
func (l *leases) isCrowded(maxDeliveries int, maxBytes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.batched > batchedOfEachSlot*maxDeliveries*3/4 || l.batchedBytes > maxBytes/3
}

// recorded gives up the deliveries of outcomes.
func (l *leases) recorded(batch []outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range batch {
		l.unrecorded--
		l.forget(o.delivery)
	}
	l.tell()
}

// returned gives up deliveries that were not started.
func (l *leases) returned(batch []returned) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range batch {
		l.free(r.delivery)
		l.forget(r.delivery)
	}
	l.tell()
}

func (l *leases) free(d *delivery) {
	l.count(d, -1)
	l.satisfy(d.subscriptionID)
	l.leave(d)
	l.feed()
	if d.event.holders--; d.event.holders == 0 {
		l.bytes -= d.event.size()
		d.event.empty() // its outcomes may wait a while
	}
}

func (l *leases) forget(d *delivery) {
	if l.remembered[d.leaseID]--; l.remembered[d.leaseID] == 0 {
		delete(l.remembered, d.leaseID)
	}
}

// tell wakes those who wait for room.
func (l *leases) tell() {
	l.toldAt = time.Now()
	close(l.freed)
	l.freed = make(chan struct{})
}

func (l *leases) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deliveries + l.batched + l.unrecorded
}

// ids are the leases that are remembered.
func (l *leases) ids() map[uuid.UUID]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make(map[uuid.UUID]struct{}, len(l.remembered))
	for id := range l.remembered {
		ids[id] = struct{}{}
	}
	return ids
}

// forgotten filters the leases that are not remembered, and were not before.
func (l *leases) forgotten(ids []uuid.UUID, before map[uuid.UUID]struct{}) []uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	var missing []uuid.UUID
	for _, id := range ids {
		_, was := before[id]
		if _, is := l.remembered[id]; !is && !was {
			missing = append(missing, id)
		}
	}
	return missing
}

// waitEmpty waits until nothing is held, and says whether that came within the time.
func (l *leases) waitEmpty(within time.Duration) bool {
	deadline := time.After(within)
	for {
		l.mu.Lock()
		n, freed := l.deliveries+l.batched+l.unrecorded, l.freed
		l.mu.Unlock()
		if n == 0 {
			return true
		}
		select {
		case <-freed:
		case <-deadline:
			return false
		}
	}
}

// reconcileLeases gives back, every two seconds, leases that the database says are ours and we do not remember: their
// dispatch or claim was committed and its reply lost, or the database lost the end of theirs in a crash. The memory is asked before the
// database and after it: what has ended meanwhile is not lost, and a call under way is never taken for a lost one.
func (w *Worker) reconcileLeases(ctx context.Context) {
	var leases longLook
	every(ctx, 2*time.Second, func(ctx context.Context) {
		if leases.isDue(w) {
			w.returnForgotten(ctx, &leases)
		}
	})
}

func (w *Worker) returnForgotten(ctx context.Context, leases *longLook) {
	id, before := w.identity.get(), w.leases.ids()
	var ids []uuid.UUID
	err := leases.look(func() error {
		return call(ctx, func(ctx context.Context) (err error) {
			ids, err = w.q.ListLeases(ctx, id)
			return err
		})
	})
	if err != nil {
		w.complain(ctx, "look for forgotten leases", err)
		return
	}
	forgotten := w.leases.forgotten(ids, before)
	if len(forgotten) == 0 {
		return
	}
	err = call(ctx, func(ctx context.Context) error {
		n, err := w.q.ReturnLeases(ctx, db.ReturnLeasesParams{WorkerID: id, LeaseIDs: forgotten})
		if err == nil && n > 0 {
			w.metrics.leasesReturned.Add(float64(n))
			w.cfg.Log.Warn("gave back leases whose reply was lost", "deliveries", n)
			w.freed.Store(true)
			signal(w.due)
		}
		return err
	})
	w.complain(ctx, "give back forgotten leases", err)
}

// A returned delivery was leased and not started.
type returned struct {
	delivery *delivery
	delay    time.Duration // not to be started again before
}

// putBack hands deliveries to giveBack.
func (w *Worker) putBack(deliveries []*delivery, delay time.Duration) {
	for _, d := range deliveries {
		w.returns <- returned{d, delay}
	}
}

// giveBack returns deliveries that were not started, in batches.
func (w *Worker) giveBack(ctx context.Context) {
	for {
		batch := gather(ctx, w.returns, 1000, 10*time.Millisecond)
		if len(batch) == 0 {
			return
		}
		params := db.ReturnDeliveriesParams{}
		for _, r := range batch {
			params.DeliveryIDs = append(params.DeliveryIDs, r.delivery.id)
			params.LeaseIDs = append(params.LeaseIDs, r.delivery.leaseID)
			params.DelaysMS = append(params.DelaysMS, r.delay.Milliseconds())
		}
		err := w.persist(ctx, "give back deliveries", func(ctx context.Context) error {
			n, err := w.q.ReturnDeliveries(ctx, params)
			w.metrics.leasesReturned.Add(float64(n))
			if n > 0 && slices.Contains(params.DelaysMS, 0) { // they have been due for a while
				w.freed.Store(true)
				signal(w.due)
			}
			return err
		})
		w.complain(ctx, "give back deliveries", err) // reconcileLeases will
		w.leases.returned(batch)
	}
}

// gather takes the next batch from c: at least one, at most limit, waiting no longer than linger for more than one.
// An empty batch means that ctx has ended and c is drained.
func gather[T any](ctx context.Context, c <-chan T, limit int, linger time.Duration) []T {
	var batch []T
	select {
	case x := <-c:
		batch = append(batch, x)
	case <-ctx.Done():
		linger = 0
	}
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for len(batch) < limit {
		select {
		case x := <-c:
			batch = append(batch, x)
			continue
		default:
		}
		if linger == 0 {
			return batch
		}
		select {
		case x := <-c:
			batch = append(batch, x)
		case <-timer.C:
			return batch
		}
	}
	return batch
}

// persist repeats f until it succeeds, backing off up to a second, or until ctx has ended and five more seconds. A data
// error is answered at once: repeating cannot help.
func (w *Worker) persist(ctx context.Context, what string, f func(context.Context) error) error {
	delay := 10 * time.Millisecond
	var giveUp <-chan time.Time
	for {
		err := call(context.WithoutCancel(ctx), f)
		if err == nil {
			return nil
		}
		w.complain(ctx, what, err)
		if isDataError(err) {
			return err
		}
		if ctx.Err() != nil && giveUp == nil {
			giveUp = time.After(5 * time.Second)
		}
		select {
		case <-giveUp:
			return err
		case <-time.After(delay):
		}
		delay = min(2*delay, time.Second)
	}
}
