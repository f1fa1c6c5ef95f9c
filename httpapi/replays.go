package httpapi

import (
	"context"
	"fmt"
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
	Done           int64     `json:"done" doc:"How many of them have been handed on."`
	Status         string    `json:"status" enum:"exhausted,all"`
	Since          Timestamp `json:"since"`
	Until          Timestamp `json:"until"`
	EventTypes     []string  `json:"event_types" doc:"null is whatever the subscription names."`
	RatePerSecond  float64   `json:"rate_per_second"`
	CreatedAt      Timestamp `json:"created_at"`
}

// A DryRun is what a replay would take.
type DryRun struct {
	Matched int64 `json:"matched"`
}

type createReplayRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body struct {
		Since         time.Time          `json:"since" doc:"Times are those of the dispatch. From here on;"`
		Until         optional[dateTime] `json:"until,omitempty" doc:"before this. Default: now."`
		EventTypes    optional[[]string] `json:"event_types,omitempty" maxItems:"50" doc:"Nodes of the type hierarchy. Default: whatever the subscription names."`
		Status        optional[string]   `json:"status,omitempty" enum:"exhausted,all" doc:"exhausted: its exhausted deliveries. all: every event that it matches today. Default: exhausted."`
		DryRun        optional[bool]     `json:"dry_run,omitempty" doc:"Only count."`
		RatePerSecond optional[float64]  `json:"rate_per_second,omitempty" exclusiveMinimum:"0" maximum:"1000" doc:"Default: 50."`
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
	params, err := s.replayParams(ctx, in, row)
	if err != nil {
		return nil, err
	}
	if params.Matched, err = s.countReplay(ctx, params); err != nil {
		return nil, err
	}
	if in.Body.DryRun.value {
		return &createReplayResponse{http.StatusOK, DryRun{params.Matched}}, nil
	}
	if row.Status == "inactive" {
		return nil, fail(codeInactive, "the subscription is inactive: resume it first")
	}
	var replay Replay
	err = s.inTx(ctx, func(q *db.Queries) error {
		stored, err := q.CreateReplay(ctx, params)
		if err != nil {
			return fmt.Errorf("store replay: %w", err)
		}
		replay = replayOf(db.GetReplayRow(stored))
		return who.audit(ctx, q, "replay.create", row.AccountID, replay.ID, nil, replay)
	})
	if err != nil {
		return nil, err
	}
	return &createReplayResponse{http.StatusAccepted, replay}, nil
}

// replayParams checks the input and fills in the defaults.
func (s *server) replayParams(ctx context.Context, in *createReplayRequest, row db.Subscription) (db.CreateReplayParams, error) {
	params := db.CreateReplayParams{
		SubscriptionID: row.ID, AccountID: row.AccountID, Since: in.Body.Since,
		Source:        in.Body.Status.pick("exhausted", "exhausted"),
		RatePerSecond: in.Body.RatePerSecond.pick(defaultReplayRate, defaultReplayRate),
	}
	var found []FieldError
	var err error
	if in.Body.EventTypes.isValue() {
		types, wrong, err := s.eventTypesOf(ctx, s.queries, "event_types", in.Body.EventTypes.value, row.Format, nil)
		if err != nil {
			return params, err
		}
		params.EventTypes, found = checkEventTypes("event_types", types)
		found = append(found, wrong...)
	}
	var until *time.Time
	if in.Body.Until.isValue() {
		until = &in.Body.Until.value.Time
	}
	if params.Until, err = s.queries.GetReplayEnd(ctx, until); err != nil {
		return params, fmt.Errorf("read the time: %w", err)
	}
	if until != nil && !until.After(params.Since) {
		found = append(found, FieldError{"until", "out_of_range", "must be after since"})
	}
	return params, invalid(found...)
}

func (s *server) countReplay(ctx context.Context, p db.CreateReplayParams) (matched int64, err error) {
	if p.Source == "all" {
		matched, err = s.queries.CountEventsToReplay(ctx, db.CountEventsToReplayParams{SubscriptionID: p.SubscriptionID, Since: p.Since, Until: p.Until, EventTypes: p.EventTypes})
	} else {
		matched, err = s.queries.CountExhaustedToReplay(ctx, db.CountExhaustedToReplayParams{SubscriptionID: p.SubscriptionID, Since: p.Since, Until: p.Until, EventTypes: p.EventTypes})
	}
	if err != nil {
		return 0, fmt.Errorf("count what to replay: %w", err)
	}
	return matched, nil
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
	return Replay{
		ID:             db.FormatID(db.ReplayPrefix, row.ID),
		SubscriptionID: db.FormatID(db.SubscriptionPrefix, row.SubscriptionID),
		State:          row.State,
		Matched:        row.Matched,
		Done:           row.Done,
		Status:         row.Source,
		Since:          Timestamp(row.Since),
		Until:          Timestamp(row.Until),
		EventTypes:     row.EventTypes,
		RatePerSecond:  row.RatePerSecond,
		CreatedAt:      Timestamp(row.CreatedAt),
	}
}
