package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

// DeliveryFilters narrow a list of deliveries down.
type DeliveryFilters struct {
	SubscriptionID string    `query:"subscription_id" maxLength:"100"`
	Status         string    `query:"status" enum:"pending,sending,held,delivered,exhausted,cancelled"`
	EventType      string    `query:"event_type" maxLength:"100" doc:"A node of the type hierarchy: everything below it, too."`
	Recipient      string    `query:"recipient" maxLength:"1000"`
	Since          time.Time `query:"since" doc:"By the time that the list is ordered by: the end of a delivery or, while unfinished, its dispatch. From here on;"`
	Until          time.Time `query:"until" doc:"before this."`
}

type listDeliveriesRequest struct {
	ListParams
	AccountParam
	DeliveryFilters
}

type deliveriesResponse struct {
	Body struct {
		Data       []Delivery `json:"data" nullable:"false"`
		NextCursor *string    `json:"next_cursor"`
	} `nameHint:"DeliveryList"`
}

// A deliveryQuery is a list request with its filters decoded.
type deliveryQuery struct {
	account      *string
	subscription *uuid.UUID
	status       *string
	eventType    *string
	recipient    *string
	since, until time.Time
	before       deliveryKey
	limit        int
	byStart      bool // a list of all accounts: its order is that of started_at, for want of an index by id
}

// A deliveryKey is the place of a delivery in a list: the id of the delivery or, when it has ended, of the attempt
// that ended it. Both are UUIDv7, so they compare by time. In lists of all accounts the time comes first.
type deliveryKey struct {
	at time.Time
	id uuid.UUID
}

func (k deliveryKey) compare(o deliveryKey) int {
	if c := k.at.Compare(o.at); c != 0 {
		return c
	}
	return bytes.Compare(k.id[:], o.id[:])
}

// listed is a row of a list in its place. A row that does not match is a horizon: below it nothing was looked at.
type listed struct {
	key       deliveryKey
	delivery  Delivery
	matches   bool
	isHorizon bool
}

func (s *server) listDeliveries(ctx context.Context, who caller, in *listDeliveriesRequest) (*deliveriesResponse, error) {
	query, filters, err := s.deliveryQuery(ctx, who, in)
	if err != nil {
		return nil, err
	}
	var unfinished, ended []listed
	if in.Status == "" || !hasEnded(in.Status) {
		if unfinished, err = s.scanUnfinished(ctx, query); err != nil {
			return nil, err
		}
	}
	if in.Status == "" || hasEnded(in.Status) {
		if ended, err = s.scanEnded(ctx, query); err != nil {
			return nil, err
		}
	}
	page, last := mergeListed(query.limit, unfinished, ended)
	out := &deliveriesResponse{}
	out.Body.Data = page
	if last != nil {
		out.Body.NextCursor = s.next(&position{last.at, db.FormatID(db.DeliveryPrefix, last.id)}, filters...)
	}
	return out, nil
}

func hasEnded(status string) bool {
	return slices.Contains([]string{"delivered", "exhausted", "cancelled"}, status)
}

// deliveryQuery decodes a list request. filters are what its cursors are bound to.
func (s *server) deliveryQuery(ctx context.Context, who caller, in *listDeliveriesRequest) (q deliveryQuery, filters []any, err error) {
	q = deliveryQuery{limit: in.Limit, since: in.Since, until: in.Until, before: deliveryKey{id: uuid.Max}}
	if q.account, err = who.scope(in.AccountID); err != nil {
		return q, nil, err
	}
	if in.SubscriptionID != "" {
		id, err := s.historicSubscription(ctx, q.account, in.SubscriptionID)
		if err != nil {
			return q, nil, err
		}
		q.subscription = &id
	}
	q.byStart = q.account == nil && q.subscription == nil
	if in.EventType != "" {
		if in.EventType, err = s.eventTypeOf(ctx, s.queries, "event_type", in.EventType, ""); err != nil {
			return q, nil, err
		}
	}
	q.status, q.eventType, q.recipient = given(in.Status), given(in.EventType), given(in.Recipient)
	filters = []any{"deliveries", q.account, in.SubscriptionID, in.Status, in.EventType, in.Recipient, in.Since, in.Until}
	after, err := s.after(in.ListParams, filters...)
	if err != nil || after == nil {
		if q.byStart {
			q.before.at = farFuture()
		}
		return q, filters, err
	}
	if q.before.id, err = db.ParseID(db.DeliveryPrefix, after.id); err != nil {
		return q, nil, invalid(FieldError{"cursor", "invalid_cursor", "is not a cursor of this list"})
	}
	if q.byStart {
		q.before.at = after.at
	}
	return q, filters, nil
}

// historicSubscription is the id of a subscription, which may be deleted: its history stays readable. Another
// account's is as if it never was: the history queries compare the account as well.
func (s *server) historicSubscription(ctx context.Context, account *string, public string) (uuid.UUID, error) {
	id, err := db.ParseID(db.SubscriptionPrefix, public)
	if err != nil {
		return id, notFound()
	}
	known, err := s.queries.IsSubscriptionKnown(ctx, db.IsSubscriptionKnownParams{ID: id, AccountID: account})
	switch {
	case err != nil:
		return id, fmt.Errorf("look for subscription: %w", err)
	case !known:
		return id, notFound()
	}
	return id, nil
}

func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func farFuture() time.Time { return time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) }

func (s *server) scanUnfinished(ctx context.Context, q deliveryQuery) ([]listed, error) {
	before := q.before.id
	if q.byStart {
		before = q.before.unfinishedBound()
	}
	if !q.until.IsZero() {
		if end := floorID(q.until); bytes.Compare(end[:], before[:]) < 0 {
			before = end
		}
	}
	rows, err := widen(q.limit, func(rows int32) ([]db.ScanUnfinishedDeliveriesRow, error) {
		return s.queries.ScanUnfinishedDeliveries(ctx, db.ScanUnfinishedDeliveriesParams{
			BeforeID: before, FromID: floorID(q.since), ScanRows: rows, PageRows: int32(q.limit + 1), //nolint:gosec // at most 200
			AccountID: q.account, SubscriptionID: q.subscription, EventType: q.eventType, Recipient: q.recipient, Status: q.status,
		})
	}, func(row db.ScanUnfinishedDeliveriesRow) bool { return row.IsHorizon })
	if err != nil {
		return nil, fmt.Errorf("list unfinished deliveries: %w", err)
	}
	found := make([]listed, len(rows))
	for i, row := range rows {
		u := row.UnfinishedDelivery
		found[i] = listed{deliveryKey{id: u.ID}, s.unfinishedDelivery(u), row.Matches, row.IsHorizon}
		if q.byStart {
			found[i].key.at = timeOf(u.ID)
		}
	}
	return found, nil
}

// unfinishedBound is, for a place in a list by time, the id such that unfinished deliveries before it come after the
// place: those of an earlier millisecond and, within the same, those of a lesser id.
func (k deliveryKey) unfinishedBound() uuid.UUID {
	this := floorID(k.at)
	next := floorID(k.at.Add(time.Millisecond))
	switch {
	case k.at.Truncate(time.Millisecond) != k.at, bytes.Compare(k.id[:], next[:]) >= 0:
		return next
	case bytes.Compare(k.id[:], this[:]) < 0:
		return this
	}
	return k.id
}

func (s *server) scanEnded(ctx context.Context, q deliveryQuery) ([]listed, error) {
	params := db.ScanEndedDeliveriesParams{
		BeforeID: q.before.id, BeforeAt: q.before.at, FromID: floorID(q.since), FromAt: q.since, UntilAt: farFuture(),
		PageRows:  int32(q.limit + 1), //nolint:gosec // at most 200
		AccountID: q.account, SubscriptionID: q.subscription, EventType: q.eventType, Recipient: q.recipient, Status: q.status,
	}
	if !q.byStart && !q.since.IsZero() {
		params.FromAt = q.since.Add(-24 * time.Hour) // an attempt starts before it is recorded, and its id is of then; this is for the partitions
	}
	if !q.until.IsZero() {
		params.UntilAt = q.until
		if end := floorID(q.until); !q.byStart && bytes.Compare(end[:], params.BeforeID[:]) < 0 {
			params.BeforeID = end
		}
	}
	rows, err := widen(q.limit, func(rows int32) ([]db.ScanEndedDeliveriesRow, error) {
		params.ScanRows = rows
		return s.queries.ScanEndedDeliveries(ctx, params)
	}, func(row db.ScanEndedDeliveriesRow) bool { return row.IsHorizon })
	if err != nil {
		return nil, fmt.Errorf("list ended deliveries: %w", err)
	}
	found := make([]listed, len(rows))
	for i, row := range rows {
		found[i] = listed{deliveryKey{id: row.Attempt.ID}, s.endedDelivery(row.Attempt), row.Matches, row.IsHorizon}
		if q.byStart {
			found[i].key.at = row.Attempt.StartedAt
		}
	}
	return found, nil
}

// mergeListed puts the streams together, newest first, up to limit, but not below the horizon of any: what lies there
// has not been looked at in all of them. last is where the next page begins; nil when there is none.
func mergeListed(limit int, streams ...[]listed) (page []Delivery, last *deliveryKey) {
	page = []Delivery{}
	all := slices.Concat(streams...)
	slices.SortFunc(all, func(a, b listed) int { return b.key.compare(a.key) })
	for _, row := range all {
		if row.matches && len(page) == limit {
			return page, last
		}
		if row.matches {
			page = append(page, row.delivery)
		}
		key := row.key
		last = &key
		if row.isHorizon {
			return page, last
		}
	}
	return page, nil
}
