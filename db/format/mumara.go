package format

// mumaraTime is ISO 8601, UTC, whole seconds.
const mumaraTime = "2006-01-02T15:04:05Z"

// numberDigits are the most that an id may have to go out as a number: every JSON parser reads those exactly.
const numberDigits = 15

var _ = register(Format{Name: "mumara", Channel: "web", ContentType: "application/json", Render: renderMumara})

// renderMumara writes the flat object of Mumara Campaigns: event, timestamp, email, campaign_id (a number), broadcast_name,
// sending_domain, sending_node, message_id, and by event link_url, bounce_type, complaint_type. Absent is left out.
func renderMumara(b []byte, e *Event, _ *Target) ([]byte, error) {
	return renderCampaign(b, e, mumaraWord, "link_url")
}

// mumaraWord spells the ten events of Mumara Campaigns as the documented one is: the label in lower case.
func mumaraWord(eventType string) string {
	switch eventType {
	case "email.received":
		return "received"
	case "email.delivered":
		return "delivered"
	case "email.bounced":
		return "bounced"
	case "email.rejected", "email.blocked":
		return "rejected"
	case "email.delayed":
		return "delayed"
	case "email.opened":
		return "opened"
	case "email.opened.newsletter":
		return "newsletter_opened"
	case "email.opened.transactional":
		return "transactional_opened"
	case "email.clicked":
		return "clicked"
	case "email.clicked.newsletter":
		return "newsletter_clicked"
	case "email.clicked.transactional":
		return "transactional_clicked"
	case "email.complained":
		return "complaints"
	}
	return ""
}

// renderCampaign writes that object in the words of a platform, with its name for the URL of a click.
func renderCampaign(b []byte, e *Event, word func(string) string, link string) ([]byte, error) {
	f, err := e.fields()
	if err != nil {
		return b, err
	}
	event, isWord := spelling(word, e.Type)
	o := newObject(b)
	o.string("event", event)
	o.time("timestamp", e.OccurredAt, mumaraTime)
	o.text("email", f.recipient)
	o.id("campaign_id", f.campaignID, numberDigits)
	o.text("broadcast_name", f.broadcastName)
	o.text("sending_domain", f.sendingDomain)
	o.text("sending_node", f.sendingNode)
	o.text("message_id", f.messageID)
	if isWord {
		o.text(link, f.linkURL)
		o.text("bounce_type", f.bounceType)
		o.text("complaint_type", f.complaintType)
	}
	return o.end(e, isWord)
}
