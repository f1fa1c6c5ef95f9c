package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

// A Delivery is one event for one subscription.
type Delivery struct {
	ID             string     `json:"id" example:"dlv_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"`
	SubscriptionID string     `json:"subscription_id"`
	AccountID      string     `json:"account_id"`
	EventID        string     `json:"event_id"`
	EventType      string     `json:"event_type"`
	Status         string     `json:"status" enum:"pending,sending,held,delivered,exhausted,cancelled"`
	HeldReason     string     `json:"held_reason,omitempty" enum:"paused,suspended,circuit,account" doc:"When held."`
	WaitsFor       string     `json:"waits_for,omitempty" enum:"order" doc:"While an earlier delivery of the same message or recipient has not ended, in subscriptions with an ordering."`
	RetryCount     int32      `json:"retry_count" doc:"Attempts after the first."`
	LastOutcome    *string    `json:"last_outcome,omitempty" doc:"Of the last attempt."`
	LastStatusCode *int16     `json:"last_status_code,omitempty" doc:"Of the last attempt. In lists only of deliveries that have ended."`
	NextAttemptAt  *Timestamp `json:"next_attempt_at,omitempty" doc:"When pending or held; a held one starts once it is released. Absent while it waits for its order."`
	CreatedAt      Timestamp  `json:"created_at"`
	EndedAt        *Timestamp `json:"ended_at,omitempty"`
	EndedReason    *string    `json:"ended_reason,omitempty" doc:"Where the outcome does not say it: deactivated, deleted, expired, overflow, permanent (the service behind the channel will never take it) and the like."`
}

// DeliveryWithAttempts is a delivery with its attempts, oldest first.
type DeliveryWithAttempts struct {
	Delivery
	Attempts []Attempt `json:"attempts" nullable:"false"`
}

// An Attempt is one request of a delivery, and what came back.
type Attempt struct {
	ID              string    `json:"id" example:"att_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"`
	Number          int32     `json:"number" doc:"From 1."`
	StartedAt       Timestamp `json:"started_at"`
	DurationMS      *int32    `json:"duration_ms"`
	StatusCode      *int16    `json:"status_code" doc:"null when there was no answer."`
	Outcome         string    `json:"outcome" example:"http_5xx"`
	ResponseExcerpt string    `json:"response_excerpt"`
}

type deliveryParams struct {
	ID string `path:"id" doc:"dlv_…"`
}

type deliveryResponse struct {
	Status int
	Body   DeliveryWithAttempts
}

func (s *server) addDeliveries(api huma.API) {
	tags := []string{"deliveries"}
	register(s, api, huma.Operation{
		OperationID: "list-deliveries", Method: http.MethodGet, Path: "/v1/deliveries", Tags: tags, Summary: "List deliveries, newest first",
		Description: "By the time of their end or, while unfinished, of their dispatch. A page looks at a bounded number of rows, so it may be short, or empty, and still have a next_cursor.",
	}, s.listDeliveries)
	register(s, api, huma.Operation{
		OperationID: "get-delivery", Method: http.MethodGet, Path: "/v1/deliveries/{id}", Tags: tags, Summary: "Read a delivery with its attempts",
	}, s.getDelivery)
	register(s, api, huma.Operation{
		OperationID: "retry-delivery", Method: http.MethodPost, Path: "/v1/deliveries/{id}/retry", Tags: tags, Summary: "Try a delivery now",
		Description: "An unfinished one becomes due now (200). For one that has ended there is a new delivery of the same event (201).",
		Errors:      []int{http.StatusConflict},
	}, s.retryDelivery)
	created := api.OpenAPI().Paths["/v1/deliveries/{id}/retry"].Post
	created.Responses["201"] = &huma.Response{Description: "Created", Content: created.Responses["200"].Content}
}

func (s *server) getDelivery(ctx context.Context, who caller, in *deliveryParams) (*deliveryResponse, error) {
	id, err := db.ParseID(db.DeliveryPrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	return s.answerDelivery(ctx, s.queries, who, id, http.StatusOK)
}

func (s *server) answerDelivery(ctx context.Context, q *db.Queries, who caller, id uuid.UUID, status int) (*deliveryResponse, error) {
	delivery, _, err := s.loadDelivery(ctx, q, who.account, id)
	if err != nil {
		return nil, err
	}
	return &deliveryResponse{status, delivery}, nil
}

// loadDelivery reads a delivery with its attempts, and the row of attempts that ended it; nil while it is unfinished.
// The unfinished row is read first: a delivery that ends in between is then found by its end.
func (s *server) loadDelivery(ctx context.Context, q *db.Queries, account *string, id uuid.UUID) (DeliveryWithAttempts, *db.Attempt, error) {
	var out DeliveryWithAttempts
	unfinished, missing := q.GetUnfinishedDelivery(ctx, db.GetUnfinishedDeliveryParams{ID: id, AccountID: account})
	if missing != nil && !errors.Is(missing, pgx.ErrNoRows) {
		return out, nil, fmt.Errorf("read delivery: %w", missing)
	}
	rows, err := q.ListAttempts(ctx, db.ListAttemptsParams{DeliveryID: id, AccountID: account, MaxRows: 1000})
	if err != nil {
		return out, nil, fmt.Errorf("read attempts: %w", err)
	}
	var end *db.Attempt
	out.Attempts = []Attempt{}
	for i, row := range rows {
		if row.EndedAs != nil {
			end = &rows[i]
		}
		if row.Outcome != nil {
			out.Attempts = append(out.Attempts, attemptOf(row))
		}
	}
	switch {
	case end != nil:
		out.Delivery = s.endedDelivery(*end)
	case missing != nil:
		return out, nil, notFound()
	default:
		out.Delivery = s.unfinishedDelivery(unfinished)
	}
	if n := len(out.Attempts); n > 0 {
		out.LastOutcome, out.LastStatusCode = &out.Attempts[n-1].Outcome, out.Attempts[n-1].StatusCode
	}
	return out, end, nil
}

func (s *server) unfinishedDelivery(row db.UnfinishedDelivery) Delivery {
	delivery := Delivery{
		ID:             db.FormatID(db.DeliveryPrefix, row.ID),
		SubscriptionID: db.FormatID(db.SubscriptionPrefix, row.SubscriptionID),
		AccountID:      row.AccountID,
		EventID:        s.eventID(row.EventInsertedAt, row.EventID),
		EventType:      row.EventType,
		Status:         row.Status,
		HeldReason:     row.HeldReason,
		RetryCount:     max(row.Attempt-1, 0),
		LastOutcome:    row.LastOutcome,
		CreatedAt:      Timestamp(row.CreatedAt),
	}
	if row.IsBlocked {
		delivery.WaitsFor = "order"
	} else if row.Status != "sending" {
		delivery.NextAttemptAt = optionalTimestamp(&row.NextAttemptAt)
	}
	return delivery
}

func (s *server) endedDelivery(row db.Attempt) Delivery {
	endedAt := timeOf(row.ID)
	return Delivery{
		ID:             db.FormatID(db.DeliveryPrefix, row.DeliveryID),
		SubscriptionID: db.FormatID(db.SubscriptionPrefix, row.SubscriptionID),
		AccountID:      row.AccountID,
		EventID:        s.eventID(row.EventInsertedAt, row.EventID),
		EventType:      row.EventType,
		Status:         valueOf(row.EndedAs),
		RetryCount:     max(row.Number-1, 0),
		LastOutcome:    row.Outcome,
		LastStatusCode: row.StatusCode,
		CreatedAt:      Timestamp(row.DeliveryCreatedAt),
		EndedAt:        optionalTimestamp(&endedAt),
		EndedReason:    row.EndedReason,
	}
}

func attemptOf(row db.Attempt) Attempt {
	return Attempt{
		ID:              db.FormatID(db.AttemptPrefix, row.ID),
		Number:          row.Number,
		StartedAt:       Timestamp(row.StartedAt),
		DurationMS:      row.DurationMS,
		StatusCode:      row.StatusCode,
		Outcome:         valueOf(row.Outcome),
		ResponseExcerpt: excerptText(row.ResponseExcerpt),
	}
}

func (s *server) eventID(insertedAt time.Time, id int64) string {
	return db.EventID{InsertedAt: insertedAt, ID: id, Installation: s.installation}.String()
}
