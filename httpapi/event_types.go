package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// An EventType is a documented type of events.
type EventType struct {
	Name        string           `json:"name" example:"email.bounced.hard"`
	Description string           `json:"description"`
	Fields      []EventTypeField `json:"fields" nullable:"false" doc:"What data of such an event may hold."`
	Sample      Object           `json:"sample" doc:"What data of such an event looks like."`
	Aliases     []EventTypeAlias `json:"aliases" nullable:"false" doc:"Words of other platforms that are taken for the name, in upper and lower case, with spaces, hyphens or underscores."`
}

// An EventTypeField is one key of data.
type EventTypeField struct {
	Name        string `json:"name" example:"smtp_code"`
	Type        string `json:"type" enum:"string,number,boolean,object,array"`
	Description string `json:"description"`
}

// An EventTypeAlias is another platform's word for a type.
type EventTypeAlias struct {
	Word   string  `json:"word" example:"Newsletter Opened"`
	Format *string `json:"format" doc:"The format of subscriptions in which alone the word means this; null: any that has no meaning of its own for it."`
}

type eventTypeParams struct {
	Name string `path:"name" maxLength:"100" doc:"The name, or another platform's word for it."`
}

type eventTypeResponse struct{ Body EventType }

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
	tags := []string{"event types"}
	register(s, api, huma.Operation{
		OperationID: "list-event-types", Method: http.MethodGet, Path: "/v1/event-types", Tags: tags, Summary: "List event types, by name",
		Description: "A subscription may also name a parent of these, *, or a type that is not listed.",
	}, s.listEventTypes)
	register(s, api, huma.Operation{
		OperationID: "get-event-type", Method: http.MethodGet, Path: "/v1/event-types/{name}", Tags: tags, Summary: "Read an event type",
	}, s.getEventType)
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
		found, err := eventTypeFrom(row)
		if err != nil {
			return nil, err
		}
		out.Body.Data = append(out.Body.Data, found)
	}
	out.Body.NextCursor = s.next(last, "event-types")
	return out, nil
}

func (s *server) getEventType(ctx context.Context, _ caller, in *eventTypeParams) (*eventTypeResponse, error) {
	name, err := s.eventTypeOf(ctx, s.queries, "name", in.Name, "")
	if err != nil {
		return nil, err
	}
	rows, err := s.queries.ListEventTypes(ctx, db.ListEventTypesParams{Name: &name, MaxRows: 1})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read event type: %w", err)
	case len(rows) == 0:
		return nil, notFound()
	}
	found, err := eventTypeFrom(rows[0])
	return &eventTypeResponse{found}, err
}

func eventTypeFrom(row db.ListEventTypesRow) (EventType, error) {
	found := EventType{Name: row.Name, Description: row.Description, Sample: Object(row.Sample)}
	if err := json.Unmarshal(row.Fields, &found.Fields); err != nil {
		return found, fmt.Errorf("read the fields of an event type: %w", err)
	}
	if err := json.Unmarshal(row.Aliases, &found.Aliases); err != nil {
		return found, fmt.Errorf("read the aliases of an event type: %w", err)
	}
	return found, nil
}
