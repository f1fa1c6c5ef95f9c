package format

import (
	"strings"
	"time"
)

// An Event is what a body tells of.
type Event struct {
	ID         string // evt_…
	Type       string // the most exact
	OccurredAt time.Time

	// The columns of the outbox; empty: absent.
	Recipient, MessageID, CampaignID, SendingDomain, SendingNode, Bridge, DedicatedIP string

	// Data is a JSON object: all the rest.
	Data []byte
	// IsTest marks a sample that somebody asked for.
	IsTest bool
}

type column struct{ name, value string }

// columns are the event's fields beside its data that have a value, in the order of the contract.
func (e *Event) columns() []column {
	columns := make([]column, 0, 8)
	for _, c := range [...]column{
		{"recipient", e.Recipient}, {"message_id", e.MessageID}, {"campaign_id", e.CampaignID}, {"sending_domain", e.SendingDomain},
		{"sending_node", e.SendingNode}, {"bridge", e.Bridge}, {"dedicated_ip", e.DedicatedIP},
	} {
		if c.value != "" {
			columns = append(columns, c)
		}
	}
	// A leaf fills the field that it is made of.
	for _, parent := range [...]column{
		{"email.bounced.", "bounce_type"}, {"email.opened.", "message_class"}, {"email.clicked.", "message_class"},
	} {
		if leaf, ok := strings.CutPrefix(e.Type, parent.name); ok && leaf != "" && !strings.Contains(leaf, ".") {
			columns = append(columns, column{parent.value, leaf})
		}
	}
	return columns
}
