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

// offer lets the second dispatch take a batch beside the next one of this, where there is more to take than one session can,
// and nearly all of it is for batches.
func (d *dispatcher) offer(rows int) {
	w := d.w
	isForBatches := d.batched > 0 && d.batched >= 0.9*d.fanOut
	isHalved := d.limit < w.cfg.BatchRows // some row is looked for
	if !d.full || !isForBatches || isHalved || w.calm.isCalm() || w.state.ordered() {
		return
	}
	select {
	case w.offers <- offer{d.floor.after, rows}:
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

// accept takes what was offered, as far as there is room, and answers up to which id it has taken. It has no floor: rows that commit
// late, and those that make a statement fail, are left to the ordinary dispatch.
func (d *dispatcher) accept(ctx context.Context, o offer) (after int64) {
	w := d.w
	if !w.mayLease() {
		return o.after
	}
	batched, bytes, release := w.leases.promise(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	defer release()
	if batched <= 0 || bytes <= 0 {
		return o.after
	}
	d.promised = batched
	taken, err := d.take(ctx, o.after, nil, o.rows, 0, bytes)
	switch {
	case err == nil && len(taken) > 0:
		ids := idsOf(taken)
		w.early.add(ids)
		return slices.Max(ids)
	case err != nil && !isHeadTaken(err) && !isUndispatchable(err):
		w.complain(ctx, "dispatch", err)
		pause(ctx, retryPause)
	}
	return o.after
}

func idsOf(rows []db.DispatchRow) []int64 {
	ids := make([]int64, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	return ids
}
