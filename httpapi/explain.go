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
	row, err := s.queries.ExplainMatch(ctx, db.ExplainMatchParams{ID: id.ID, InsertedAt: id.InsertedAt, SubscriptionID: subscription.ID})
	if err != nil {
		return nil, fmt.Errorf("hold event against subscription: %w", err)
	}
	out.Body.Conditions = conditionsOf(row)
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
func conditionsOf(row db.ExplainMatchRow) []Condition {
	conditions := []Condition{
		{"account", row.AccountPassed, row.SubscriptionAccountID, row.EventAccountID},
		{"created_before", row.CreatedBeforePassed, Timestamp(row.CreatedAt), Timestamp(row.InsertedAt)},
		{"status", row.StatusPassed, []string{"active", "paused", "suspended"}, row.Status},
		{"event_type", row.EventTypePassed, row.EventTypes, row.EventType},
		{"sending_domain", row.SendingDomainPassed, row.FilterSendingDomain, orNull(row.SendingDomain)},
		{"sending_node", row.SendingNodePassed, row.FilterSendingNode, orNull(row.SendingNode)},
		{"bridge", row.BridgePassed, row.FilterBridge, orNull(row.Bridge)},
		{"dedicated_ip", row.DedicatedIpPassed, row.FilterDedicatedIp, orNull(row.DedicatedIP)},
	}
	if row.IsDuplicate {
		conditions = append([]Condition{{"duplicate", false, nil, orNull(row.DuplicateOf)}}, conditions...)
	}
	if row.IsAboutItself {
		conditions = append([]Condition{{"about_itself", false, "an event about another subscription", row.EventType}}, conditions...)
	}
	return conditions
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}
