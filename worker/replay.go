package worker

import (
	"context"
	"time"

	"mailhook/db"
)

// replayInterval is how often running replays release what their rate allows.
const replayInterval = 250 * time.Millisecond

// replayScan bounds the events that one step of a replay reads.
const replayScan = 5000

// replay releases the deliveries of running replays at their rates. Each step locks its replay's row, so that several
// workers do not add up.
func (w *Worker) replay(ctx context.Context) {
	every(ctx, replayInterval, func(ctx context.Context) {
		if !w.state.sending() {
			return
		}
		err := call(ctx, func(ctx context.Context) error {
			running, err := w.q.ListRunningReplays(ctx)
			if err != nil {
				return err
			}
			for _, r := range running {
				if err := w.advance(ctx, r); err != nil {
					return err
				}
			}
			return nil
		})
		w.complain(ctx, "replay", err)
	})
}

func (w *Worker) advance(ctx context.Context, r db.ListRunningReplaysRow) error {
	var inserted int64
	var keys []int64
	if r.Source == "exhausted" {
		row, err := w.q.AdvanceExhaustedReplay(ctx, r.ID)
		if err != nil {
			return err
		}
		inserted, keys = row.Inserted, row.OrderKeys
	} else {
		row, err := w.q.AdvanceEventReplay(ctx, db.AdvanceEventReplayParams{ID: r.ID, MaxScanned: replayScan})
		if err != nil {
			return err
		}
		inserted, keys = row.Inserted, row.OrderKeys
	}
	for _, key := range keys {
		w.headless.add(orderKey{r.SubscriptionID, key})
	}
	if inserted > 0 {
		signal(w.due)
	}
	return nil
}
