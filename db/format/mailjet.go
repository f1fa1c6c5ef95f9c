package format

import "slices"

var _ = register(Format{Name: "mailjet", Channel: "web", ContentType: "application/json", Arrays: OptionalArrays, Render: renderMailjet})

// messageIDDigits are those of an int64.
const messageIDDigits = 19

// renderMailjet writes the object of Mailjet's Event API, version 1; in a batch, version 2, they are an array. time is in Unix
// seconds; MessageID, mj_campaign_id, mj_contact_id and mj_list_id are numbers where ours are. What is absent is there as
// Mailjet has it, 0 or "".
func renderMailjet(b []byte, e *Event, _ *Target) ([]byte, error) {
	f, err := e.fields()
	if err != nil {
		return b, err
	}
	event, isWord := spelling(mailjetWord, e.Type)
	o := newObject(b)
	o.string("event", event)
	o.unix("time", e.OccurredAt)
	o.idOrZero("MessageID", f.messageID, messageIDDigits)
	o.textOrEmpty("email", f.recipient)
	o.idOrZero("mj_campaign_id", f.campaignID, numberDigits)
	o.idOrZero("mj_contact_id", f.subscriberID, numberDigits)
	o.textOrEmpty("customcampaign", f.broadcastName)
	o.textOrEmpty("CustomID", f.customID)
	payload := ""
	if f.metaData != nil && string(f.metaData) != "{}" {
		payload = f.metaData.text() // Mailjet passes on what the sender gave, as a string
	}
	o.string("Payload", payload)
	o.mailjet(event, e.Type, f)
	return o.end(e, isWord)
}

// mailjet writes what events of one kind have.
func (o *object) mailjet(event, eventType string, f *fields) {
	switch event {
	case "sent":
		o.string("mj_message_id", f.messageID.text())
		o.string("smtp_reply", f.reply())
	case "click":
		o.textOrEmpty("url", f.linkURL)
	case "bounce", "blocked":
		isHard, _ := f.isPermanent()
		related, fault := mailjetError(eventType, isHard, f)
		o.bool("blocked", isHard || event == "blocked")
		o.bool("hard_bounce", isHard)
		o.string("error_related_to", related)
		o.string("error", fault)
		o.string("comment", f.reply())
	case "spam":
		o.textOrEmpty("source", f.source)
	case "unsub":
		o.idOrZero("mj_list_id", f.listID, numberDigits)
	}
	if slices.Contains([]string{"open", "click", "unsub"}, event) {
		o.textOrEmpty("ip", f.ipAddress)
		o.textOrEmpty("geo", f.geo)
		o.textOrEmpty("agent", f.userAgent)
	}
}

// mailjetWord has sent for the acceptance by the recipient's server, which is what Mailjet means by it, and for what others
// call so.
func mailjetWord(eventType string) string {
	switch eventType {
	case "email.delivered", "email.sent":
		return "sent"
	case "email.opened":
		return "open"
	case "email.clicked":
		return "click"
	case "email.bounced":
		return "bounce"
	case "email.blocked", "email.rejected", "email.failed", "email.suppressed":
		return "blocked"
	case "email.complained":
		return "spam"
	case "email.unsubscribed":
		return "unsub"
	}
	return ""
}
