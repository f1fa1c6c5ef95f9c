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
	var ordered *db.UnblockParams
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
			out, ordered, err = s.redeliver(ctx, q, who, *end)
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
	if err != nil || ordered == nil {
		return out, err
	}
	due, err := s.unblock(ctx, who, *ordered, out)
	if err != nil { // the delivery is there, and a worker's sweep finds it
		s.config.Logger.WarnContext(ctx, "a retried delivery waits for its order", "delivery_id", out.Body.ID, "error", db.Message(err))
		return out, nil
	}
	return due, nil
}

// unblock makes a new delivery that goes in order due, unless another of its key is unfinished. After the commit: what ended
// such a one at the same time has not seen the new one.
func (s *server) unblock(ctx context.Context, who caller, key db.UnblockParams, made *deliveryResponse) (*deliveryResponse, error) {
	id, err := db.ParseID(db.DeliveryPrefix, made.Body.ID)
	if err != nil {
		return nil, fmt.Errorf("parse own id: %w", err)
	}
	due, err := s.makeHead(ctx, key)
	if err != nil || !due {
		return made, err
	}
	return s.answerDelivery(ctx, s.queries, who, id, made.Status)
}

// makeHead makes the next delivery of a key due, unless another of it is unfinished, and says whether it did.
func (s *server) makeHead(ctx context.Context, key db.UnblockParams) (bool, error) {
	unblocked, err := s.queries.Unblock(ctx, key)
	if err != nil {
		return false, fmt.Errorf("unblock delivery: %w", err)
	}
	if unblocked.Unblocked == 0 {
		return false, nil
	}
	if err := s.queries.NotifyWorkers(ctx, ""); err != nil {
		return false, fmt.Errorf("notify workers: %w", err)
	}
	return true, nil
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
	if delivery.WaitsFor != "" {
		return nil, fail(codeBlocked, "an earlier delivery of the same message or recipient has not ended: retry that one, or set ordering to none")
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

// redeliver makes a new delivery in place of one that has ended: an id ends once. Where it goes in order it answers the key to unblock.
func (s *server) redeliver(ctx context.Context, q *db.Queries, who caller, end db.Attempt) (*deliveryResponse, *db.UnblockParams, error) {
	if err := q.LockRepeats(ctx, end.SubscriptionID); err != nil {
		return nil, nil, fmt.Errorf("lock repeats: %w", err)
	}
	target, err := q.GetRetryTarget(ctx, db.GetRetryTargetParams{SubscriptionID: end.SubscriptionID, EventInsertedAt: end.EventInsertedAt, EventID: end.EventID})
	if err != nil {
		return nil, nil, fmt.Errorf("read subscription and event: %w", err)
	}
	if err := checkTarget(target.SubscriptionStatus); err != nil {
		return nil, nil, err
	}
	if !target.EventExists {
		return nil, nil, fail(codeEventDropped, "the event is past its retention, or was erased")
	}
	unfinished, err := q.IsPairUnfinished(ctx, db.IsPairUnfinishedParams{EventInsertedAt: end.EventInsertedAt, EventID: end.EventID, SubscriptionID: end.SubscriptionID})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("look for unfinished delivery: %w", err)
	case unfinished:
		return nil, nil, fail(codeUnfinished, "another delivery of this event to this subscription is unfinished")
	}
	made, err := q.InsertRetry(ctx, db.InsertRetryParams{
		SubscriptionID: end.SubscriptionID, AccountID: end.AccountID, EventInsertedAt: end.EventInsertedAt, EventID: end.EventID, EventType: end.EventType,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("store delivery: %w", err)
	}
	if err := q.DeleteDeadLetter(ctx, end.DeliveryID); err != nil {
		return nil, nil, fmt.Errorf("delete dead letter: %w", err)
	}
	out, err := s.answerDelivery(ctx, q, who, made.ID, http.StatusCreated)
	if err != nil || made.OrderKey == 0 {
		return out, nil, err
	}
	return out, &db.UnblockParams{SubscriptionIDs: []uuid.UUID{end.SubscriptionID}, OrderKeys: []int64{made.OrderKey}}, nil
}
