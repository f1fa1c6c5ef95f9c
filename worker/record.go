package worker

import (
	"bytes"
	"context"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

const (
	recordBatch  = 1000
	recordLinger = 3 * time.Millisecond
	// leastAlike is how many outcomes of one request are worth a statement of their own.
	leastAlike = 100
)

// record writes outcomes in batches until ctx ends and all have come in. While it cannot, no request is started.
func (w *Worker) record(ctx context.Context) {
	for {
		batch := gather(ctx, w.outcomes, recordBatch, recordLinger)
		if len(batch) == 0 {
			return
		}
		started := time.Now()
		w.recordAll(ctx, w.recordAlike(ctx, batch))
		w.headless.add(keysOf(batch)...)
		w.metrics.recordSeconds.Observe(time.Since(started).Seconds())
		w.leases.recorded(batch)
	}
}

// recordAlike writes what came of requests with many events that were delivered, and answers what is left for recordAll: what
// failed, and all else of the same subscription, for together they say how the endpoint is.
func (w *Worker) recordAlike(ctx context.Context, batch []outcome) (rest []outcome) {
	if !slices.ContainsFunc(batch, func(o outcome) bool { return o.delivery.isBatched() }) {
		return batch
	}
	failed := map[uuid.UUID]bool{}
	for _, o := range batch {
		if !o.delivered() {
			failed[o.delivery.subscriptionID] = true
		}
	}
	for len(batch) > 0 {
		n := 1
		for n < len(batch) && batch[n].isAlike(batch[0]) {
			n++
		}
		if n < leastAlike || failed[batch[0].delivery.subscriptionID] || !w.recordRun(ctx, batch[:n]) {
			rest = append(rest, batch[:n]...)
		}
		batch = batch[n:]
	}
	return rest
}

// isAlike: nothing is recorded of them that differs but the delivery, if they were delivered.
func (o outcome) isAlike(other outcome) bool {
	return o.delivery.subscriptionID == other.delivery.subscriptionID && o.delivery.leaseID == other.delivery.leaseID && o.word == other.word && o.statusCode == other.statusCode &&
		o.startedAt.Equal(other.startedAt) && o.duration == other.duration && bytes.Equal(o.excerpt, other.excerpt)
}

// recordRun writes outcomes that are alike, and delivered. False: it has written none, and recordAll has to.
func (w *Worker) recordRun(ctx context.Context, run []outcome) bool {
	o := run[0]
	p := db.RecordAlikeParams{
		SubscriptionID: o.delivery.subscriptionID, LeaseID: o.delivery.leaseID, DeliveryIDs: make([]uuid.UUID, len(run)),
		DurationMS: int32(o.duration.Milliseconds()), StatusCode: int32(o.statusCode), Outcome: o.word, Excerpt: o.excerpt, //nolint:gosec // as in recordParams
	}
	for i := range run {
		p.DeliveryIDs[i] = run[i].delivery.id
	}
	isFailing := false
	err := w.write(ctx, len(run), func(ctx context.Context) (int, error) {
		p.AgeMS = ages(run[:1])[0]
		row, err := w.genericQ.RecordAlike(ctx, p)
		if isFailing = row.IsFailing; isFailing {
			return len(run), err
		}
		w.metrics.deliveriesEnded.WithLabelValues("delivered").Add(float64(row.Deliveries))
		return int(row.Deliveries), err
	})
	return !isFailing && !isDataError(err)
}

// write calls until it succeeds (persist), and tells how many of n outcomes were stale.
func (w *Worker) write(ctx context.Context, n int, f func(context.Context) (written int, err error)) error {
	written, failed := 0, false
	err := w.persist(ctx, "record", func(ctx context.Context) (err error) {
		written, err = f(ctx)
		failed = failed || err != nil
		w.state.set(func(s *pulseState) { s.recording = err == nil || isDataError(err) })
		return err
	})
	// After a lost reply the fence stops what had been written already: that is not stale.
	if stale := n - written; err == nil && stale > 0 && !failed {
		w.metrics.staleOutcomes.Add(float64(stale))
		w.cfg.Log.Warn("outcomes came too late: the leases had been taken away", "outcomes", stale)
	}
	return err
}

// recordAll writes a batch, halving it on a data error until the one outcome that cannot be written stands alone.
func (w *Worker) recordAll(ctx context.Context, batch []outcome) {
	if len(batch) == 0 {
		return
	}
	params := recordParams(batch)
	err := w.write(ctx, len(batch), func(ctx context.Context) (int, error) {
		params.AgesMS = ages(batch)
		rows, err := w.genericQ.Record(ctx, params)
		return w.metrics.ended(rows), err
	})
	switch {
	case err == nil:
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
