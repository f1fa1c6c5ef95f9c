package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

// A Subscription is "send me these events, filtered so, there, in this format".
type Subscription struct {
	ID                 string        `json:"id" example:"sub_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"`
	AccountID          string        `json:"account_id"`
	Name               string        `json:"name"`
	Status             string        `json:"status" enum:"active,paused,inactive,suspended"`
	StatusReason       *string       `json:"status_reason" doc:"user, operator, gone, failing, schedule_ended or account."`
	Channel            Channel       `json:"channel"`
	EventTypes         []string      `json:"event_types" nullable:"false"`
	Filters            Filters       `json:"filters"`
	Format             string        `json:"format"`
	PublicKey          *string       `json:"public_key,omitempty" doc:"By which receivers of format sendgrid verify: ECDSA on P-256, base64 of the DER, of the newest secret. Other formats have none."`
	RetrySchedule      RetrySchedule `json:"retry_schedule"`
	Success            string        `json:"success" enum:"2xx,200"`
	Timeout            string        `json:"timeout" example:"15s"`
	MaxInFlight        int32         `json:"max_in_flight"`
	RateLimitPerSecond *float64      `json:"rate_limit_per_second"`
	Ordering           string        `json:"ordering" enum:"none,message,recipient"`
	Batch              *Batch        `json:"batch" doc:"Several events in one request; null: one event a request."`
	CreatedAt          Timestamp     `json:"created_at"`
	UpdatedAt          Timestamp     `json:"updated_at"`
	Secrets            []LiveSecret  `json:"secrets,omitempty" doc:"The secrets that sign at present, the newest first. Not in lists."`
}

// Usage is how many subscriptions an account has and may have.
type Usage struct {
	Subscriptions int64 `json:"subscriptions"`
	Limit         int64 `json:"limit"`
}

type subscriptionParams struct {
	ID string `path:"id" doc:"sub_…"`
}

type patchSubscriptionRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body SubscriptionInput
}

type listSubscriptionsRequest struct {
	ListParams
	AccountParam
}

type subscriptionResponse struct{ Body Subscription }

type subscriptionsResponse struct {
	Body struct {
		Data       []Subscription `json:"data" nullable:"false"`
		NextCursor *string        `json:"next_cursor"`
		Usage      *Usage         `json:"usage,omitempty" doc:"In lists of one account."`
	} `nameHint:"SubscriptionList"`
}

func (s *server) addSubscriptions(api huma.API) {
	tags := []string{"subscriptions"}
	register(s, api, huma.Operation{
		OperationID: "create-subscription", Method: http.MethodPost, Path: "/v1/subscriptions", Tags: tags,
		Summary: "Create a subscription", DefaultStatus: http.StatusCreated, Errors: []int{http.StatusConflict},
	}, s.createSubscription)
	register(s, api, huma.Operation{
		OperationID: "list-subscriptions", Method: http.MethodGet, Path: "/v1/subscriptions", Tags: tags, Summary: "List subscriptions, newest first",
	}, s.listSubscriptions)
	register(s, api, huma.Operation{
		OperationID: "get-subscription", Method: http.MethodGet, Path: "/v1/subscriptions/{id}", Tags: tags, Summary: "Read a subscription",
	}, s.getSubscription)
	register(s, api, huma.Operation{
		OperationID: patchSubscription, Method: http.MethodPatch, Path: "/v1/subscriptions/{id}", Tags: tags,
		Summary: "Change a subscription", Description: "A merge patch (RFC 7396): arrays are replaced, null restores the default. Read-only, to be left out: " + strings.Join(readOnlyFields(), ", ") + ".",
		RequestBody: mergePatchBody(),
	}, s.patchSubscription)
	register(s, api, huma.Operation{
		OperationID: "delete-subscription", Method: http.MethodDelete, Path: "/v1/subscriptions/{id}", Tags: tags, Summary: "Delete a subscription",
		Description: "Its secrets are wiped at once; what waits is cancelled in the background.",
	}, s.deleteSubscription)
	register(s, api, huma.Operation{
		OperationID: "rotate-secret", Method: http.MethodPost, Path: "/v1/subscriptions/{id}/rotate-secret", Tags: tags, Summary: "Change the signing secret",
		Description: "Requests carry a signature of each live secret: the newest, and at most 2 before it during their grace.",
	}, s.rotateSecret)
	for _, change := range []struct{ verb, status, summary string }{
		{"pause", "paused", "Hold deliveries"},
		{"resume", "active", "Deliver again, what was held first"},
		{"deactivate", "inactive", "Match nothing, and cancel what waits"},
	} {
		register(s, api, huma.Operation{
			OperationID: change.verb + "-subscription", Method: http.MethodPost, Path: "/v1/subscriptions/{id}/" + change.verb, Tags: tags, Summary: change.summary,
		}, s.setStatus(change.verb, change.status))
	}
}

// mergePatchBody makes huma document application/merge-patch+json too; both take the same.
func mergePatchBody() *huma.RequestBody {
	both := &huma.MediaType{}
	return &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": both, "application/merge-patch+json": both}}
}

// usage counts the subscriptions of an account against its limit.
func (s *server) usage(ctx context.Context, q *db.Queries, account string) (Usage, error) {
	found, err := q.GetAccount(ctx, account)
	if err != nil {
		return Usage{}, fmt.Errorf("read account: %w", err)
	}
	return s.usageOf(found), nil
}

func (s *server) usageOf(account db.GetAccountRow) Usage {
	limit := int64(s.config.DefaultSubscriptionLimit)
	if account.SubscriptionLimit != nil {
		limit = int64(*account.SubscriptionLimit)
	}
	return Usage{account.SubscriptionCount, limit}
}

func (s *server) listSubscriptions(ctx context.Context, who caller, in *listSubscriptionsRequest) (*subscriptionsResponse, error) {
	account, err := who.scope(in.AccountID)
	if err != nil {
		return nil, err
	}
	after, err := s.after(in.ListParams, "subscriptions", account)
	if err != nil {
		return nil, err
	}
	before := uuid.Max
	if after != nil {
		if before, err = db.ParseID(db.SubscriptionPrefix, after.id); err != nil {
			return nil, invalid(FieldError{"cursor", "invalid_cursor", "is not a cursor of this list"})
		}
	}
	rows, err := s.queries.ListSubscriptions(ctx, db.ListSubscriptionsParams{AccountID: account, BeforeID: before, MaxRows: int32(in.Limit + 1)}) //nolint:gosec // at most 200
	if err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", err)
	}
	out := &subscriptionsResponse{}
	out.Body.Data = []Subscription{}
	var last *position
	if len(rows) > in.Limit {
		rows = rows[:in.Limit]
		last = &position{id: db.FormatID(db.SubscriptionPrefix, rows[in.Limit-1].ID)}
	}
	for _, row := range rows {
		out.Body.Data = append(out.Body.Data, subscriptionOf(row))
	}
	out.Body.NextCursor = s.next(last, "subscriptions", account)
	if account != nil {
		usage, err := s.usage(ctx, s.queries, *account)
		if err != nil {
			return nil, err
		}
		out.Body.Usage = &usage
	}
	return out, nil
}

func (s *server) getSubscription(ctx context.Context, who caller, in *subscriptionParams) (*subscriptionResponse, error) {
	row, err := s.findSubscription(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	body, err := withSecrets(ctx, s.queries, row)
	return &subscriptionResponse{body}, err
}

// findSubscription reads a subscription by its public id; ids of no right form are 404 as well.
func (s *server) findSubscription(ctx context.Context, who caller, public string) (db.Subscription, error) {
	id, err := db.ParseID(db.SubscriptionPrefix, public)
	if err != nil {
		return db.Subscription{}, notFound()
	}
	row, err := s.queries.GetSubscription(ctx, db.GetSubscriptionParams{ID: id, AccountID: who.account})
	if err != nil {
		return row, fmt.Errorf("read subscription: %w", err)
	}
	return row, nil
}

// changeSubscription runs change in a transaction that holds the row of the subscription, and writes it into the audit
// log as what action is then.
func (s *server) changeSubscription(ctx context.Context, who caller, public string, action *string, change func(*db.Queries, db.Subscription) (db.Subscription, error)) (Subscription, error) {
	id, err := db.ParseID(db.SubscriptionPrefix, public)
	if err != nil {
		return Subscription{}, notFound()
	}
	var answer Subscription
	err = s.inTx(ctx, func(q *db.Queries) error {
		row, err := q.LockSubscription(ctx, db.LockSubscriptionParams{ID: id, AccountID: who.account})
		if err != nil {
			return fmt.Errorf("lock subscription: %w", err)
		}
		changed, err := change(q, row)
		if err != nil {
			return err
		}
		if answer, err = withSecrets(ctx, q, changed); err != nil {
			return err
		}
		return who.audit(ctx, q, *action, row.AccountID, public, subscriptionOf(row), subscriptionOf(changed))
	})
	return answer, err
}

func (s *server) patchSubscription(ctx context.Context, who caller, in *patchSubscriptionRequest) (*subscriptionResponse, error) {
	action := "subscription.update"
	body, err := s.changeSubscription(ctx, who, in.ID, &action, func(q *db.Queries, row db.Subscription) (db.Subscription, error) {
		account, err := q.GetAccount(ctx, row.AccountID)
		if err != nil {
			return row, fmt.Errorf("read account: %w", err)
		}
		sealed, found, err := s.applyWords(ctx, q, in.Body, &row, account.AllowInsecureHTTP)
		if err != nil {
			return row, err
		}
		if len(found) > 0 {
			return row, invalid(found...)
		}
		if len(sealed) > 0 {
			action = "subscription.update_credentials" // their values are not shown, so this says that they were set
		}
		if err := s.storeCredentials(ctx, q, row.ID, sealed); err != nil {
			return row, err
		}
		changed, err := q.UpdateSubscription(ctx, updateParams(row))
		if err != nil {
			return row, fmt.Errorf("store subscription: %w", err)
		}
		return changed, nil
	})
	if err != nil {
		return nil, err
	}
	return &subscriptionResponse{body}, nil
}

func (s *server) deleteSubscription(ctx context.Context, who caller, in *subscriptionParams) (*struct{}, error) {
	id, err := db.ParseID(db.SubscriptionPrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	return nil, s.inTx(ctx, func(q *db.Queries) error {
		// Not found, if it is deleted already.
		row, err := q.LockSubscription(ctx, db.LockSubscriptionParams{ID: id, AccountID: who.account})
		if err != nil {
			return fmt.Errorf("lock subscription: %w", err)
		}
		if _, err := q.DeleteSubscription(ctx, db.DeleteSubscriptionParams{ID: id, AccountID: who.account}); err != nil {
			return fmt.Errorf("delete subscription: %w", err)
		}
		return who.audit(ctx, q, "subscription.delete", row.AccountID, in.ID, subscriptionOf(row), nil)
	})
}

// setStatus is the handler of pause, resume and deactivate. A subscription that has the status already keeps its
// reason; resume resets its health all the same.
func (s *server) setStatus(verb, status string) func(context.Context, caller, *subscriptionParams) (*subscriptionResponse, error) {
	return func(ctx context.Context, who caller, in *subscriptionParams) (*subscriptionResponse, error) {
		action := "subscription." + verb
		body, err := s.changeSubscription(ctx, who, in.ID, &action, func(q *db.Queries, row db.Subscription) (db.Subscription, error) {
			var reason *string
			if status == "active" {
				if err := q.ResetHealth(ctx, row.ID); err != nil {
					return row, fmt.Errorf("reset health: %w", err)
				}
				if err := q.ReleaseHeld(ctx, row.ID); err != nil {
					return row, fmt.Errorf("release held deliveries: %w", err)
				}
			} else {
				by := who.reason()
				reason = &by
			}
			if row.Status == status {
				return row, nil
			}
			return q.SetSubscriptionStatus(ctx, db.SetSubscriptionStatusParams{ID: row.ID, Status: status, StatusReason: reason})
		})
		if err != nil {
			return nil, err
		}
		return &subscriptionResponse{body}, nil
	}
}

// inTx runs f in one transaction.
func (s *server) inTx(ctx context.Context, f func(*db.Queries) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return f(s.queries.WithTx(tx)) })
}

func subscriptionOf(row db.Subscription) Subscription {
	return Subscription{
		ID:           db.FormatID(db.SubscriptionPrefix, row.ID),
		AccountID:    row.AccountID,
		Name:         row.Name,
		Status:       row.Status,
		StatusReason: row.StatusReason,
		Channel:      channelOf(row),
		EventTypes:   row.EventTypes,
		Filters:      filtersOf(row),
		Format:       row.Format,
		PublicKey:    publicKeyOf(row),
		RetrySchedule: RetrySchedule{
			Preset: valueOf(row.RetryPreset), Delays: formatDelays(row.RetrySchedule),
		},
		Success:            row.SuccessRule,
		Timeout:            formatSeconds(row.Timeout),
		MaxInFlight:        row.MaxInFlight,
		RateLimitPerSecond: row.RateLimitPerSecond,
		Ordering:           row.Ordering,
		Batch:              batchOf(row),
		CreatedAt:          Timestamp(row.CreatedAt),
		UpdatedAt:          Timestamp(row.UpdatedAt),
	}
}

// publicKeyOf is nil for a format whose receivers verify by the secret.
func publicKeyOf(row db.Subscription) *string {
	if f, ok := format.Find(row.Format); ok && f.HasPublicKey {
		return row.PublicKey
	}
	return nil
}

func formatDelays(schedule []time.Duration) []string {
	delays := make([]string, len(schedule))
	for i, delay := range schedule {
		delays[i] = db.FormatDuration(delay)
	}
	return delays
}

// formatSeconds writes a timeout: 60s, not 1m.
func formatSeconds(d time.Duration) string {
	if d%time.Second == 0 {
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	return db.FormatDuration(d)
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func updateParams(row db.Subscription) db.UpdateSubscriptionParams {
	return db.UpdateSubscriptionParams{
		ID:                   row.ID,
		Name:                 row.Name,
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

// orEmpty keeps NULL out of columns that have none.
func orEmpty(values []string) []string {
	if values == nil {
		return []string{}
	}
	return values
}
