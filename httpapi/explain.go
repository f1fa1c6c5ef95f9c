package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// An Explanation says why an event was delivered to a subscription, or why not.
type Explanation struct {
	EventID        string                `json:"event_id"`
	SubscriptionID string                `json:"subscription_id"`
	Matched        bool                  `json:"matched" doc:"Whether every condition is passed, by the subscription as it is today."`
	Conditions     []Condition           `json:"conditions" nullable:"false"`
	Delivery       *DeliveryWithAttempts `json:"delivery,omitempty" doc:"The newest delivery of this event to this subscription."`
}

// A Condition is one thing that must hold for an event to be delivered to a subscription.
type Condition struct {
	Condition string `json:"condition" enum:"dispatched,duplicate,about_itself,account,created_before,status,event_type,sending_domain,sending_node,bridge,dedicated_ip"`
	Passed    bool   `json:"passed"`
	Expected  any    `json:"expected" doc:"What the subscription asks for."`
	Actual    any    `json:"actual" doc:"What the event has; null when it has none."`
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
	subscription, err := s.findSubscription(ctx, who, in.SubscriptionID)
	if err != nil {
		return nil, err
	}
	out := &explainResponse{Explanation{EventID: in.ID, SubscriptionID: in.SubscriptionID}}
	if event.State == "undispatched" || event.State == "quarantined" || event.State == "erased" {
		actual := event.State
		if event.Reason != nil {
			actual += ": " + *event.Reason
		}
		out.Body.Conditions = []Condition{{"dispatched", false, "dispatched", actual}}
		return out, nil
	}
	logged, err := s.queries.GetEvent(ctx, db.GetEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	if out.Body.Conditions, err = s.conditionsOf(ctx, logged, subscription); err != nil {
		return nil, err
	}
	out.Body.Matched = true
	for _, c := range out.Body.Conditions {
		out.Body.Matched = out.Body.Matched && c.Passed
	}
	deliveries, _, err := s.deliveriesOf(ctx, id, event.AccountID, &subscription.ID)
	if err != nil || len(deliveries) == 0 {
		return out, err
	}
	newest, err := db.ParseID(db.DeliveryPrefix, deliveries[0].ID)
	if err != nil {
		return nil, fmt.Errorf("parse own id: %w", err)
	}
	delivery, _, err := s.loadDelivery(ctx, s.queries, who.account, newest)
	if err != nil {
		return nil, err
	}
	out.Body.Delivery = &delivery
	return out, nil
}

// conditionsOf lists the conditions of dispatch in its order. That it is no duplicate, and not about the
// subscription itself, is listed only where it fails.
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
	return conditions, nil
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}
