package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

type explainAheadRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body struct {
		EventType     string                `json:"event_type" doc:"As a host writes it."`
		Recipient     optional[filterValue] `json:"recipient,omitempty"`
		MessageID     optional[filterValue] `json:"message_id,omitempty"`
		CampaignID    optional[filterValue] `json:"campaign_id,omitempty"`
		SendingDomain optional[filterValue] `json:"sending_domain,omitempty"`
		SendingNode   optional[filterValue] `json:"sending_node,omitempty"`
		Bridge        optional[filterValue] `json:"bridge,omitempty"`
		DedicatedIP   optional[filterValue] `json:"dedicated_ip,omitempty"`
		Data          optional[anyValue]    `json:"data,omitempty" doc:"An object."`
	} `nameHint:"ExplainBody"`
}

// anyValue is JSON as it came.
type anyValue json.RawMessage

// UnmarshalJSON keeps the text.
func (v *anyValue) UnmarshalJSON(text []byte) error {
	*v = append(anyValue{}, text...)
	return nil
}

// Schema is anything: what is wrong with data is what dispatch would say.
func (anyValue) Schema(huma.Registry) *huma.Schema { return &huma.Schema{} }

// explainAhead says what dispatch would make of an event that is not there.
func (s *server) explainAhead(ctx context.Context, who caller, in *explainAheadRequest) (*explainResponse, error) {
	to, err := s.findSubscription(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	event, found := eventAhead(in, to.AccountID)
	if len(found) > 0 {
		return nil, invalid(found...)
	}
	refined, err := s.queries.RefineEvent(ctx, db.RefineEventParams{
		EventType: event.EventType, AccountID: event.AccountID, Recipient: event.Recipient, MessageID: event.MessageID, CampaignID: event.CampaignID,
		SendingDomain: event.SendingDomain, SendingNode: event.SendingNode, Bridge: event.Bridge, DedicatedIP: event.DedicatedIP, Data: event.Data,
	})
	if err != nil {
		return nil, fmt.Errorf("refine event: %w", err)
	}
	out := &explainResponse{Explanation{SubscriptionID: in.ID}}
	if _, reason, refused := strings.Cut(refined.Refused, " "); refused {
		out.Body.Conditions = []Condition{{"dispatched", false, "dispatched", "quarantined: " + reason}}
		out.Body.Summary = "The event would be quarantined: " + reason + "."
		return out, nil
	}
	event.EventType, event.InsertedAt = refined.EventType, refined.Now
	if err := s.hold(ctx, &out.Body, event, to); err != nil {
		return nil, err
	}
	if failed := firstFailed(out.Body.Conditions); failed != nil {
		out.Body.Summary = "The event would not be delivered: " + sentenceOf(*failed) + "."
		return out, nil
	}
	out.Body.Summary, err = s.summaryAhead(ctx, event, to)
	return out, err
}

// eventAhead reads the event; ” and null count as absent, as they do at dispatch.
func eventAhead(in *explainAheadRequest, account string) (e db.Event, found []FieldError) {
	e = db.Event{AccountID: account, EventType: in.Body.EventType}
	found = checkText("event_type", e.EventType, maxTextBytes)
	for _, f := range []struct {
		name string
		in   optional[filterValue]
		to   **string
	}{
		{"recipient", in.Body.Recipient, &e.Recipient}, {"message_id", in.Body.MessageID, &e.MessageID}, {"campaign_id", in.Body.CampaignID, &e.CampaignID},
		{"sending_domain", in.Body.SendingDomain, &e.SendingDomain}, {"sending_node", in.Body.SendingNode, &e.SendingNode},
		{"bridge", in.Body.Bridge, &e.Bridge}, {"dedicated_ip", in.Body.DedicatedIP, &e.DedicatedIP},
	} {
		if text := string(f.in.value); text != "" {
			*f.to = &text
			found = append(found, checkText(f.name, text, maxTextBytes)...)
		}
	}
	if in.Body.Data.isValue() {
		e.Data = json.RawMessage(in.Body.Data.value)
	}
	return e, found
}

// maxTextBytes bounds what is sent to the database to be refused there.
const maxTextBytes = 64 << 10
