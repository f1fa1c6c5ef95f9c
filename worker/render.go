package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
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
// then what a leaf type says, then the keys of the event's own data in their order; on a clash the earlier wins.
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
	for _, c := range e.columns() {
		if c.value != "" {
			o.key(c.name)
			writeString(&b, c.value)
		}
	}
	data.ForEach(func(key, value gjson.Result) bool {
		if name := key.String(); !o.has(name) && value.Type != gjson.Null && value.Raw != `""` {
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

// columns are the event's fields beside its data, in the order of the contract.
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
	return columns
}

// object writes the keys of one JSON object and knows which it has written.
type object struct {
	buffer *bytes.Buffer
	keys   []string
}

func (o *object) has(name string) bool {
	for _, k := range o.keys {
		if k == name {
			return true
		}
	}
	return false
}

func (o *object) key(name string) {
	o.buffer.WriteByte("{,"[min(1, len(o.keys))])
	o.keys = append(o.keys, name)
	writeString(o.buffer, name)
	o.buffer.WriteByte(':')
}

func (o *object) end() {
	if len(o.keys) == 0 {
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
