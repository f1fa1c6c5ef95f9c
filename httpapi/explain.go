package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

// maxSameURL bounds the other subscriptions that an explanation names.
const maxSameURL = 20

// An Explanation says why an event was, or would be, delivered to a subscription, or why not.
type Explanation struct {
	Summary        string                `json:"summary" doc:"The reason in a sentence."`
	EventID        string                `json:"event_id,omitempty"`
	SubscriptionID string                `json:"subscription_id"`
	Matched        bool                  `json:"matched" doc:"Whether every condition is passed, by the subscription as it is today."`
	Conditions     []Condition           `json:"conditions" nullable:"false"`
	Delivery       *DeliveryWithAttempts `json:"delivery,omitempty" doc:"The newest delivery of this event to this subscription."`
	Hints          []string              `json:"hints,omitempty" doc:"What to look at, by the outcomes of the attempts."`
	SameURL        []SameURL             `json:"same_url,omitempty" doc:"Other subscriptions of the account that send this event to the same URL: it comes there more than once. Of channel web alone."`
}

// SameURL is a subscription with the URL of another.
type SameURL struct {
	SubscriptionID string `json:"subscription_id"`
	Name           string `json:"name"`
}

// A Condition is one thing that must hold for an event to be delivered to a subscription.
type Condition struct {
	Condition string `json:"condition" doc:"dispatched, duplicate, about_itself, deleted, account, created_before, status, event_type, or the name of a filter."`
	Passed    bool   `json:"passed"`
	Expected  any    `json:"expected" doc:"What the subscription asks for."`
	Actual    any    `json:"actual" doc:"What the event has; null when it has none. For filters from campaign_id on the values found, 10 at most."`
}

type explainRequest struct {
	ID             string `path:"id" doc:"evt_…"`
	SubscriptionID string `query:"subscription_id" required:"true" maxLength:"100"`
}

type explainResponse struct{ Body Explanation }

func (s *server) addExplain(api huma.API) {
	register(s, api, huma.Operation{
		OperationID: "explain-event", Method: http.MethodGet, Path: "/v1/events/{id}/explain", Tags: []string{"events"},
		Summary: "Say why an event was delivered to a subscription, or why not",
	}, s.explain)
	register(s, api, huma.Operation{
		OperationID: "explain-subscription", Method: http.MethodPost, Path: "/v1/subscriptions/{id}/explain", Tags: []string{"subscriptions"},
		Summary: "Say whether an event would be delivered to a subscription", Description: "The event is given by the columns of the outbox. Nothing is stored.",
	}, s.explainAhead)
}

func (s *server) explain(ctx context.Context, who caller, in *explainRequest) (*explainResponse, error) {
	id, err := s.parseEventID(in.ID)
	if err != nil {
		return nil, err
	}
	event, err := s.findEvent(ctx, who, id)
	if err != nil {
		return nil, err
	}
	to, err := s.findSubscriptionOfHistory(ctx, who, in.SubscriptionID)
	if err != nil {
		return nil, err
	}
	out := &explainResponse{Explanation{EventID: in.ID, SubscriptionID: in.SubscriptionID}}
	if event.State == "undispatched" {
		return out, s.explainUndispatched(ctx, who, &out.Body, id, to)
	}
	if event.State == "quarantined" || event.State == "erased" {
		actual := event.State
		if event.Reason != nil {
			actual += ": " + *event.Reason
		}
		out.Body.Conditions = []Condition{{"dispatched", false, "dispatched", actual}}
		out.Body.Summary = summaryOfState(event)
		return out, nil
	}
	logged, err := s.queries.GetEvent(ctx, db.GetEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	if err := s.hold(ctx, &out.Body, logged, to); err != nil {
		return nil, err
	}
	complete, err := s.addDelivery(ctx, who, &out.Body, id, logged.AccountID, to)
	if err != nil {
		return nil, err
	}
	if out.Body.SameURL, err = s.sameURL(ctx, logged, to); err != nil {
		return nil, err
	}
	if n := len(out.Body.SameURL); n > 0 && out.Body.Matched {
		out.Body.Hints = append(out.Body.Hints, fmt.Sprintf("%d more of the account's subscriptions send this event to the same URL: each request has its own delivery, all have this event's webhook-id", n))
	}
	out.Body.Summary, err = s.summary(ctx, out.Body, complete, to)
	return out, err
}

// findSubscriptionOfHistory is findSubscription for what has happened: deleted ones too.
func (s *server) findSubscriptionOfHistory(ctx context.Context, who caller, public string) (db.Subscription, error) {
	id, err := db.ParseID(db.SubscriptionPrefix, public)
	if err != nil {
		return db.Subscription{}, notFound()
	}
	row, err := s.queries.GetSubscriptionOfHistory(ctx, db.GetSubscriptionOfHistoryParams{ID: id, AccountID: who.account})
	if err != nil {
		return row, fmt.Errorf("read subscription: %w", err)
	}
	return row, nil
}

// hold fills in the conditions, and whether all of them are passed.
func (s *server) hold(ctx context.Context, out *Explanation, e db.Event, to db.Subscription) (err error) {
	out.Conditions, err = s.conditionsOf(ctx, e, to)
	out.Matched = err == nil && firstFailed(out.Conditions) == nil
	return err
}

func firstFailed(conditions []Condition) *Condition {
	for i, c := range conditions {
		if !c.Passed {
			return &conditions[i]
		}
	}
	return nil
}

// addDelivery adds the newest delivery of the pair, and what its outcomes hint at. It answers whether all that there are were found.
func (s *server) addDelivery(ctx context.Context, who caller, out *Explanation, id db.EventID, account string, to db.Subscription) (complete bool, err error) {
	deliveries, complete, err := s.deliveriesOf(ctx, id, account, &to.ID)
	if err != nil || len(deliveries) == 0 {
		return complete, err
	}
	newest, err := db.ParseID(db.DeliveryPrefix, deliveries[0].ID)
	if err != nil {
		return false, fmt.Errorf("parse own id: %w", err)
	}
	delivery, _, err := s.loadDelivery(ctx, s.queries, who.account, newest)
	if err != nil {
		return false, err
	}
	out.Delivery, out.Hints = &delivery, hintsOf(delivery.Attempts, to.ChannelType)
	return complete, nil
}

// sameURL names the other subscriptions that get the event at the same URL. Of other channels than web the URL is not known
// here: what is stored openly is a mask, or the same for all.
func (s *server) sameURL(ctx context.Context, e db.Event, to db.Subscription) (same []SameURL, err error) {
	if to.ChannelType != format.Web {
		return nil, nil
	}
	rows, err := s.queries.ListSameURL(ctx, db.ListSameURLParams{AccountID: to.AccountID, URL: to.URL, ID: to.ID, MaxRows: maxSameURL})
	if err != nil {
		return nil, fmt.Errorf("list subscriptions of the same URL: %w", err)
	}
	for _, row := range rows {
		conditions, err := s.conditionsOf(ctx, e, db.Subscription{ID: row.ID})
		if err != nil {
			return nil, err
		}
		if firstFailed(conditions) == nil {
			same = append(same, SameURL{db.FormatID(db.SubscriptionPrefix, row.ID), row.Name})
		}
	}
	return same, nil
}

// conditionsOf lists the conditions of dispatch in its order. That it is no duplicate, not about the
// subscription itself, and that this is not deleted, is listed only where it fails.
func (s *server) conditionsOf(ctx context.Context, e db.Event, to db.Subscription) ([]Condition, error) {
	row, err := s.queries.ExplainMatch(ctx, e.Explain(to.ID))
	if err != nil {
		return nil, fmt.Errorf("hold event against subscription: %w", err)
	}
	conditions := []Condition{}
	if row.IsAboutItself {
		conditions = append(conditions, Condition{"about_itself", false, "an event about another subscription", e.EventType})
	}
	if e.DuplicateOf != nil {
		conditions = append(conditions, Condition{"duplicate", false, nil, orNull(*e.DuplicateOf)})
	}
	if to.DeletedAt != nil {
		conditions = append(conditions, Condition{"deleted", false, nil, optionalTimestamp(to.DeletedAt)})
	}
	conditions = append(conditions,
		Condition{"account", row.AccountPassed, to.AccountID, e.AccountID},
		Condition{"created_before", row.CreatedBeforePassed, Timestamp(to.CreatedAt), Timestamp(e.InsertedAt)},
		Condition{"status", row.StatusPassed, []string{"active", "paused", "suspended"}, to.Status},
		Condition{"event_type", row.EventTypePassed, to.EventTypes, e.EventType},
		Condition{"sending_domain", row.SendingDomainPassed, to.FilterSendingDomain, orNull(valueOf(e.SendingDomain))},
		Condition{"sending_node", row.SendingNodePassed, to.FilterSendingNode, orNull(valueOf(e.SendingNode))},
		Condition{"bridge", row.BridgePassed, to.FilterBridge, orNull(valueOf(e.Bridge))},
		Condition{"dedicated_ip", row.DedicatedIpPassed, to.FilterDedicatedIp, orNull(row.DedicatedIP)},
	)
	var others []struct {
		Condition condition
		Passed    bool
		Found     []any
	}
	if err := json.Unmarshal(row.Conditions, &others); err != nil {
		return nil, fmt.Errorf("read own conditions: %w", err)
	}
	for _, o := range others {
		c := Condition{o.Condition.name(), o.Passed, DataMatcher{o.Condition.Any, o.Condition.Prefix}, nil}
		if len(o.Found) > 0 {
			c.Actual = o.Found
		}
		conditions = append(conditions, c)
	}
	return conditions, nil
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// healthOf is what holds a subscription up, all zero where nothing does.
func (s *server) healthOf(ctx context.Context, to db.Subscription) (db.GetHealthRow, error) {
	health, err := s.queries.GetHealth(ctx, to.ID)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return health, fmt.Errorf("read health: %w", err)
	}
	return health, nil
}
