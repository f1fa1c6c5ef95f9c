package format

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

var _ = register(Format{
	Name: "sendgrid", Channel: "web", ContentType: "application/json", Arrays: OnlyArrays, HasPublicKey: true, Render: renderSendGrid, Sign: signSendGrid,
})

// renderSendGrid writes one object of SendGrid's Event Webhook, whose bodies are arrays. timestamp is in Unix seconds;
// sg_event_id is the id of the event; members of meta_data stand beside the others, as unique arguments do. Absent is left out.
func renderSendGrid(b []byte, e *Event, _ *Target) ([]byte, error) {
	f, err := e.fields()
	if err != nil {
		return b, err
	}
	event, isWord := spelling(sendGridWord, e.Type)
	o := newObject(b)
	o.text("email", f.recipient)
	o.unix("timestamp", e.OccurredAt)
	o.string("event", event)
	o.string("sg_event_id", e.ID)
	o.text("sg_message_id", f.messageID)
	if f.messageID != nil {
		o.string("smtp-id", angled(f.messageID.text()))
	}
	o.raw("category", f.categories())
	o.id("marketing_campaign_id", f.campaignID, numberDigits)
	o.text("marketing_campaign_name", f.broadcastName)
	o.sendGrid(event, e.Type, f)
	if isWord && f.metaData.isObject() {
		if err := o.uniqueArguments(f.metaData); err != nil {
			return b, err
		}
	}
	return o.end(e, isWord)
}

// sendGrid writes what events of one kind have.
func (o *object) sendGrid(event, eventType string, f *fields) {
	reply := f.reply()
	switch event {
	case "delivered", "deferred":
		o.text("ip", f.dedicatedIP)
		if reply != "" {
			o.string("response", reply)
		}
		if event == "deferred" {
			o.text("attempt", f.attempt)
		}
	case "bounce":
		o.text("ip", f.dedicatedIP)
		o.string("reason", reply)
		o.text("status", f.enhancedCode)
		o.string("type", sendGridBounce(eventType, f))
	case "dropped":
		o.string("reason", reply)
		o.text("status", f.enhancedCode)
	case "open", "click":
		o.text("ip", f.ipAddress)
		o.text("useragent", f.userAgent)
		o.text("url", f.linkURL)
	}
}

// sendGridBounce is bounce for what stays, blocked for what passes. A bounce of which nothing is known stays, and what a server
// refused is blocked, whatever its code is.
func sendGridBounce(eventType string, f *fields) string {
	isPermanent, isKnown := f.isPermanent()
	isBounce := strings.HasPrefix(eventType, "email.bounced") || f.bounceType.text() == "hard"
	if isBounce && (isPermanent || !isKnown) {
		return "bounce"
	}
	return "blocked"
}

// categories are the event's tags, by whichever of the names of it the host gives them.
func (f *fields) categories() raw {
	for _, v := range []raw{f.tags, f.category} {
		if v != nil {
			return v
		}
	}
	return f.tag
}

// angled is a message id as the header has it.
func angled(id string) string {
	if strings.HasPrefix(id, "<") {
		return id
	}
	return "<" + id + ">"
}

// uniqueArguments writes the members of meta_data that are called like none of SendGrid's own.
func (o *object) uniqueArguments(metaData raw) error {
	var written []string
	return eachMember(metaData, func(key, value []byte) error {
		name := raw(key).text()
		if slices.Contains(sendGridNames(), name) || slices.Contains(written, name) {
			return nil
		}
		written = append(written, name)
		o.b = append(append(append(append(o.b, ','), key...), ':'), value...)
		return nil
	})
}

func sendGridNames() []string {
	return []string{
		"email", "timestamp", "event", "sg_event_id", "sg_message_id", "smtp-id", "category", "marketing_campaign_id", "marketing_campaign_name",
		"ip", "response", "attempt", "reason", "status", "type", "useragent", "url", "test", "data",
	}
}

// sendGridWord has processed for all that is before the first attempt, and bounce, with the type blocked, for what a server refused.
func sendGridWord(eventType string) string {
	switch eventType {
	case "email.queued", "email.sent", "email.received":
		return "processed"
	case "email.delivered":
		return "delivered"
	case "email.delayed":
		return "deferred"
	case "email.bounced", "email.blocked", "email.rejected":
		return "bounce"
	case "email.failed", "email.suppressed":
		return "dropped"
	case "email.opened":
		return "open"
	case "email.clicked":
		return "click"
	case "email.complained":
		return "spamreport"
	case "email.unsubscribed":
		return "unsubscribe"
	}
	return ""
}

// signSendGrid signs as SendGrid's Signed Event Webhook: ECDSA over the time and the body, by the newest key alone.
func signSendGrid(header http.Header, at time.Time, body []byte, keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("no key to sign with")
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signature, err := signECDSA(keys[0], append([]byte(timestamp), body...))
	if err != nil {
		return err
	}
	header.Set("X-Twilio-Email-Event-Webhook-Signature", signature)
	header.Set("X-Twilio-Email-Event-Webhook-Timestamp", timestamp)
	return nil
}
