package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

// replayEvent delivers one event once more to one subscription. It is a replay that is done at once.
func (s *server) replayEvent(ctx context.Context, who caller, in *createReplayRequest, to db.Subscription) (*createReplayResponse, error) {
	if in.Body.Since.set || in.Body.Until.set || in.Body.EventTypes.set || in.Body.Status.set || in.Body.RatePerSecond.set {
		return nil, invalid(FieldError{"event_id", "not_allowed", "is for one event: leave out since, until, event_types, status and rate_per_second"})
	}
	event, err := s.eventToReplay(ctx, in.Body.EventID.value, to)
	if err != nil {
		return nil, err
	}
	if in.Body.DryRun.value {
		unfinished, err := s.queries.IsPairUnfinished(ctx, db.IsPairUnfinishedParams{EventInsertedAt: event.InsertedAt, EventID: event.ID, SubscriptionID: to.ID})
		if err != nil {
			return nil, fmt.Errorf("look for unfinished delivery: %w", err)
		}
		return &createReplayResponse{http.StatusOK, DryRun{Matched: map[bool]int64{false: 1}[unfinished]}}, nil
	}
	if to.Status == "inactive" {
		return nil, errInactive()
	}
	var replay Replay
	var key int64
	err = s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockRepeats(ctx, to.ID); err != nil {
			return fmt.Errorf("lock repeats: %w", err)
		}
		kept, err := q.KeepEvent(ctx, db.KeepEventParams{InsertedAt: event.InsertedAt, ID: event.ID})
		if err != nil {
			return fmt.Errorf("keep event: %w", err)
		}
		if !kept {
			return fail(codeEventDropped, "the event is past its retention, or was erased")
		}
		replay, err = storeReplay(ctx, q, who, db.CreateReplayParams{
			SubscriptionID: to.ID, AccountID: to.AccountID, Since: event.DispatchedAt, Until: event.DispatchedAt.Add(time.Microsecond),
			Source: "all", RatePerSecond: defaultReplayRate, State: "done", Matched: 1, Done: 1,
		})
		if err != nil {
			return err
		}
		key, err = s.deliverReplayed(ctx, q, event, to, replay)
		return err
	})
	if err != nil {
		return nil, err
	}
	if key != 0 {
		_, err := s.makeHead(ctx, db.UnblockParams{SubscriptionIDs: []uuid.UUID{to.ID}, OrderKeys: []int64{key}})
		if err != nil { // the delivery is there, and a worker's sweep finds it
			s.config.Logger.WarnContext(ctx, "a replayed event waits for its order", "replay_id", replay.ID, "error", db.Message(err))
		}
	}
	return &createReplayResponse{http.StatusAccepted, replay}, nil
}

// deliverReplayed makes the delivery, and answers its order key; 0: it goes in no order.
func (s *server) deliverReplayed(ctx context.Context, q *db.Queries, event db.Event, to db.Subscription, replay Replay) (key int64, err error) {
	id, err := db.ParseID(db.ReplayPrefix, replay.ID)
	if err != nil {
		return 0, fmt.Errorf("parse own id: %w", err)
	}
	key, err = q.ReplayEvent(ctx, db.ReplayEventParams{
		SubscriptionID: to.ID, AccountID: to.AccountID, EventInsertedAt: event.InsertedAt, EventID: event.ID, EventType: event.EventType, ReplayID: id,
		MessageID: event.MessageID, Recipient: event.Recipient,
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fail(codeUnfinished, "a delivery of this event to this subscription is unfinished")
	case err != nil:
		return 0, fmt.Errorf("store delivery: %w", err)
	}
	return key, q.NotifyWorkers(ctx, "")
}

// eventToReplay finds an event that the subscription matches as it is today.
func (s *server) eventToReplay(ctx context.Context, public string, to db.Subscription) (db.Event, error) {
	unknown := invalid(FieldError{"event_id", "not_found", "there is no such event that was dispatched; it may be past its retention"})
	id, err := s.parseEventID(public)
	if err != nil {
		return db.Event{}, unknown
	}
	event, err := s.queries.GetEvent(ctx, db.GetEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: &to.AccountID})
	if errors.Is(err, pgx.ErrNoRows) {
		return event, unknown
	}
	if err != nil {
		return event, fmt.Errorf("read event: %w", err)
	}
	if event.ErasedAt != nil {
		return event, fail(codeEventDropped, "the event is past its retention, or was erased")
	}
	conditions, err := s.conditionsOf(ctx, event, to)
	if err != nil {
		return event, err
	}
	for _, c := range conditions {
		if !c.Passed && c.Condition != "created_before" && c.Condition != "status" {
			return event, invalid(FieldError{"event_id", "not_matched", "the subscription does not match this event: " + c.Condition + " (GET /v1/events/{id}/explain says more)"})
		}
	}
	return event, nil
}
