package worker

import (
	"context"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

const (
	// claimSteps bounds the subscriptions that one claim walks.
	claimSteps = 1000
	// claimOfEach bounds what one claim takes of a subscription, so that many have their turn.
	claimOfEach = 100
)

// claim leases due deliveries: retries, those that found no free slot at dispatch, released and rescued ones.
func (w *Worker) claim(ctx, requests context.Context) {
	resume := uuid.Nil
	ticker := time.NewTicker(w.cfg.ClaimInterval)
	defer ticker.Stop()
	for {
		more := false
		if w.state.sending() && w.state.alive(time.Now()) == nil {
			var err error
			if more, err = w.claimOnce(ctx, requests, &resume); err != nil {
				w.complain(ctx, "claim", err)
				more = false
			}
		}
		if more && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-w.due:
			// Deliveries wait for a slot: look again when one is free, and not more often than a round trip is worth.
			pause(ctx, 5*time.Millisecond)
		}
	}
}

// claimOnce takes one batch, and says whether the walk is to go on at once.
func (w *Worker) claimOnce(ctx, requests context.Context, resume *uuid.UUID) (more bool, err error) {
	free, bytes, _ := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	if free <= 0 || bytes <= 0 {
		return false, nil
	}
	err = call(ctx, func(ctx context.Context) error {
		if *resume == uuid.Nil {
			if any, err := w.q.AnyDue(ctx); err != nil || !any {
				return err
			}
		}
		started := time.Now()
		n, err := w.claimBatch(ctx, requests, free, resume)
		w.metrics.claimSeconds.Observe(time.Since(started).Seconds())
		more = err == nil && (n > 0 || *resume != uuid.Nil)
		return err
	})
	return more, err
}

func (w *Worker) claimBatch(ctx, requests context.Context, free int, resume *uuid.UUID) (int, error) {
	lease := w.leases.expect()
	workers, rank := w.state.share()
	rows, err := w.q.Claim(ctx, db.ClaimParams{
		FreeSlots: int32(min(free, 500)), MaxSteps: claimSteps, MaxOfEach: claimOfEach, AfterSubscriptionID: *resume, //nolint:gosec // bounded
		WorkerCount: workers, WorkerRank: rank, InFlight: w.leases.inFlight(),
		WorkerID: w.identity.get(), LeaseID: lease,
	})
	if err != nil {
		w.leases.got(lease, nil)
		return 0, err
	}
	deliveries := make([]*delivery, 0, len(rows))
	for _, row := range rows {
		*resume = row.ResumeAfter
		if row.DeliveryID != nil {
			deliveries = append(deliveries, w.claimed(row, lease))
		}
	}
	w.leases.got(lease, deliveries)
	w.start(requests, deliveries)
	return len(deliveries), nil
}

func (w *Worker) claimed(row db.ClaimRow, lease uuid.UUID) *delivery {
	e := &event{
		id:        db.EventID{InsertedAt: row.EventInsertedAt, ID: row.EventID, Installation: w.installation},
		eventType: row.EventType, occurredAt: row.OccurredAt, recipient: row.Recipient, messageID: row.MessageID, campaignID: row.CampaignID,
		sendingDom: row.SendingDomain, sendingNode: row.SendingNode, bridge: row.Bridge, dedicatedIP: row.DedicatedIP, data: row.Data,
	}
	if !row.EventFound {
		e.data = nil // its partition is gone: the attempt ends as render_failed
	}
	return &delivery{id: *row.DeliveryID, leaseID: lease, subscriptionID: row.SubscriptionID, attempt: int(row.Attempt), event: e}
}
