package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// timestampFormat is RFC 3339, UTC, three decimals.
const timestampFormat = "2006-01-02T15:04:05.000Z"

// body is the request body in format standard. It is rendered once for all deliveries of the event, and is the same
// over retries.
func (e *event) body() ([]byte, error) {
	e.renderOnce.Do(func() { e.rendered, e.renderFailed = renderStandard(e) })
	return e.rendered, e.renderFailed
}

// renderStandard writes {"id", "type", "timestamp", "data"} in this order. data holds the columns that have a value,
// then what a leaf type says, then the keys of the event's own data in their order; on a clash the column wins.
// Absent is left out, never null or "".
func renderStandard(e *event) ([]byte, error) {
	data := gjson.ParseBytes(e.data)
	if !data.IsObject() {
		return nil, fmt.Errorf("data is not a JSON object")
	}
	var b bytes.Buffer
	b.Grow(len(e.data) + 512)
	b.WriteString(`{"id":`)
	writeString(&b, e.id.String())
	b.WriteString(`,"type":`)
	writeString(&b, e.eventType)
	b.WriteString(`,"timestamp":`)
	writeString(&b, e.occurredAt.UTC().Format(timestampFormat))
	if e.isTest {
		b.WriteString(`,"test":true`)
	}
	b.WriteString(`,"data":`)
	o := object{buffer: &b}
	columns := e.columns()
	for _, c := range columns {
		o.key(c.name)
		writeString(&b, c.value)
	}
	data.ForEach(func(key, value gjson.Result) bool {
		name := key.String()
		if !slices.ContainsFunc(columns, func(c column) bool { return c.name == name }) && value.Type != gjson.Null && value.Raw != `""` {
			o.key(name)
			b.WriteString(value.Raw)
		}
		return true
	})
	o.end()
	b.WriteByte('}')
	return b.Bytes(), nil
}

type column struct{ name, value string }

// columns are the event's fields beside its data that have a value, in the order of the contract.
func (e *event) columns() []column {
	columns := []column{
		{"recipient", e.recipient}, {"message_id", e.messageID}, {"campaign_id", e.campaignID}, {"sending_domain", e.sendingDom},
		{"sending_node", e.sendingNode}, {"bridge", e.bridge}, {"dedicated_ip", e.dedicatedIP},
	}
	// A leaf fills the field that it is made of.
	for _, parent := range []column{
		{"email.bounced.", "bounce_type"}, {"email.opened.", "message_class"}, {"email.clicked.", "message_class"},
	} {
		if leaf, ok := strings.CutPrefix(e.eventType, parent.name); ok && !strings.Contains(leaf, ".") {
			columns = append(columns, column{parent.value, leaf})
		}
	}
	return slices.DeleteFunc(columns, func(c column) bool { return c.value == "" })
}

// object writes the keys of one JSON object.
type object struct {
	buffer *bytes.Buffer
	begun  bool
}

func (o *object) key(name string) {
	if o.begun {
		o.buffer.WriteByte(',')
	} else {
		o.buffer.WriteByte('{')
	}
	o.begun = true
	writeString(o.buffer, name)
	o.buffer.WriteByte(':')
}

func (o *object) end() {
	if !o.begun {
		o.buffer.WriteByte('{')
	}
	o.buffer.WriteByte('}')
}

// writeString writes s as JSON, without the escapes for HTML that encoding/json adds by default.
func writeString(b *bytes.Buffer, s string) {
	encoder := json.NewEncoder(b)
	encoder.SetEscapeHTML(false)
	encoder.Encode(s) //nolint:errcheck // a string into a buffer
	b.Truncate(b.Len() - 1)
}
