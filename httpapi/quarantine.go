package httpapi

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// A QuarantinedEvent is an event that could not be dispatched. GET /v1/events/{id} has its data.
type QuarantinedEvent struct {
	ID            string    `json:"id"`
	AccountID     string    `json:"account_id"`
	Type          string    `json:"type"`
	Timestamp     Timestamp `json:"timestamp"`
	InsertedAt    Timestamp `json:"inserted_at"`
	Recipient     string    `json:"recipient,omitempty"`
	Reason        string    `json:"reason"`
	ErrorCode     string    `json:"error_code" doc:"A SQLSTATE; of class MH where a known limit was passed."`
	QuarantinedAt Timestamp `json:"quarantined_at"`
}

type listQuarantineRequest struct {
	ListParams
	AccountParam
}

type quarantineResponse struct {
	Body struct {
		Data       []QuarantinedEvent `json:"data" nullable:"false"`
		NextCursor *string            `json:"next_cursor"`
	} `nameHint:"QuarantineList"`
}

func (s *server) addQuarantine(api huma.API) {
	tags := []string{"quarantine"}
	register(s, api, huma.Operation{
		OperationID: "list-quarantine", Method: http.MethodGet, Path: "/v1/quarantine", Tags: tags, Summary: "List events that could not be dispatched, newest first",
	}, s.listQuarantine)
	register(s, api, huma.Operation{
		OperationID: "release-quarantined", Method: http.MethodPost, Path: "/v1/quarantine/{id}/release", Tags: tags, Summary: "Dispatch an event again", Errors: []int{http.StatusConflict},
		Description: "It goes back to the outbox under the same id. Answers the event; unless its cause is gone, it will be quarantined again.",
	}, s.releaseQuarantined)
}

func (s *server) listQuarantine(ctx context.Context, who caller, in *listQuarantineRequest) (*quarantineResponse, error) {
	account, err := who.scope(in.AccountID)
	if err != nil {
		return nil, err
	}
	filters := []any{"quarantine", account}
	after, err := s.after(in.ListParams, filters...)
	if err != nil {
		return nil, err
	}
	params := db.ScanQuarantineParams{
		AccountID: account, BeforeAt: farFuture(), BeforeID: math.MaxInt64, PageRows: int32(in.Limit + 1), //nolint:gosec // at most 200
	}
	if after != nil {
		if params.BeforeAt, params.BeforeID, err = after.number(); err != nil {
			return nil, err
		}
	}
	rows, err := widen(in.Limit, func(rows int32) ([]db.ScanQuarantineRow, error) {
		params.ScanRows = rows
		return s.queries.ScanQuarantine(ctx, params)
	}, func(row db.ScanQuarantineRow) bool { return row.IsHorizon })
	if err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	out := &quarantineResponse{}
	var last *position
	out.Body.Data, last = s.quarantinePage(rows, in.Limit)
	out.Body.NextCursor = s.next(last, filters...)
	return out, nil
}

// quarantinePage takes what a page has room for; last is where the next begins.
func (s *server) quarantinePage(rows []db.ScanQuarantineRow, limit int) (page []QuarantinedEvent, last *position) {
	page = []QuarantinedEvent{}
	for _, row := range rows {
		if row.Matches && len(page) == limit {
			return page, last
		}
		if row.Matches {
			page = append(page, QuarantinedEvent{
				s.eventID(row.InsertedAt, row.ID), row.AccountID, row.EventType, Timestamp(row.OccurredAt), Timestamp(row.InsertedAt),
				row.Recipient, row.Reason, row.ErrorCode, Timestamp(row.QuarantinedAt),
			})
		}
		last = &position{row.QuarantinedAt, strconv.FormatInt(row.ID, 10)}
		if row.IsHorizon {
			return page, last
		}
	}
	return page, nil
}

func (s *server) releaseQuarantined(ctx context.Context, who caller, in *eventParams) (*eventResponse, error) {
	id, err := s.parseEventID(in.ID)
	if err != nil {
		return nil, err
	}
	event, err := s.findQuarantined(ctx, who, id)
	if err != nil {
		return nil, err
	}
	err = s.inTx(ctx, func(q *db.Queries) error {
		released, err := q.ReleaseQuarantined(ctx, db.ReleaseQuarantinedParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
		switch {
		case err != nil:
			return fmt.Errorf("release event: %w", err)
		case released == 0:
			return s.refuseWhileErasing(ctx, q, event.AccountID)
		}
		if err := who.audit(ctx, q, "event.release", event.AccountID, in.ID, nil, nil); err != nil {
			return err
		}
		return q.NotifyWorkers(ctx, "")
	})
	if err != nil {
		return nil, err
	}
	event.State, event.Reason, event.ErrorCode = "undispatched", nil, nil
	return &eventResponse{event}, nil
}

// refuseWhileErasing says why nothing was released.
func (s *server) refuseWhileErasing(ctx context.Context, q *db.Queries, account string) error {
	erasing, err := q.IsErasing(ctx, account)
	switch {
	case err != nil:
		return fmt.Errorf("look for erasures: %w", err)
	case erasing:
		return fail(codeErasing, "a person is being erased: release the event when that has ended")
	}
	return notFound()
}
