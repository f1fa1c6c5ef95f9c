package httpapi

import (
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"mailhook/db/format"
)

// A Timestamp is a time as the API writes it: RFC 3339, UTC, three decimals, Z.
type Timestamp time.Time

// MarshalJSON writes the time.
func (t Timestamp) MarshalJSON() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format(`"2006-01-02T15:04:05.000Z"`)), nil
}

// Schema is that of a time, for OpenAPI.
func (Timestamp) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Examples: []any{"2024-01-15T10:30:00.000Z"}}
}

func optionalTimestamp(t *time.Time) *Timestamp {
	if t == nil {
		return nil
	}
	at := Timestamp(*t)
	return &at
}

// An Object is a JSON object that is passed on as it is.
type Object json.RawMessage

// MarshalJSON writes the object.
func (o Object) MarshalJSON() ([]byte, error) { return json.RawMessage(o).MarshalJSON() }

// Schema is that of any object.
func (Object) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

// dataOf is the data of an event as receivers of format standard get it. What is no object adds nothing.
func dataOf(e format.Event) Object {
	data, err := format.AppendData(nil, &e)
	if err != nil {
		e.Data = []byte("{}")
		data, _ = format.AppendData(nil, &e) // of an object: never
	}
	return data
}

// excerptText is a stored excerpt as text: receivers send NUL and bad UTF-8.
func excerptText(excerpt []byte) string {
	text := string(excerpt)
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	return strings.ReplaceAll(text, "\x00", "\uFFFD")
}

// timeOf is the time in a UUIDv7, in milliseconds.
func timeOf(id uuid.UUID) time.Time {
	millis := int64(0)
	for _, b := range id[:6] {
		millis = millis<<8 | int64(b)
	}
	return time.UnixMilli(millis).UTC()
}

// floorID is the least id of the millisecond of t: every UUIDv7 made later is greater.
func floorID(t time.Time) uuid.UUID {
	var id uuid.UUID
	millis := max(t.UnixMilli(), 0)
	for i := 5; i >= 0; i-- {
		id[i] = byte(millis)
		millis >>= 8
	}
	return id
}
