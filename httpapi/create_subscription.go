package httpapi

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"mailhook/db"
)

// CreateSubscriptionBody is a new subscription.
type CreateSubscriptionBody struct {
	SubscriptionInput
	AccountID string           `json:"account_id,omitempty" doc:"Required with an admin key."`
	Status    optional[string] `json:"status,omitempty" enum:"active,paused" doc:"Default: active."`
	Backfill  optional[string] `json:"backfill,omitempty" example:"7d" doc:"A replay of all that it would have got over this time before its creation: 1h and more, as far as events are kept."`
	Secret    optional[string] `json:"secret,omitempty" writeOnly:"true" doc:"16 to 128 printable characters; what follows whsec_ must be base64. Default: a new one."`
}

// TransformSchema documents what has no default.
func (CreateSubscriptionBody) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Required = append(s.Required, "channel", "event_types")
	return s
}

type createSubscriptionRequest struct {
	Body CreateSubscriptionBody
}

func (s *server) createSubscription(ctx context.Context, who caller, in *createSubscriptionRequest) (*secretResponse, error) {
	account, err := who.scope(in.Body.AccountID)
	if err != nil {
		return nil, err
	}
	if account == nil {
		return nil, invalid(FieldError{"account_id", "required", "is required with an admin key"})
	}
	row := defaultSubscription()
	row.ID, err = uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make subscription id: %w", err)
	}
	row.AccountID = *account
	if row.Status = in.Body.Status.pick("active", "active"); row.Status != "active" {
		reason := who.reason()
		row.StatusReason = &reason
	}
	settings, err := s.queries.GetAccount(ctx, *account)
	if err != nil {
		return nil, fmt.Errorf("read account: %w", err)
	}
	sealed, found := s.apply(in.Body.SubscriptionInput, &row, settings.AllowInsecureHTTP)
	found = append(checkText("account_id", *account, maxAccountIDBytes), found...)
	secret, wrong := secretOf(in.Body.Secret)
	found = append(found, wrong...)
	var over time.Duration
	if in.Body.Backfill.isValue() {
		over, wrong = checkDuration("backfill", in.Body.Backfill.value, minBackfill, maxBackfill)
		found = append(found, wrong...)
	}
	if len(found) > 0 {
		return nil, invalid(found...)
	}
	backfill, err := s.backfillOf(ctx, row, over)
	if err != nil {
		return nil, err
	}
	out := &secretResponse{}
	if row, err = s.insertSubscription(ctx, who, row, secret, sealed, backfill); err != nil {
		return nil, err
	}
	out.Body = SubscriptionWithSecret{Subscription: subscriptionOf(row), Secret: secret}
	if backfill != nil {
		out.Body.Backfill = &backfill.replay
	}
	return out, nil
}

// Bounds of a backfill. How far back there are events is for the workers' --retain-events.
const (
	minBackfill = time.Hour
	maxBackfill = 366 * 24 * time.Hour
)

// A backfill is the replay that a new subscription asks for.
type backfill struct {
	params db.CreateReplayParams
	replay Replay // once it is stored
}

// backfillOf counts what a subscription would have got over a time before now; nil for none.
func (s *server) backfillOf(ctx context.Context, row db.Subscription, over time.Duration) (*backfill, error) {
	if over == 0 {
		return nil, nil
	}
	seen, err := s.lookBack(ctx, row.AccountID, row, over)
	if err != nil {
		return nil, err
	}
	until, err := s.queries.GetReplayEnd(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read the time: %w", err)
	}
	b := &backfill{params: db.CreateReplayParams{
		SubscriptionID: row.ID, AccountID: row.AccountID, Since: until.Add(-over), Source: "all", RatePerSecond: defaultReplayRate,
		State: "running", Matched: int64(seen.out.Matched), MatchedAtLeast: !seen.out.Complete,
	}}
	b.replay.Note, err = s.retentionNote(ctx, b.params)
	return b, err
}

// store creates the replay: of what was dispatched before the subscription was there.
func (b *backfill) store(ctx context.Context, q *db.Queries, who caller, row db.Subscription) (err error) {
	note := b.replay.Note
	b.params.Until = row.CreatedAt
	b.replay, err = storeReplay(ctx, q, who, b.params)
	b.replay.Note = note
	return err
}

// insertSubscription stores a subscription, its secret and its credentials, unless the account has as many as it may.
func (s *server) insertSubscription(ctx context.Context, who caller, row db.Subscription, secret string, sealed credentials, back *backfill) (db.Subscription, error) {
	err := s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, row.AccountID); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		usage, err := s.usage(ctx, q, row.AccountID)
		if err != nil {
			return err
		}
		if usage.Subscriptions >= usage.Limit {
			return fail(codeLimitReached, fmt.Sprintf("the account has %d of %d subscriptions", usage.Subscriptions, usage.Limit))
		}
		stored, err := q.CreateSubscription(ctx, createParams(row))
		if err != nil {
			return fmt.Errorf("store subscription: %w", err)
		}
		row = stored
		if err := s.storeSecret(ctx, q, row.ID, secret); err != nil {
			return err
		}
		if err := s.storeCredentials(ctx, q, row.ID, sealed); err != nil {
			return err
		}
		created := subscriptionOf(row)
		if err := who.audit(ctx, q, "subscription.create", row.AccountID, created.ID, nil, created); err != nil || back == nil {
			return err
		}
		return back.store(ctx, q, who, row)
	})
	return row, err
}

func createParams(row db.Subscription) db.CreateSubscriptionParams {
	return db.CreateSubscriptionParams{
		ID:                   row.ID,
		AccountID:            row.AccountID,
		Name:                 row.Name,
		Status:               row.Status,
		StatusReason:         row.StatusReason,
		ChannelType:          row.ChannelType,
		URL:                  row.URL,
		HeaderNames:          orEmpty(row.HeaderNames),
		AuthType:             row.AuthType,
		EventTypes:           row.EventTypes,
		FilterSendingDomain:  orEmpty(row.FilterSendingDomain),
		FilterSendingNode:    orEmpty(row.FilterSendingNode),
		FilterBridge:         orEmpty(row.FilterBridge),
		FilterDedicatedIp:    orEmpty(row.FilterDedicatedIp),
		Format:               row.Format,
		RetryPreset:          row.RetryPreset,
		RetrySchedule:        row.RetrySchedule,
		RetryJitter:          row.RetryJitter,
		SuspendWhenExhausted: row.SuspendWhenExhausted,
		Timeout:              row.Timeout,
		MaxInFlight:          row.MaxInFlight,
		RateLimitPerSecond:   row.RateLimitPerSecond,
		SuccessRule:          row.SuccessRule,
		BatchMaxEvents:       row.BatchMaxEvents,
		BatchMaxWait:         row.BatchMaxWait,
		Ordering:             row.Ordering,
		ChannelSettings:      row.ChannelSettings,
		FilterConditions:     row.FilterConditions,
		PublicKey:            row.PublicKey,
	}
}
