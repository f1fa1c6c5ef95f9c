package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/uuid"

	"mailhook/db"
)

func (s *server) retryDelivery(ctx context.Context, who caller, in *deliveryParams) (out *deliveryResponse, err error) {
	id, err := db.ParseID(db.DeliveryPrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	err = s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockDelivery(ctx, id); err != nil {
			return fmt.Errorf("lock delivery: %w", err)
		}
		delivery, end, err := s.loadDelivery(ctx, q, who.account, id)
		if err != nil {
			return err
		}
		if end == nil {
			out, err = s.hurry(ctx, q, who, delivery, id)
		} else {
			out, err = s.redeliver(ctx, q, who, *end)
		}
		if err != nil {
			return err
		}
		retried := map[string]string{"delivery_id": out.Body.ID} // a new one for one that has ended
		if err := who.audit(ctx, q, "delivery.retry", delivery.AccountID, in.ID, nil, retried); err != nil {
			return err
		}
		return q.NotifyWorkers(ctx, "")
	})
	return out, err
}

// hurry makes an unfinished delivery due now.
func (s *server) hurry(ctx context.Context, q *db.Queries, who caller, delivery DeliveryWithAttempts, id uuid.UUID) (*deliveryResponse, error) {
	subscription, err := db.ParseID(db.SubscriptionPrefix, delivery.SubscriptionID)
	if err != nil {
		return nil, fmt.Errorf("parse own id: %w", err)
	}
	target, err := q.GetRetryTarget(ctx, db.GetRetryTargetParams{SubscriptionID: subscription})
	if err != nil {
		return nil, fmt.Errorf("read subscription: %w", err)
	}
	if err := checkTarget(target.SubscriptionStatus); err != nil {
		return nil, err
	}
	hurried, err := q.HurryDelivery(ctx, id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("hurry delivery: %w", err)
	case hurried == 0:
		return nil, fail(codeInFlight, "a request of this delivery is under way")
	}
	return s.answerDelivery(ctx, q, who, id, http.StatusOK)
}

func checkTarget(status string) error {
	switch status {
	case "":
		return fail(codeSubscriptionDeleted, "the subscription has been deleted")
	case "inactive":
		return fail(codeInactive, "the subscription is inactive: resume it first")
	}
	return nil
}

// redeliver makes a new delivery in place of one that has ended: an id ends once.
func (s *server) redeliver(ctx context.Context, q *db.Queries, who caller, end db.Attempt) (*deliveryResponse, error) {
	target, err := q.GetRetryTarget(ctx, db.GetRetryTargetParams{SubscriptionID: end.SubscriptionID, EventInsertedAt: end.EventInsertedAt, EventID: end.EventID})
	if err != nil {
		return nil, fmt.Errorf("read subscription and event: %w", err)
	}
	if err := checkTarget(target.SubscriptionStatus); err != nil {
		return nil, err
	}
	if !target.EventExists {
		return nil, fail(codeEventDropped, "the event is past its retention")
	}
	unfinished, err := q.IsPairUnfinished(ctx, db.IsPairUnfinishedParams{EventInsertedAt: end.EventInsertedAt, EventID: end.EventID, SubscriptionID: end.SubscriptionID})
	switch {
	case err != nil:
		return nil, fmt.Errorf("look for unfinished delivery: %w", err)
	case unfinished:
		return nil, fail(codeUnfinished, "another delivery of this event to this subscription is unfinished")
	}
	id, err := q.InsertRetry(ctx, db.InsertRetryParams{
		SubscriptionID: end.SubscriptionID, AccountID: end.AccountID, EventInsertedAt: end.EventInsertedAt, EventID: end.EventID, EventType: end.EventType,
	})
	if err != nil {
		return nil, fmt.Errorf("store delivery: %w", err)
	}
	if err := q.DeleteDeadLetter(ctx, end.DeliveryID); err != nil {
		return nil, fmt.Errorf("delete dead letter: %w", err)
	}
	return s.answerDelivery(ctx, q, who, id, http.StatusCreated)
}
