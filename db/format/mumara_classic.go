package format

var _ = register(Format{Name: "mumara-classic", Channel: "web", ContentType: "application/json", Render: renderMumaraClassic})

// renderMumaraClassic writes the object that Mumara's article on instant analysis has for a click, for all of its events: event,
// timestamp (Unix seconds), campaign_id, list_id, subscriber_email, subscriber_id, link_url, ip_address, user_agent (all of
// them strings) and meta_data (an object). Absent is left out, but for meta_data, which is {} then.
func renderMumaraClassic(b []byte, e *Event, _ *Target) ([]byte, error) {
	f, err := e.fields()
	if err != nil {
		return b, err
	}
	event, isWord := spelling(mumaraClassicWord, e.Type)
	o := newObject(b)
	o.string("event", event)
	o.unix("timestamp", e.OccurredAt)
	o.text("campaign_id", f.campaignID)
	o.text("list_id", f.listID)
	o.text("subscriber_email", f.recipient)
	o.text("subscriber_id", f.subscriberID)
	o.text("link_url", f.linkURL)
	o.text("ip_address", f.ipAddress)
	o.text("user_agent", f.userAgent)
	if !f.metaData.isObject() {
		f.metaData = raw("{}")
	}
	o.raw("meta_data", f.metaData)
	return o.end(e, isWord)
}

func mumaraClassicWord(eventType string) string {
	switch eventType {
	case "email.sent":
		return "sent"
	case "email.delivered":
		return "delivered"
	case "email.opened":
		return "opened"
	case "email.clicked":
		return "clicked"
	case "email.bounced":
		return "bounced"
	case "email.bounced.hard":
		return "hard_bounced"
	case "email.bounced.soft":
		return "soft_bounced"
	case "email.complained":
		return "complained"
	case "email.unsubscribed":
		return "unsubscribed"
	}
	return ""
}
