package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// An EventType is a documented type of events.
type EventType struct {
	Name        string `json:"name" example:"email.bounced.hard"`
	Description string `json:"description"`
	Sample      Object `json:"sample" doc:"What data of such an event looks like."`
}

type listEventTypesRequest struct {
	ListParams
}

type eventTypesResponse struct {
	Body struct {
		Data       []EventType `json:"data" nullable:"false"`
		NextCursor *string     `json:"next_cursor"`
	} `nameHint:"EventTypeList"`
}

func (s *server) addEventTypes(api huma.API) {
	register(s, api, huma.Operation{
		OperationID: "list-event-types", Method: http.MethodGet, Path: "/v1/event-types", Tags: []string{"event types"}, Summary: "List event types, by name",
		Description: "A subscription may also name a parent of these, *, or a type that is not listed.",
	}, s.listEventTypes)
}

func (s *server) listEventTypes(ctx context.Context, _ caller, in *listEventTypesRequest) (*eventTypesResponse, error) {
	after, err := s.after(in.ListParams, "event-types")
	if err != nil {
		return nil, err
	}
	rows, err := s.queries.ListEventTypes(ctx, db.ListEventTypesParams{After: valueOf(after).id, MaxRows: int32(in.Limit + 1)}) //nolint:gosec // at most 200
	if err != nil {
		return nil, fmt.Errorf("list event types: %w", err)
	}
	out := &eventTypesResponse{}
	out.Body.Data = []EventType{}
	var last *position
	if len(rows) > in.Limit {
		rows = rows[:in.Limit]
		last = &position{id: rows[in.Limit-1].Name}
	}
	for _, row := range rows {
		out.Body.Data = append(out.Body.Data, EventType{row.Name, row.Description, Object(row.Sample)})
	}
	out.Body.NextCursor = s.next(last, "event-types")
	return out, nil
}
