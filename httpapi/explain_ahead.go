package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"

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
	out := &explainResponse{Explanation{SubscriptionID: in.ID}}
	return out, s.ahead(ctx, &out.Body, event, to)
}

// explainUndispatched says so, and what dispatch will make of the event.
func (s *server) explainUndispatched(ctx context.Context, who caller, out *Explanation, id db.EventID, to db.Subscription) error {
	undispatched := Condition{"dispatched", false, "dispatched", "undispatched"}
	delays, err := s.queries.GetDelays(ctx, to.ID)
	if err != nil {
		return fmt.Errorf("read what delays: %w", err)
	}
	row, err := s.queries.GetUndispatchedEvent(ctx, db.GetUndispatchedEventParams{ID: id.ID, InsertedAt: id.InsertedAt, AccountID: who.account})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read outbox: %w", err)
	}
	if err == nil {
		event := db.Event{
			AccountID: row.AccountID, InsertedAt: id.InsertedAt, EventType: row.EventType, Recipient: given(row.Recipient), MessageID: given(row.MessageID), CampaignID: given(row.CampaignID),
			SendingDomain: given(row.SendingDomain), SendingNode: given(row.SendingNode), Bridge: given(row.Bridge), DedicatedIP: given(row.DedicatedIP), Data: row.Data,
		}
		if err := s.ahead(ctx, out, event, to); err != nil {
			return err
		}
	}
	out.Matched = false
	if len(out.Conditions) == 0 || out.Conditions[0].Condition != undispatched.Condition {
		out.Conditions = append([]Condition{undispatched}, out.Conditions...)
	}
	out.Summary = strings.TrimSpace("The event is still in the outbox: " + cmp.Or(standstillOf(delays), "no worker has dispatched it yet") + ". " + out.Summary)
	return nil
}

// ahead is what dispatch would make of an event.
func (s *server) ahead(ctx context.Context, out *Explanation, event db.Event, to db.Subscription) error {
	refined, err := s.queries.RefineEvent(ctx, db.RefineEventParams{
		EventType: event.EventType, AccountID: event.AccountID, Recipient: event.Recipient, MessageID: event.MessageID, CampaignID: event.CampaignID,
		SendingDomain: event.SendingDomain, SendingNode: event.SendingNode, Bridge: event.Bridge, DedicatedIP: event.DedicatedIP, Data: event.Data,
	})
	if err != nil {
		return fmt.Errorf("refine event: %w", err)
	}
	if _, reason, refused := strings.Cut(refined.Refused, " "); refused {
		out.Conditions = []Condition{{"dispatched", false, "dispatched", "quarantined: " + reason}}
		out.Summary = "The event would be quarantined: " + reason + "."
		return nil
	}
	event.EventType, event.DispatchedAt = refined.EventType, refined.Now
	if event.InsertedAt.IsZero() {
		event.InsertedAt = refined.Now
	}
	if err := s.hold(ctx, out, event, to); err != nil {
		return err
	}
	if failed := firstFailed(out.Conditions); failed != nil {
		out.Summary = "The event would not be delivered: " + sentenceOf(*failed) + "."
		return nil
	}
	out.Summary, err = s.summaryAhead(ctx, event, to)
	return err
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
		if *f.to = given(string(f.in.value)); *f.to != nil {
			found = append(found, checkText(f.name, **f.to, maxTextBytes)...)
		}
	}
	if in.Body.Data.isValue() {
		e.Data = json.RawMessage(in.Body.Data.value)
	}
	return e, found
}

// maxTextBytes bounds what is sent to the database to be refused there.
const maxTextBytes = 64 << 10
