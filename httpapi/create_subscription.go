package httpapi

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/format"
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
	if found := checkText("account_id", *account, maxAccountIDBytes); len(found) > 0 {
		return nil, invalid(found...)
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
	secret, wrong := secretOf(in.Body.Secret)
	back, faults, err := s.backfillOf(ctx, in.Body, row)
	if err != nil {
		return nil, err
	}
	wrong = append(wrong, faults...)
	row.HasBackfill = back != nil
	var answer Subscription
	err = s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, row.AccountID); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		settings, err := q.GetAccount(ctx, row.AccountID)
		if err != nil {
			return fmt.Errorf("read account: %w", err)
		}
		sealed, found, err := s.applyWords(ctx, q, in.Body.SubscriptionInput, &row, settings.AllowInsecureHTTP)
		if err != nil {
			return err
		}
		if found = append(found, wrong...); len(found) > 0 {
			return invalid(found...)
		}
		if err := s.usageOf(settings).checkRoom(); err != nil {
			return err
		}
		if answer, err = s.insertSubscription(ctx, q, who, row, secret, sealed); err != nil || back == nil {
			return err
		}
		return back.store(ctx, q, who, time.Time(answer.CreatedAt))
	})
	if err != nil {
		return nil, err
	}
	out := &secretResponse{SubscriptionWithSecret{Subscription: answer, Secret: secret}}
	if back != nil {
		out.Body.Backfill = &back.replay
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

// backfillOf counts what a subscription would have got over a time before now; nil where none is asked for, or where the input
// is refused anyway. It counts before the transaction that stores: that holds the account.
func (s *server) backfillOf(ctx context.Context, in CreateSubscriptionBody, row db.Subscription) (*backfill, []FieldError, error) {
	if !in.Backfill.isValue() {
		return nil, nil, nil
	}
	over, found := checkDuration("backfill", in.Backfill.value, minBackfill, maxBackfill)
	if len(found) > 0 {
		return nil, found, nil
	}
	if _, found, err := s.applyWords(ctx, s.queries, in.SubscriptionInput, &row, true); err != nil || len(found) > 0 {
		return nil, nil, err
	}
	seen, err := s.lookBack(ctx, row.AccountID, row, over)
	if err != nil {
		return nil, nil, err
	}
	until, err := s.queries.GetReplayEnd(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("read the time: %w", err)
	}
	b := &backfill{params: db.CreateReplayParams{
		SubscriptionID: row.ID, AccountID: row.AccountID, Since: until.Add(-over), Source: "all", RatePerSecond: defaultReplayRate,
		State: "running", Matched: int64(seen.out.Matched), MatchedAtLeast: !seen.out.Complete,
	}}
	b.replay.Note, err = s.retentionNote(ctx, b.params)
	return b, nil, err
}

// store creates the replay: of what was dispatched before the subscription was there.
func (b *backfill) store(ctx context.Context, q *db.Queries, who caller, created time.Time) (err error) {
	note := b.replay.Note
	b.params.Until = created
	b.replay, err = storeReplay(ctx, q, who, b.params)
	b.replay.Note = note
	return err
}

// checkRoom refuses one subscription more than the plan of the account has.
func (u Usage) checkRoom() error {
	switch {
	case u.Subscriptions < u.Limit:
		return nil
	case u.Limit == 0:
		return fail(codeLimitReached, "the plan has no webhooks: ask for one that has")
	}
	return fail(codeLimitReached, fmt.Sprintf("%d of %d subscriptions are in use: delete one, or ask for a larger plan", u.Subscriptions, u.Limit))
}

// insertSubscription stores a subscription, its secret and its credentials, in the transaction of q.
func (s *server) insertSubscription(ctx context.Context, q *db.Queries, who caller, row db.Subscription, secret string, sealed credentials) (answer Subscription, err error) {
	// Whatever its format is: that may change, and then the secret cannot be read any more.
	public, err := format.PublicKey(secret)
	if err != nil {
		return answer, fmt.Errorf("derive public key: %w", err)
	}
	row.PublicKey = &public
	if row, err = q.CreateSubscription(ctx, createParams(row)); err != nil {
		return answer, fmt.Errorf("store subscription: %w", err)
	}
	if err := s.storeSecret(ctx, q, row.ID, secret); err != nil {
		return answer, err
	}
	if err := s.storeCredentials(ctx, q, row.ID, sealed); err != nil {
		return answer, err
	}
	if answer, err = withSecrets(ctx, q, row); err != nil {
		return answer, err
	}
	return answer, who.audit(ctx, q, "subscription.create", row.AccountID, answer.ID, nil, subscriptionOf(row))
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
		HasBackfill:          row.HasBackfill,
		PublicKey:            row.PublicKey,
	}
}
