package format

import (
	"bytes"
	"encoding/xml"
	"slices"
	"strings"
)

var _ = register(Format{Name: "xml", Channel: "web", ContentType: "application/xml", Render: renderXML})

// deepestXML is how deep objects and arrays become elements; what is deeper is text in JSON.
const deepestXML = 32

// renderXML writes an XML 1.0 document: event, with the attribute id (that of webhook-id), and in it
//
//	event_type, timestamp (RFC 3339, UTC, milliseconds), recipient_email, message_id
//	error          of a failure: bounce_type, smtp_code, enhanced_code, reason
//	data           all else: <field name="…">; in an object's again fields, in an array's <item>
//
// Absent is left out. Characters that XML 1.0 cannot carry become U+FFFD.
func renderXML(b []byte, e *Event, _ *Target) ([]byte, error) {
	f, err := e.fields()
	if err != nil {
		return b, err
	}
	x := &document{*bytes.NewBuffer(b)}
	x.WriteString(xml.Header + `<event id="` + e.ID + `"`)
	if e.IsTest {
		x.WriteString(` test="true"`)
	}
	x.WriteByte('>')
	x.element("event_type", "", e.Type)
	x.element("timestamp", "", e.OccurredAt.UTC().Format(timestampFormat))
	x.element("recipient_email", "", f.recipient.text())
	x.element("message_id", "", f.messageID.text())
	told := []string{"recipient", "message_id"}
	if isFailure(e.Type) {
		of := []string{"bounce_type", "smtp_code", "enhanced_code", "reason"}
		x.WriteString("<error>")
		for _, name := range of {
			x.element(name, "", f.of(name).text())
		}
		x.WriteString("</error>")
		told = append(told, of...)
	}
	err = x.data(e, told)
	x.WriteString("</event>")
	return x.Bytes(), err
}

func isFailure(eventType string) bool {
	for _, node := range []string{"email.delayed", "email.bounced", "email.rejected", "email.blocked", "email.failed", "email.suppressed"} {
		if eventType == node || strings.HasPrefix(eventType, node+".") {
			return true
		}
	}
	return false
}

// A document is XML that is being written.
type document struct{ bytes.Buffer }

// element writes one with text in it, and the attribute name where that is not ""; nothing for "".
func (x *document) element(tag, name, text string) {
	if text != "" {
		x.open(tag, name)
		xml.EscapeText(x, []byte(text)) //nolint:errcheck // into memory
		x.close(tag)
	}
}

func (x *document) open(tag, name string) {
	x.WriteString("<" + tag)
	if name != "" {
		x.WriteString(` name="`)
		xml.EscapeText(x, []byte(name)) //nolint:errcheck // as above
		x.WriteByte('"')
	}
	x.WriteByte('>')
}

func (x *document) close(tag string) { x.WriteString("</" + tag + ">") }

// data writes what has not been told: columns, then the event's own, of which a column wins a clash.
func (x *document) data(e *Event, told []string) error {
	x.WriteString("<data>")
	for _, c := range e.columns() {
		if !slices.Contains(told, c.name) {
			x.element("field", c.name, c.value)
			told = append(told, c.name)
		}
	}
	err := eachMember(e.Data, func(key, value []byte) error {
		name := raw(key).text()
		if slices.Contains(told, name) || isAbsent(value) {
			return nil
		}
		return x.value("field", name, value, 1)
	})
	x.WriteString("</data>")
	return err
}

// value writes any JSON value as an element.
func (x *document) value(tag, name string, value raw, depth int) error {
	if len(value) == 0 {
		return errNoObject
	}
	x.open(tag, name)
	defer x.close(tag)
	switch {
	case value[0] == '{' && depth < deepestXML:
		return eachMember(value, func(key, value []byte) error { return x.value("field", raw(key).text(), value, depth+1) })
	case value[0] == '[' && depth < deepestXML:
		return eachElement(value, func(value []byte) error { return x.value("item", "", value, depth+1) })
	case string(value) != "null":
		xml.EscapeText(x, []byte(value.text())) //nolint:errcheck // as above
	}
	return nil
}
