package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

// testSend serves the test sends that people ask for through the API: ahead of all others, outside the slots, in any
// status of the subscription, never retried, not counted. A stop breaks them off: somebody sits before them.
func (w *Worker) testSend(ctx context.Context) {
	var sends sync.WaitGroup
	defer sends.Wait()
	for ctx.Err() == nil {
		var rows []db.ClaimTestDeliveriesRow
		err := call(ctx, func(ctx context.Context) (err error) {
			rows, err = w.q.ClaimTestDeliveries(ctx, w.identity.get())
			return err
		})
		w.complain(ctx, "claim test deliveries", err)
		for _, row := range rows {
			sends.Go(func() { w.sendTest(ctx, row) })
		}
		if len(rows) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.tests:
		}
	}
}

func (w *Worker) sendTest(ctx context.Context, row db.ClaimTestDeliveriesRow) {
	o := w.attemptTest(ctx, row)
	duration := int32(o.duration.Milliseconds()) //nolint:gosec // bounded by the timeout
	var status *int16
	if code := int16(o.statusCode); code != 0 { //nolint:gosec // bounded by HTTP
		status = &code
	}
	err := w.persist(ctx, "record test delivery", func(ctx context.Context) error {
		return w.q.FinishTestDelivery(ctx, db.FinishTestDeliveryParams{
			ID: row.ID, DurationMS: &duration, StatusCode: status, Outcome: &o.word, ResponseExcerpt: o.excerpt,
		})
	})
	w.complain(ctx, "record test delivery", err)
}

func (w *Worker) attemptTest(ctx context.Context, row db.ClaimTestDeliveriesRow) outcome {
	d := &delivery{id: row.ID, subscriptionID: row.SubscriptionID}
	failed := outcome{delivery: d, word: outcomeRenderFailed}
	sample, err := w.sample(ctx, row.EventType)
	if err != nil {
		w.complain(ctx, "read sample", err)
		return failed
	}
	d.event = w.testEvent(row, sample)
	// Read anew: the test is often the first thing after a change.
	if err := w.cache.read(ctx, map[uuid.UUID]bool{row.SubscriptionID: true}); err != nil {
		w.complain(ctx, "load subscriptions", err)
		return failed
	}
	s := w.cache.get(row.SubscriptionID)
	if s == nil || s.url == "" {
		return failed
	}
	return w.client.attempt(ctx, s, d)
}

// sample is the registered sample of a type, or an empty object for a type that nobody registered.
func (w *Worker) sample(ctx context.Context, eventType string) (sample []byte, err error) {
	err = call(ctx, func(ctx context.Context) (err error) {
		sample, err = w.q.EventTypeSample(ctx, eventType)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return []byte("{}"), nil
	}
	return sample, err
}

// testEvent has an id of the event form that no event has: id 0 is never given out by the outbox.
func (w *Worker) testEvent(row db.ClaimTestDeliveriesRow, sample []byte) *event {
	return &event{
		id:    db.EventID{InsertedAt: row.CreatedAt.Truncate(time.Microsecond), ID: 0, Installation: w.installation},
		Event: format.Event{Type: row.EventType, OccurredAt: row.CreatedAt, Data: sample, IsTest: true},
	}
}
