package httpapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

const (
	// maxPageBytes bounds the data of a page of events, beyond its first event: a page is held in memory.
	maxPageBytes = 4 << 20
	// maxEventDeliveries bounds the deliveries in an answer about one event.
	maxEventDeliveries = 1000
	// idSlack is how much earlier than the insertion of an event the id of an attempt for it may claim to be: the
	// clock of the database may be set back.
	idSlack = 5 * time.Minute
)

// An Event is one thing that happened.
type Event struct {
	ID           string     `json:"id" example:"evt_00060ef0a1b2c3d400000000000000011a2b3c4d"`
	AccountID    string     `json:"account_id"`
	Type         string     `json:"type"`
	Timestamp    Timestamp  `json:"timestamp" doc:"When it happened."`
	InsertedAt   Timestamp  `json:"inserted_at" doc:"When the host wrote it."`
	DispatchedAt *Timestamp `json:"dispatched_at,omitempty" doc:"When subscriptions were matched."`
	State        string     `json:"state" enum:"dispatched,undispatched,duplicate,quarantined,erased" doc:"erased: a person was erased from it; what is left counts."`
	DuplicateOf  *string    `json:"duplicate_of,omitempty" doc:"The event with the same dedupe key before it. This one has no deliveries."`
	Data         Object     `json:"data" doc:"As in the body that receivers get."`
}

// EventWithDeliveries is an event and what became of it.
type EventWithDeliveries struct {
	Event
	Reason             *string    `json:"reason,omitempty" doc:"Why it is quarantined."`
	ErrorCode          *string    `json:"error_code,omitempty"`
	Deliveries         []Delivery `json:"deliveries" nullable:"false" doc:"Newest first."`
	DeliveriesComplete bool       `json:"deliveries_complete" doc:"false: there may be more that have ended; the account was too busy to look at all of its attempts. The list of deliveries has them."`
}

type eventParams struct {
	ID string `path:"id" doc:"evt_…"`
}

// EventFilters narrow a list of events down.
type EventFilters struct {
	EventType string    `query:"event_type" maxLength:"100" doc:"A node of the type hierarchy: everything below it, too."`
	Recipient string    `query:"recipient" maxLength:"1000"`
	Since     time.Time `query:"since" doc:"By inserted_at: from here on;"`
	Until     time.Time `query:"until" doc:"before this."`
}

type listEventsRequest struct {
	ListParams
	AccountParam
	EventFilters
}

type eventsResponse struct {
	Body struct {
		Data       []Event `json:"data" nullable:"false"`
		NextCursor *string `json:"next_cursor"`
	} `nameHint:"EventList"`
}

type eventResponse struct{ Body EventWithDeliveries }

func (s *server) addEvents(api huma.API) {
	tags := []string{"events"}
	register(s, api, huma.Operation{
		OperationID: "list-events", Method: http.MethodGet, Path: "/v1/events", Tags: tags, Summary: "List dispatched events, newest first",
		Description: "A page looks at a bounded number of rows, so it may be short, or empty, and still have a next_cursor.",
	}, s.listEvents)
	register(s, api, huma.Operation{
		OperationID: "get-event", Method: http.MethodGet, Path: "/v1/events/{id}", Tags: tags, Summary: "Read an event with its deliveries",
	}, s.getEvent)
}

func (s *server) listEvents(ctx context.Context, who caller, in *listEventsRequest) (*eventsResponse, error) {
	account, err := who.scope(in.AccountID)
	if err != nil {
		return nil, err
	}
	if in.EventType != "" {
		if in.EventType, err = s.eventTypeOf(ctx, s.queries, "event_type", in.EventType, ""); err != nil {
			return nil, err
		}
	}
	filters := []any{"events", account, in.EventType, in.Recipient, in.Since, in.Until}
	after, err := s.after(in.ListParams, filters...)
	if err != nil {
		return nil, err
	}
	params := db.ScanEventsParams{
		AccountID: account, EventType: given(in.EventType), Recipient: given(in.Recipient), Since: in.Since, Until: farFuture(),
		BeforeAt: farFuture(), BeforeID: math.MaxInt64, PageRows: int32(in.Limit + 1), //nolint:gosec // at most 200
	}
	if !in.Until.IsZero() {
		params.Until = in.Until
	}
	if after != nil {
		if params.BeforeAt, params.BeforeID, err = after.number(); err != nil {
			return nil, err
		}
	}
	scanned, err := widen(in.Limit, func(rows int32) ([]db.ScanEventsRow, error) {
		params.ScanRows = rows
		return s.queries.ScanEvents(ctx, params)
	}, func(row db.ScanEventsRow) bool { return row.IsHorizon })
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	keys, last := cutPage(scanned, in.Limit)
	rows, err := s.queries.ListEventsByKey(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	out := &eventsResponse{}
	out.Body.Data = []Event{}
	for _, row := range rows {
		out.Body.Data = append(out.Body.Data, s.eventOf(row))
	}
	out.Body.NextCursor = s.next(last, filters...)
	return out, nil
}

// number is the position in a list whose ids are numbers.
func (p position) number() (time.Time, int64, error) {
	id, err := strconv.ParseInt(p.id, 10, 64)
	if err != nil {
		return p.at, 0, invalid(FieldError{"cursor", "invalid_cursor", "is not a cursor of this list"})
	}
	return p.at, id, nil
}

// cutPage takes what a page has room for, by number and by bytes but at least one; last is where the next begins.
func cutPage(scanned []db.ScanEventsRow, limit int) (keys db.ListEventsByKeyParams, last *position) {
	keys = db.ListEventsByKeyParams{InsertedAts: []time.Time{}, IDs: []int64{}}
	var bytes int64
	for _, row := range scanned {
		bytes += row.DataBytes
		if n := len(keys.IDs); row.Matches && (n == limit || n > 0 && bytes > maxPageBytes) {
			return keys, last
		}
		if row.Matches {
			keys.InsertedAts = append(keys.InsertedAts, row.InsertedAt)
			keys.IDs = append(keys.IDs, row.ID)
		}
		last = &position{row.InsertedAt, strconv.FormatInt(row.ID, 10)}
		if row.IsHorizon {
			return keys, last
		}
	}
	return keys, nil
}

func (s *server) getEvent(ctx context.Context, who caller, in *eventParams) (*eventResponse, error) {
	id, err := s.parseEventID(in.ID)
	if err != nil {
		return nil, err
	}
	event, err := s.findEvent(ctx, who, id)
	if err != nil {
		return nil, err
	}
	if event.State == "dispatched" || event.State == "erased" {
		event.Deliveries, event.DeliveriesComplete, err = s.deliveriesOf(ctx, id, event.AccountID, nil)
	}
	if err != nil {
		return nil, err
	}
	return &eventResponse{event}, nil
}

// parseEventID reads the public id of an event of this installation.
func (s *server) parseEventID(public string) (db.EventID, error) {
	id, err := db.ParseEventID(public)
	if err != nil || id.Installation != s.installation {
		return id, notFound()
	}
	// Beyond this PostgreSQL has no times, and no event.
	if id.InsertedAt.Year() < 1 || id.InsertedAt.Year() > 9999 {
		return id, notFound()
	}
	return id, nil
}

// findEvent looks in the outbox, then in the log, then in quarantine: in the order in which events move.
func (s *server) findEvent(ctx context.Context, who caller, id db.EventID) (EventWithDeliveries, error) {
	found := EventWithDeliveries{Deliveries: []Delivery{}, DeliveriesComplete: true}
	waiting, err := s.queries.GetUndispatchedEvent(ctx, db.GetUndispatchedEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err == nil {
		found.Event = Event{
			ID: id.String(), AccountID: waiting.AccountID, Type: waiting.EventType, Timestamp: Timestamp(waiting.OccurredAt),
			InsertedAt: Timestamp(id.InsertedAt), State: "undispatched",
			Data: dataOf(format.Event{
				Type: waiting.EventType, Recipient: waiting.Recipient, MessageID: waiting.MessageID, CampaignID: waiting.CampaignID,
				SendingDomain: waiting.SendingDomain, SendingNode: waiting.SendingNode, Bridge: waiting.Bridge, DedicatedIP: waiting.DedicatedIP, Data: waiting.Data,
			}),
		}
		return found, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return found, fmt.Errorf("read outbox: %w", err)
	}
	row, err := s.queries.GetEvent(ctx, db.GetEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err == nil {
		found.Event = s.eventOf(row)
		return found, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return found, fmt.Errorf("read event: %w", err)
	}
	return s.findQuarantined(ctx, who, id)
}

func (s *server) findQuarantined(ctx context.Context, who caller, id db.EventID) (EventWithDeliveries, error) {
	found := EventWithDeliveries{Deliveries: []Delivery{}, DeliveriesComplete: true}
	row, err := s.queries.GetQuarantinedEvent(ctx, db.GetQuarantinedEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err != nil {
		return found, fmt.Errorf("read quarantine: %w", err)
	}
	found.Event = Event{
		ID: id.String(), AccountID: row.AccountID, Type: row.EventType, Timestamp: Timestamp(row.OccurredAt),
		InsertedAt: Timestamp(id.InsertedAt), State: "quarantined",
		Data: dataOf(format.Event{
			Type: row.EventType, Recipient: row.Recipient, MessageID: row.MessageID, CampaignID: row.CampaignID,
			SendingDomain: row.SendingDomain, SendingNode: row.SendingNode, Bridge: row.Bridge, DedicatedIP: row.DedicatedIP, Data: row.Data,
		}),
	}
	found.Reason, found.ErrorCode = &row.Reason, &row.ErrorCode
	return found, nil
}

// deliveriesOf answers the deliveries of an event, to one subscription or to all, newest first, and whether those are
// all that there are.
func (s *server) deliveriesOf(ctx context.Context, id db.EventID, account string, subscription *uuid.UUID) ([]Delivery, bool, error) {
	// Unfinished first: one that ends in between is then seen twice rather than never.
	unfinished, err := s.queries.ListUnfinishedOfEvent(ctx, db.ListUnfinishedOfEventParams{
		EventInsertedAt: id.InsertedAt, EventID: id.ID, SubscriptionID: subscription, MaxRows: maxEventDeliveries,
	})
	if err != nil {
		return nil, false, fmt.Errorf("list unfinished deliveries of event: %w", err)
	}
	ended, err := s.queries.ListEndsOfEvent(ctx, db.ListEndsOfEventParams{
		EventInsertedAt: id.InsertedAt, EventID: id.ID, SubscriptionID: subscription, AccountID: account,
		FromID: floorID(id.InsertedAt.Add(-idSlack)), ScanRows: scanRows,
	})
	if err != nil {
		return nil, false, fmt.Errorf("list ended deliveries of event: %w", err)
	}
	deliveries, complete := []Delivery{}, len(unfinished) < maxEventDeliveries
	hasEnded := map[string]bool{}
	for _, row := range ended {
		complete = complete && !row.IsHorizon
		if row.Matches {
			hasEnded[db.FormatID(db.DeliveryPrefix, row.Attempt.DeliveryID)] = true
		}
	}
	for _, row := range unfinished {
		if !hasEnded[db.FormatID(db.DeliveryPrefix, row.ID)] {
			deliveries = append(deliveries, s.unfinishedDelivery(row))
		}
	}
	for _, row := range ended {
		if row.Matches && len(deliveries) < maxEventDeliveries {
			deliveries = append(deliveries, s.endedDelivery(row.Attempt))
		}
	}
	return deliveries, complete, nil
}

func (s *server) eventOf(row db.Event) Event {
	event := Event{
		ID:           s.eventID(row.InsertedAt, row.ID),
		AccountID:    row.AccountID,
		Type:         row.EventType,
		Timestamp:    Timestamp(row.OccurredAt),
		InsertedAt:   Timestamp(row.InsertedAt),
		DispatchedAt: optionalTimestamp(&row.DispatchedAt),
		State:        "dispatched",
		Data: dataOf(format.Event{
			Type: row.EventType, Recipient: valueOf(row.Recipient), MessageID: valueOf(row.MessageID), CampaignID: valueOf(row.CampaignID),
			SendingDomain: valueOf(row.SendingDomain), SendingNode: valueOf(row.SendingNode), Bridge: valueOf(row.Bridge),
			DedicatedIP: valueOf(row.DedicatedIP), Data: row.Data,
		}),
	}
	if row.DuplicateOf != nil {
		event.State, event.DuplicateOf = "duplicate", row.DuplicateOf
	}
	if row.ErasedAt != nil {
		event.State = "erased"
	}
	return event
}
