package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

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

// advance does a step of a replay, with the partitions locked: a step that met rows on their way into a new partition would
// see them in neither place, and go on past them (see LockPartitions).
func (w *Worker) advance(ctx context.Context, r db.ListRunningReplaysRow) error {
	var row db.AdvanceReplayRow
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) (err error) {
		q := db.New(tx)
		if err := q.LockPartitions(ctx); err != nil {
			return err
		}
		row, err = q.AdvanceReplay(ctx, db.AdvanceReplayParams{ID: r.ID, MaxScanned: replayScan})
		return err
	})
	if row.Inserted > 0 && err == nil {
		for _, key := range row.OrderKeys {
			w.headless.add(orderKey{r.SubscriptionID, key})
		}
		signal(w.due)
	}
	return err
}
