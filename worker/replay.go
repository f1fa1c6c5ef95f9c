package worker

import (
	"cmp"
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

// replayInterval is how often running replays release what their rate allows.
const replayInterval = 250 * time.Millisecond

// replayRound is how long a round of steps goes on beyond one of each account: many replays of one account do not keep those of others.
const replayRound = time.Second

// replayScan bounds the events that one step of a replay reads: fewer, for a replay whose steps have taken too long.
const replayScan = 5000

// replay releases the deliveries of running replays at their rates. Each step locks its replay's row, so that several
// workers do not add up. One that fails holds up no other.
func (w *Worker) replay(ctx context.Context) {
	scans := map[uuid.UUID]int32{}
	every(ctx, replayInterval, func(ctx context.Context) {
		if !w.state.sending() {
			return
		}
		var running []db.ListRunningReplaysRow
		err := call(ctx, func(ctx context.Context) (err error) {
			running, err = w.q.ListRunningReplays(ctx)
			return err
		})
		w.complain(ctx, "list replays", err)
		began := time.Now()
		for _, r := range running {
			if r.Nth > 1 && time.Since(began) > replayRound {
				break // the others of these accounts have their turn in the next round
			}
			scan := cmp.Or(scans[r.ID], replayScan)
			err := call(ctx, func(ctx context.Context) error { return w.advance(ctx, r, scan) })
			if isOverTime(err) {
				scans[r.ID] = max(1, scan/4)
			}
			w.complain(ctx, "replay", err)
		}
		if len(running) == 0 {
			clear(scans)
		}
	})
}

// advance does a step of a replay, with the partitions locked: a step that met rows on their way into a new partition would
// see them in neither place, and go on past them (see LockPartitions).
func (w *Worker) advance(ctx context.Context, r db.ListRunningReplaysRow, scan int32) error {
	var row db.AdvanceReplayRow
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) (err error) {
		q := db.New(tx)
		if mine, err := q.TryRepeats(ctx, r.SubscriptionID); err != nil || !mine {
			return err // another worker's step of it, or somebody repeats one of its events
		}
		if err := q.LockPartitions(ctx); err != nil {
			return err
		}
		row, err = q.AdvanceReplay(ctx, db.AdvanceReplayParams{ID: r.ID, MaxScanned: scan})
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
