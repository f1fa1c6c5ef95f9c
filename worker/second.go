package worker

import (
	"context"
	"slices"

	"mailhook/db"
)

// An offer is what the ordinary dispatch leaves to the second one: up to so many rows of the outbox above an id.
type offer struct {
	after int64
	rows  int
}

// offer lets the second dispatch take a batch beside the next one of this: there is more to take than one session can, nearly all of it
// for batches, their subscriptions have room for two, and its data is small, so that no row is locked and left for its size.
func (d *dispatcher) offer(taken []db.DispatchRow, rows int) {
	listed := listedOf(taken)
	if len(taken) < rows || 10*listed.ForBatches < 9*listed.Deliveries || !listed.IsRoomy || dataBytes(taken) > secondBytes/2 {
		return
	}
	select {
	case d.w.offers <- offer{d.floor.after, rows}:
	default: // it has not begun with the last one
	}
}

// dispatchSecond takes the offers of the ordinary dispatch until ctx ends. What single events wait for is their requests; those for
// batches have hardly any, and wait for the session that dispatches.
//
// It leases for batches alone. Of two statements side by side each gives a subscription the same room: one that gets single events would have
// more requests under way than it allows. The requests of batches are counted when they begin.
func (w *Worker) dispatchSecond(ctx, requests context.Context) {
	d := &dispatcher{w: w, requests: requests, isSecond: true}
	var after int64
	for {
		select {
		case o := <-w.offers:
			after = d.accept(ctx, offer{max(after, o.after), o.rows})
		case <-ctx.Done():
			return
		}
	}
}

// accept takes what was offered, unless it is out of place by now, and answers up to which id it has taken. It has no floor: rows
// that commit late, and those that make a statement fail, are left to the ordinary dispatch.
func (d *dispatcher) accept(ctx context.Context, o offer) (after int64) {
	w := d.w
	if !w.mayLease() || w.calm.isCalm() || w.state.ordered() {
		return o.after
	}
	release, ok := w.leases.promise(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	if !ok {
		return o.after
	}
	defer release()
	taken, err := d.take(ctx, o.after, nil, o.rows, 0, 0)
	if len(taken) < o.rows { // it failed, or left some for their size: the ordinary one may be asleep, for it found them locked
		signal(w.events)
	}
	if err != nil {
		if !isHeadTaken(err) && !isUndispatchable(err) {
			w.complain(ctx, "dispatch", err)
			pause(ctx, retryPause)
		}
		return o.after
	}
	ids := idsOf(taken)
	w.early.add(ids)
	return slices.Max(append(ids, o.after))
}
