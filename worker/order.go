package worker

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

const (
	// dispatchTurn is the advisory lock under which dispatches run one after another while any subscription has an order:
	// "mailhord" in ASCII. Side by side, what one took from the outbox could be sent before what another took ahead of it.
	dispatchTurn = 0x6d61696c686f7264
	// turnPatience is how long a dispatch waits for its turn; then it goes without, and what has an order is inserted blocked.
	turnPatience = 100 * time.Millisecond
	// unblockBatch bounds the keys of one statement.
	unblockBatch = 500
	// keySweepInterval is how often a slice of the blocked keys, sweepKeys of them, is looked at for some without a head.
	keySweepInterval = time.Second
	sweepKeys        = 1000
)

// An orderKey is what deliveries of one subscription have in common that go one after another.
type orderKey struct {
	subscriptionID uuid.UUID
	key            int64
}

// headless is the keys whose heads may have ended. It never blocks who adds to it.
type headless struct {
	mu   sync.Mutex
	keys map[orderKey]bool
	some chan struct{}
}

func newHeadless() *headless {
	return &headless{keys: map[orderKey]bool{}, some: make(chan struct{}, 1)}
}

func (h *headless) add(keys ...orderKey) {
	if len(keys) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range keys {
		h.keys[k] = true
	}
	signal(h.some)
}

// take answers some of the keys, which are no longer here.
func (h *headless) take() (p db.UnblockParams) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.keys {
		if len(p.OrderKeys) == unblockBatch {
			signal(h.some)
			break
		}
		p.SubscriptionIDs, p.OrderKeys = append(p.SubscriptionIDs, k.subscriptionID), append(p.OrderKeys, k.key)
		delete(h.keys, k)
	}
	return p
}

// keysOf is the keys of deliveries that went out in order.
func keysOf(batch []outcome) (keys []orderKey) {
	for _, o := range batch {
		if d := o.delivery; d.orderKey != 0 {
			keys = append(keys, orderKey{d.subscriptionID, d.orderKey})
		}
	}
	return keys
}

// blockedKeys is the keys that a dispatch has blocked behind what was there before: their heads may have ended
// meanwhile.
func blockedKeys(listed db.DispatchRow) (keys []orderKey) {
	for i, key := range listed.BlockedOrderKeys {
		keys = append(keys, orderKey{listed.BlockedSubscriptionIDs[i], key})
	}
	return keys
}

// order makes the next delivery of a key due when the one before it has ended, until ctx ends.
func (w *Worker) order(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-w.headless.some:
			w.unblockAll(ctx)
		}
	}
}

func (w *Worker) unblockAll(ctx context.Context) {
	for p := w.headless.take(); len(p.OrderKeys) > 0; p = w.headless.take() {
		w.unblock(ctx, p)
	}
}

// unblock is for after a commit. Keys that it has to give up, while this worker stops, are found by another's sweep.
func (w *Worker) unblock(ctx context.Context, p db.UnblockParams) {
	var row db.UnblockRow
	err := w.persist(ctx, "unblock deliveries", func(ctx context.Context) (err error) {
		if row, err = w.q.Unblock(ctx, p); isHeadTaken(err) {
			// A head came in between, and is seen now.
			row, err = w.q.Unblock(ctx, p)
		}
		return err
	})
	if err != nil {
		w.sweepAll.Store(true)
	}
	if row.Unblocked > 0 {
		if row.Old > 0 {
			w.freed.Store(true)
		}
		signal(w.due)
	}
}

// A keySweep is where a worker has come to in its walk over the blocked keys.
type keySweep struct {
	after db.ListBlockedKeysParams
}

// sweepOrder looks for what nobody has unblocked: a worker died between a commit and that, or deliveries were ended beside the
// flow. A slice of the keys a second, and all of them at the start and after a rescue; and what waits of
// subscriptions that have no order any more.
func (w *Worker) sweepOrder(ctx context.Context) {
	w.sweepAll.Store(true)
	s := keySweep{}
	every(ctx, keySweepInterval, func(ctx context.Context) {
		w.drain(ctx, "free unordered deliveries", func(ctx context.Context) (int64, error) {
			n, err := w.q.FreeUnordered(ctx, smallBatch)
			if n > 0 {
				w.freed.Store(true)
				signal(w.due)
			}
			return n, err
		})
		all := w.sweepAll.Swap(false)
		if all {
			s = keySweep{}
		}
		for {
			more, err := s.slice(ctx, w)
			w.complain(ctx, "sweep blocked keys", err)
			if err != nil && all {
				w.sweepAll.Store(true)
			}
			if err != nil || !all || !more || ctx.Err() != nil {
				return
			}
		}
	})
}

// slice looks at the next keys, and says whether there are more.
func (s *keySweep) slice(ctx context.Context, w *Worker) (more bool, err error) {
	s.after.MaxKeys = sweepKeys
	err = call(ctx, func(ctx context.Context) error {
		rows, err := w.q.ListBlockedKeys(ctx, s.after)
		if err != nil {
			return err
		}
		for _, row := range rows {
			s.after.AfterSubscriptionID, s.after.AfterOrderKey = row.SubscriptionID, row.OrderKey
			if !row.HasHead {
				w.headless.add(orderKey{row.SubscriptionID, row.OrderKey})
			}
		}
		if more = len(rows) == sweepKeys; !more {
			*s = keySweep{}
		}
		return nil
	})
	return more, err
}
