package format

import "slices"

var _ = register(Format{
	Name: "standard", Channel: Web, ContentType: "application/json", Arrays: OptionalArrays, Render: renderStandard,
})

// timestampFormat is RFC 3339, UTC, three decimals.
const timestampFormat = "2006-01-02T15:04:05.000Z"

// renderStandard writes {"id", "type", "timestamp", "data"} in this order. data holds the columns that have a value,
// then what a leaf type says, then the keys of the event's own data in their order, byte for byte; on a clash the
// column wins. Absent is left out, never null or "".
func renderStandard(b []byte, e *Event, _ *Target) ([]byte, error) {
	b = append(b, `{"id":"`...)
	b = append(b, e.ID...)
	b = append(b, `","type":`...)
	b = appendString(b, e.Type)
	b = append(b, `,"timestamp":"`...)
	b = e.OccurredAt.UTC().AppendFormat(b, timestampFormat)
	b = append(b, '"')
	if e.IsTest {
		b = append(b, `,"test":true`...)
	}
	b, err := AppendData(append(b, `,"data":`...), e)
	return append(b, '}'), err
}

// AppendData writes the data of an event in format standard. It fails where the event's own data is no JSON object.
func AppendData(b []byte, e *Event) ([]byte, error) {
	b = append(b, '{')
	begun := len(b)
	comma := func() {
		if len(b) > begun {
			b = append(b, ',')
		}
	}
	columns := e.columns()
	for _, c := range columns {
		comma()
		b = append(append(append(b, '"'), c.name...), `":`...)
		b = appendString(b, c.value)
	}
	err := eachMember(e.Data, func(key, value []byte) error {
		name, err := plainKey(key)
		if err != nil {
			return err
		}
		if !isAbsent(value) && !slices.ContainsFunc(columns, func(c column) bool { return c.name == string(name) }) {
			comma()
			b = append(append(append(b, key...), ':'), value...)
		}
		return nil
	})
	return append(b, '}'), err
}
