package worker

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

const (
	recordBatch  = 1000
	recordLinger = 3 * time.Millisecond
)

// record writes outcomes in batches until ctx ends and all have come in. While it cannot, no request is started.
func (w *Worker) record(ctx context.Context) {
	for {
		batch := gather(ctx, w.outcomes, recordBatch, recordLinger)
		if len(batch) == 0 {
			return
		}
		started := time.Now()
		w.recordAll(ctx, batch)
		w.headless.add(keysOf(batch)...)
		w.metrics.recordSeconds.Observe(time.Since(started).Seconds())
		w.leases.recorded(batch)
	}
}

// recordAll writes a batch, halving it on a data error until the one outcome that cannot be written stands alone.
func (w *Worker) recordAll(ctx context.Context, batch []outcome) {
	params := recordParams(batch)
	written, failed := 0, false
	err := w.persist(ctx, "record", func(ctx context.Context) error {
		params.AgesMS = ages(batch)
		rows, err := w.genericQ.Record(ctx, params)
		if err == nil {
			written = w.metrics.ended(rows)
		}
		failed = failed || err != nil
		w.state.set(func(s *pulseState) { s.recording = err == nil || isDataError(err) })
		return err
	})
	switch {
	case err == nil:
		// After a lost reply the fence stops what had been written already: that is not stale.
		if stale := len(batch) - written; stale > 0 && !failed {
			w.metrics.staleOutcomes.Add(float64(stale))
			w.cfg.Log.Warn("outcomes came too late: the leases had been taken away", "outcomes", stale)
		}
	case !isDataError(err): // given up while stopping: the leases are returned
	case len(batch) > 1:
		w.recordAll(ctx, batch[:len(batch)/2])
		w.recordAll(ctx, batch[len(batch)/2:])
	case batch[0].excerpt != nil:
		batch[0].excerpt = nil
		w.recordAll(ctx, batch)
	default:
		d := batch[0].delivery
		err := w.persist(ctx, "bury a delivery that cannot be recorded", func(ctx context.Context) error {
			_, err := w.q.BuryUnrecordable(ctx, db.BuryUnrecordableParams{DeliveryID: d.id, LeaseID: d.leaseID})
			return err
		})
		w.complain(ctx, "bury a delivery that cannot be recorded", err)
	}
}

func recordParams(batch []outcome) db.RecordParams {
	n := len(batch)
	p := db.RecordParams{
		DeliveryIDs: make([]uuid.UUID, n), IDTails: make([]string, n), LeaseIDs: make([]uuid.UUID, n), Outcomes: make([]string, n), Delivered: make([]bool, n), Permanent: make([]bool, n), Suspends: make([]bool, n), Slows: make([]bool, n),
		StatusCodes: make([]int32, n), DurationsMS: make([]int32, n), RetryAftersMS: make([]int64, n), Excerpts: make([][]byte, n),
		Jitters: make([]float64, n), BatchIDs: make([]uuid.UUID, n), Counts: make([]int32, n),
	}
	for i, o := range batch {
		p.DeliveryIDs[i], p.IDTails[i], p.LeaseIDs[i] = o.delivery.id, idTail(), o.delivery.leaseID
		p.Outcomes[i], p.Delivered[i], p.Permanent[i], p.Suspends[i], p.Slows[i] = o.word, o.delivered(), o.permanent, o.suspends(), o.slows()
		p.StatusCodes[i], p.DurationsMS[i] = int32(o.statusCode), int32(o.duration.Milliseconds()) //nolint:gosec // bounded by HTTP and the timeout
		p.RetryAftersMS[i], p.Excerpts[i] = o.retryAfter.Milliseconds(), o.excerpt
		p.Jitters[i], p.BatchIDs[i], p.Counts[i] = o.jitter, o.batchID, 1
		if o.batchID == uuid.Nil {
			p.Jitters[i] = jitter()
		}
		if o.uncounted {
			p.Counts[i] = 0
		}
	}
	return p
}

// jitter is a random number from -1 to 1.
func jitter() float64 { return 2*rand.Float64() - 1 } //nolint:gosec // not a secret

// idTail is what follows the time and the version in a UUIDv7: 19 random digits, but for the variant.
func idTail() string {
	id := uuid.New()
	text := hex.EncodeToString(id[:])
	return text[:3] + text[16:]
}

// ages is how long ago each attempt began, so that the statement can tell the time by the database's clock.
func ages(batch []outcome) []int32 {
	ages := make([]int32, len(batch))
	for i, o := range batch {
		ages[i] = int32(min(time.Since(o.startedAt), 24*time.Hour).Milliseconds()) //nolint:gosec // a day of milliseconds fits
	}
	return ages
}
