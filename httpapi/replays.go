package httpapi

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// A Replay delivers events of the past once more to one subscription.
type Replay struct {
	ID             string    `json:"id" example:"rpl_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"`
	SubscriptionID string    `json:"subscription_id"`
	State          string    `json:"state" enum:"running,done,cancelled"`
	Matched        int64     `json:"matched" doc:"How many there were to deliver when it was made."`
	MatchedAtLeast bool      `json:"matched_at_least,omitempty" doc:"true: there may be more; counting stops after 100,000 events, or some seconds."`
	Done           int64     `json:"done" doc:"How many of them have been handed on."`
	Status         string    `json:"status" enum:"exhausted,all"`
	Since          Timestamp `json:"since"`
	Until          Timestamp `json:"until"`
	EventTypes     []string  `json:"event_types" doc:"null is whatever the subscription names."`
	RatePerSecond  float64   `json:"rate_per_second"`
	SecondsLeft    *int64    `json:"seconds_left,omitempty" doc:"While it runs: how long the rest of them takes at this rate."`
	CreatedAt      Timestamp `json:"created_at"`
	Note           string    `json:"note,omitempty" doc:"In the answer to its creation: what of it is past its retention."`
}

// A DryRun is what a replay would take.
type DryRun struct {
	Matched        int64  `json:"matched"`
	MatchedAtLeast bool   `json:"matched_at_least,omitempty" doc:"As in a replay."`
	Note           string `json:"note,omitempty" doc:"What of it is past its retention."`
}

type createReplayRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body struct {
		EventID       optional[string]   `json:"event_id,omitempty" doc:"This event alone. Beside it only dry_run."`
		Since         optional[dateTime] `json:"since,omitempty" doc:"Required without event_id. Times are those of the dispatch. From here on;"`
		Until         optional[dateTime] `json:"until,omitempty" doc:"before this. Default: now."`
		EventTypes    optional[[]string] `json:"event_types,omitempty" maxItems:"50" doc:"Nodes of the type hierarchy. Default: whatever the subscription names."`
		Status        optional[string]   `json:"status,omitempty" enum:"exhausted,all" doc:"exhausted: its exhausted deliveries. all: every event that it matches today. Default: exhausted."`
		DryRun        optional[bool]     `json:"dry_run,omitempty" doc:"Only count."`
		RatePerSecond optional[float64]  `json:"rate_per_second,omitempty" minimum:"1" maximum:"1000" doc:"Default: 50."`
	} `nameHint:"CreateReplayBody"`
}

// dateTime is a time.Time with a schema of its own, as optional needs one that it may copy.
type dateTime struct{ time.Time }

// Schema is that of a time.
func (dateTime) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time"}
}

type replayParams struct {
	ID string `path:"id" doc:"rpl_…"`
}

type replayResponse struct{ Body Replay }

// createReplayResponse has a Replay or, after a dry run, a DryRun.
type createReplayResponse struct {
	Status int
	Body   any
}

const defaultReplayRate = 50

func (s *server) addReplays(api huma.API) {
	tags := []string{"replays"}
	schemas := api.OpenAPI().Components.Schemas
	register(s, api, huma.Operation{
		OperationID: "create-replay", Method: http.MethodPost, Path: "/v1/subscriptions/{id}/replay", Tags: tags, Summary: "Deliver events of the past once more",
		Description:   "With today's filters, URL and format, under the same event ids. Pairs of event and subscription that are unfinished are skipped.",
		DefaultStatus: http.StatusAccepted, Errors: []int{http.StatusConflict},
	}, s.createReplay)
	created := api.OpenAPI().Paths["/v1/subscriptions/{id}/replay"].Post
	created.Responses["202"].Content = map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(typeOf[Replay](), true, "")}}
	created.Responses["200"] = &huma.Response{
		Description: "A dry run",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(typeOf[DryRun](), true, "")}},
	}
	register(s, api, huma.Operation{
		OperationID: "list-replays", Method: http.MethodGet, Path: "/v1/replays", Tags: tags, Summary: "List replays, newest first",
	}, s.listReplays)
	register(s, api, huma.Operation{
		OperationID: "get-replay", Method: http.MethodGet, Path: "/v1/replays/{id}", Tags: tags, Summary: "Read a replay",
	}, s.getReplay)
	register(s, api, huma.Operation{
		OperationID: "cancel-replay", Method: http.MethodDelete, Path: "/v1/replays/{id}", Tags: tags, Summary: "Stop a replay",
		Description: "What it has handed on is delivered. A replay that has ended stays as it is.",
	}, s.cancelReplay)
}

func (s *server) createReplay(ctx context.Context, who caller, in *createReplayRequest) (*createReplayResponse, error) {
	row, err := s.findSubscription(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.EventID.isValue() {
		return s.replayEvent(ctx, who, in, row)
	}
	params, err := s.replayParams(ctx, in, row)
	if err != nil {
		return nil, err
	}
	if err = s.countReplay(ctx, &params); err != nil {
		return nil, err
	}
	note, err := s.retentionNote(ctx, params)
	if err != nil {
		return nil, err
	}
	if in.Body.DryRun.value {
		return &createReplayResponse{http.StatusOK, DryRun{params.Matched, params.MatchedAtLeast, note}}, nil
	}
	if row.Status == "inactive" {
		return nil, errInactive()
	}
	var replay Replay
	err = s.inTx(ctx, func(q *db.Queries) (err error) {
		replay, err = storeReplay(ctx, q, who, params)
		return err
	})
	if err != nil {
		return nil, err
	}
	replay.Note = note
	return &createReplayResponse{http.StatusAccepted, replay}, nil
}

func errInactive() error { return fail(codeInactive, "the subscription is inactive: resume it first") }

// storeReplay creates a replay, with its line in the audit log.
func storeReplay(ctx context.Context, q *db.Queries, who caller, params db.CreateReplayParams) (Replay, error) {
	if params.State == "running" {
		if err := admitReplay(ctx, q, params.AccountID); err != nil {
			return Replay{}, err
		}
	}
	stored, err := q.CreateReplay(ctx, params)
	if err != nil {
		return Replay{}, fmt.Errorf("store replay: %w", err)
	}
	replay := replayOf(db.GetReplayRow(stored))
	return replay, who.audit(ctx, q, "replay.create", params.AccountID, replay.ID, nil, replay)
}

// maxRunningReplays bounds what workers do for one account beside new events.
const maxRunningReplays = 100

func admitReplay(ctx context.Context, q *db.Queries, account string) error {
	if err := q.LockAccount(ctx, account); err != nil {
		return fmt.Errorf("lock account: %w", err)
	}
	running, err := q.CountRunningReplays(ctx, account)
	switch {
	case err != nil:
		return fmt.Errorf("count replays: %w", err)
	case running >= maxRunningReplays:
		return fail(codeLimitReached, fmt.Sprintf("%d replays and backfills are running: wait for one to end, or cancel one", running))
	}
	return nil
}

// replayParams checks the input and fills in the defaults.
func (s *server) replayParams(ctx context.Context, in *createReplayRequest, row db.Subscription) (db.CreateReplayParams, error) {
	params := db.CreateReplayParams{
		SubscriptionID: row.ID, AccountID: row.AccountID, Since: in.Body.Since.value.Time, State: "running",
		Source:        in.Body.Status.pick("exhausted", "exhausted"),
		RatePerSecond: in.Body.RatePerSecond.pick(defaultReplayRate, defaultReplayRate),
	}
	var found []FieldError
	var err error
	if !in.Body.Since.isValue() {
		found = append(found, FieldError{"since", "required", "is required, unless event_id names an event"})
	}
	if in.Body.EventTypes.isValue() {
		types, wrong, err := s.eventTypesOf(ctx, s.queries, "event_types", in.Body.EventTypes.value, row.Format, nil)
		if err != nil {
			return params, err
		}
		checked, faults := checkEventTypes("event_types", types)
		params.EventTypes, found = checked, append(append(found, faults...), wrong...)
	}
	var until *time.Time
	if in.Body.Until.isValue() {
		until = &in.Body.Until.value.Time
	}
	if params.Until, err = s.queries.GetReplayEnd(ctx, until); err != nil {
		return params, fmt.Errorf("read the time: %w", err)
	}
	switch {
	case until != nil && !until.After(params.Since):
		found = append(found, FieldError{"until", "out_of_range", "must be after since"})
	case !params.Until.After(params.Since): // now
		found = append(found, FieldError{"since", "out_of_range", "is in the future: there is nothing to replay"})
	}
	return params, invalid(found...)
}

func (s *server) getReplay(ctx context.Context, who caller, in *replayParams) (*replayResponse, error) {
	id, err := db.ParseID(db.ReplayPrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	row, err := s.queries.GetReplay(ctx, db.GetReplayParams{ID: id, AccountID: who.account})
	if err != nil {
		return nil, fmt.Errorf("read replay: %w", err)
	}
	return &replayResponse{replayOf(row)}, nil
}

func (s *server) cancelReplay(ctx context.Context, who caller, in *replayParams) (*replayResponse, error) {
	id, err := db.ParseID(db.ReplayPrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	out := &replayResponse{}
	err = s.inTx(ctx, func(q *db.Queries) error {
		before, err := q.GetReplay(ctx, db.GetReplayParams{ID: id, AccountID: who.account})
		if err != nil {
			return fmt.Errorf("read replay: %w", err)
		}
		row, err := q.CancelReplay(ctx, db.CancelReplayParams{ID: id, AccountID: who.account})
		if err != nil {
			return fmt.Errorf("cancel replay: %w", err)
		}
		out.Body = replayOf(db.GetReplayRow(row))
		if row.State != "cancelled" || before.State == "cancelled" { // it had ended
			return nil
		}
		return who.audit(ctx, q, "replay.cancel", row.AccountID, in.ID, replayOf(before), out.Body)
	})
	return out, err
}

func replayOf(row db.GetReplayRow) Replay {
	replay := Replay{
		ID:             db.FormatID(db.ReplayPrefix, row.ID),
		SubscriptionID: db.FormatID(db.SubscriptionPrefix, row.SubscriptionID),
		State:          row.State,
		Matched:        row.Matched,
		MatchedAtLeast: row.MatchedAtLeast,
		Done:           row.Done,
		Status:         row.Source,
		Since:          Timestamp(row.Since),
		Until:          Timestamp(row.Until),
		EventTypes:     row.EventTypes,
		RatePerSecond:  row.RatePerSecond,
		CreatedAt:      Timestamp(row.CreatedAt),
	}
	if row.State == "running" {
		left := int64(math.Ceil(float64(max(row.Matched-row.Done, 0)) / row.RatePerSecond))
		replay.SecondsLeft = &left
	}
	return replay
}
