package format

import "strings"

var _ = register(Format{
	Name: "cloudevents", Channel: "web", ContentType: "application/cloudevents+json", ArrayContentType: "application/cloudevents-batch+json",
	Arrays: OptionalArrays, Render: renderCloudEvents,
})

// cloudEventsSource is the context of all events: ids are unique within it, over all installations.
const cloudEventsSource = "/mailhook"

// renderCloudEvents writes an event of CloudEvents 1.0 in structured JSON: specversion, id (that of webhook-id), source, type (our
// name), subject (the message, else the recipient), time, datacontenttype, data (as in format standard).
func renderCloudEvents(b []byte, e *Event, _ *Target) ([]byte, error) {
	o := newObject(b)
	o.string("specversion", "1.0")
	o.string("id", e.ID)
	o.string("source", cloudEventsSource)
	o.string("type", e.Type)
	subject, err := e.subject()
	if err != nil {
		return b, err
	}
	if subject != "" {
		o.string("subject", subject)
	}
	o.time("time", e.OccurredAt, timestampFormat)
	if e.IsTest {
		o.bool("test", true) // an extension attribute
	}
	o.string("datacontenttype", "application/json")
	o.name("data")
	o.b, err = AppendData(o.b, e)
	return append(o.b, '}'), err
}

// subject is what the event is about, without what CloudEvents forbids in a string: controls.
func (e *Event) subject() (string, error) {
	subject := e.MessageID
	if subject == "" {
		f, err := e.fields()
		if err != nil {
			return "", err
		}
		if subject = f.messageID.text(); subject == "" {
			subject = f.recipient.text()
		}
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, subject), nil
}
