package httpapi

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"mailhook/db"
)

type listReplaysRequest struct {
	ListParams
	AccountParam
	SubscriptionID string `query:"subscription_id" maxLength:"100"`
}

type replaysResponse struct {
	Body struct {
		Data       []Replay `json:"data" nullable:"false"`
		NextCursor *string  `json:"next_cursor"`
	} `nameHint:"ReplayList"`
}

func (s *server) listReplays(ctx context.Context, who caller, in *listReplaysRequest) (*replaysResponse, error) {
	account, err := who.scope(in.AccountID)
	if err != nil {
		return nil, err
	}
	params := db.ListReplaysParams{AccountID: account, BeforeID: uuid.Max, MaxRows: int32(in.Limit + 1)} //nolint:gosec // at most 200
	if in.SubscriptionID != "" {
		id, err := db.ParseID(db.SubscriptionPrefix, in.SubscriptionID)
		if err != nil {
			return nil, notFound()
		}
		known, err := s.queries.IsSubscriptionKnown(ctx, db.IsSubscriptionKnownParams{ID: id, AccountID: account})
		if err != nil {
			return nil, fmt.Errorf("look for subscription: %w", err)
		}
		if !known {
			return nil, notFound()
		}
		params.SubscriptionID = &id
	}
	filters := []any{"replays", account, in.SubscriptionID}
	after, err := s.after(in.ListParams, filters...)
	if err != nil {
		return nil, err
	}
	if after != nil {
		if params.BeforeID, err = db.ParseID(db.ReplayPrefix, after.id); err != nil {
			return nil, invalid(FieldError{"cursor", "invalid_cursor", "is not a cursor of this list"})
		}
	}
	rows, err := s.queries.ListReplays(ctx, params)
	if err != nil {
		return nil, fmt.Errorf("list replays: %w", err)
	}
	out := &replaysResponse{}
	out.Body.Data = []Replay{}
	var last *position
	if len(rows) > in.Limit {
		rows = rows[:in.Limit]
		last = &position{id: db.FormatID(db.ReplayPrefix, rows[in.Limit-1].ID)}
	}
	for _, row := range rows {
		out.Body.Data = append(out.Body.Data, replayOf(db.GetReplayRow(row)))
	}
	out.Body.NextCursor = s.next(last, filters...)
	return out, nil
}
