package format

var _ = register(Format{Name: "mumara-one", Channel: "web", ContentType: "application/json", Render: renderMumaraOne})

// renderMumaraOne writes the object of Mumara ONE: as Mumara Campaigns, but for the words, and url in the place of link_url.
// Its receivers verify by X-Signature, which every request has.
func renderMumaraOne(b []byte, e *Event, _ *Target) ([]byte, error) {
	return renderCampaign(b, e, mumaraOneWord, "url")
}

func mumaraOneWord(eventType string) string {
	switch eventType {
	case "email.delivered":
		return "delivery"
	case "email.opened":
		return "open"
	case "email.clicked":
		return "click"
	case "email.bounced":
		return "bounce"
	case "email.complained":
		return "complaint"
	case "email.unsubscribed":
		return "unsubscribe"
	case "form.submitted":
		return "form_submit"
	case "trigger.fired":
		return "trigger_action"
	case "workflow.step":
		return "workflow_step"
	}
	return ""
}
