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
	// claimPause lets more slots become free than the one that was, so that a claim is worth its round trip. It doubles
	// while claims find nothing: the subscription that waits for room may be one whose endpoint is dead.
	claimPause = 5 * time.Millisecond
)

// A claimed is what a claim has to say beside its deliveries.
type claimed struct {
	deliveries int
	// limited: a subscription had no more room, and may have more that is due.
	limited bool
	// resume is where the next walk begins; the zero id is the beginning.
	resume uuid.UUID
}

// claim leases due deliveries: retries, those that found no free slot at dispatch, released and rescued ones.
func (w *Worker) claim(ctx, requests context.Context) {
	var last claimed
	rest := claimPause
	ticker := time.NewTicker(w.cfg.ClaimInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		more := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes).more
		if w.state.sending() && w.state.alive(time.Now()) == nil {
			var err error
			if last, err = w.claimOnce(ctx, requests, last.resume); err != nil {
				w.complain(ctx, "claim", err)
			}
		} else {
			last = claimed{resume: last.resume}
		}
		if last.deliveries > 0 && last.resume != uuid.Nil {
			continue // the walk goes on
		}
		if rest = min(2*rest, w.cfg.ClaimInterval); last.deliveries > 0 {
			rest = claimPause
		}
		if last.deliveries == 0 && !last.limited {
			more = nil // nothing waits for a slot
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-w.due:
		case <-more:
			pause(ctx, rest)
		}
	}
}

// claimOnce takes one batch from where the last walk ended.
func (w *Worker) claimOnce(ctx, requests context.Context, resume uuid.UUID) (result claimed, err error) {
	room := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	if room.claim <= 0 || room.bytes <= 0 {
		return claimed{limited: true, resume: resume}, nil
	}
	err = call(ctx, func(ctx context.Context) error {
		if resume == uuid.Nil {
			if any, err := w.q.AnyDue(ctx); err != nil || !any {
				return err
			}
		}
		started := time.Now()
		result, err = w.claimBatch(ctx, requests, room, resume)
		w.metrics.claimSeconds.Observe(time.Since(started).Seconds())
		return err
	})
	return result, err
}

func (w *Worker) claimBatch(ctx, requests context.Context, room room, resume uuid.UUID) (result claimed, err error) {
	w.leasing.Lock()
	defer w.leasing.Unlock()
	lease, load := w.leases.expect(), w.leases.load(w.cfg.MaxInFlight)
	rows, err := w.q.Claim(ctx, db.ClaimParams{
		FreeSlots: int32(min(room.claim, 500)), MaxBytes: min(room.bytes, batchBytes), MaxSteps: claimSteps, MaxOfEach: claimOfEach, AfterSubscriptionID: resume, //nolint:gosec // bounded
		IsNew: w.state.isNew(), InFlight: load.inFlight, Limits: load.limits,
		WorkerID: w.identity.get(), LeaseID: lease,
	})
	if err != nil {
		w.leases.got(lease, nil)
		return result, err
	}
	deliveries := make([]*delivery, 0, len(rows))
	for _, row := range rows {
		result.resume, result.limited = row.ResumeAfter, row.Limited
		if row.DeliveryID != nil {
			deliveries = append(deliveries, w.claimedDelivery(row, lease))
		}
	}
	w.leases.got(lease, deliveries)
	w.start(requests, deliveries)
	result.deliveries = len(deliveries)
	return result, nil
}

func (w *Worker) claimedDelivery(row db.ClaimRow, lease uuid.UUID) *delivery {
	e := &event{
		id:        db.EventID{InsertedAt: row.EventInsertedAt, ID: row.EventID, Installation: w.installation},
		eventType: row.EventType, occurredAt: row.OccurredAt, recipient: row.Recipient, messageID: row.MessageID, campaignID: row.CampaignID,
		sendingDom: row.SendingDomain, sendingNode: row.SendingNode, bridge: row.Bridge, dedicatedIP: row.DedicatedIP, data: row.Data,
	}
	if !row.EventFound {
		e.data = nil // its partition is gone: the attempt ends as render_failed
	}
	return &delivery{id: *row.DeliveryID, leaseID: lease, subscriptionID: row.SubscriptionID, attempt: int(row.Attempt), claimed: true, event: e}
}
