package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// timestampFormat is RFC 3339, UTC, three decimals.
const timestampFormat = "2006-01-02T15:04:05.000Z"

// renderStandard writes {"id", "type", "timestamp", "data"} in this order. data holds the columns that have a value,
// then what a leaf type says, then the keys of the event's own data in their order, byte for byte; on a clash the
// column wins. Absent is left out, never null or "".
func renderStandard(e *event) ([]byte, error) {
	b := make([]byte, 0, len(e.data)+512)
	b = append(b, `{"id":"`...)
	b = append(b, e.text...)
	b = append(b, `","type":`...)
	b = appendString(b, e.eventType)
	b = append(b, `,"timestamp":"`...)
	b = e.occurredAt.UTC().AppendFormat(b, timestampFormat)
	b = append(b, '"')
	if e.isTest {
		b = append(b, `,"test":true`...)
	}
	b = append(b, `,"data":{`...)
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
	err := eachMember(e.data, func(key, value []byte) error {
		name, err := plainKey(key)
		if err != nil {
			return err
		}
		absent := string(value) == "null" || string(value) == `""`
		if !absent && !slices.ContainsFunc(columns, func(c column) bool { return c.name == string(name) }) {
			comma()
			b = append(append(append(b, key...), ':'), value...)
		}
		return nil
	})
	return append(b, "}}"...), err
}

type column struct{ name, value string }

// columns are the event's fields beside its data that have a value, in the order of the contract.
func (e *event) columns() []column {
	columns := make([]column, 0, 8)
	for _, c := range [...]column{
		{"recipient", e.recipient}, {"message_id", e.messageID}, {"campaign_id", e.campaignID}, {"sending_domain", e.sendingDom},
		{"sending_node", e.sendingNode}, {"bridge", e.bridge}, {"dedicated_ip", e.dedicatedIP},
	} {
		if c.value != "" {
			columns = append(columns, c)
		}
	}
	// A leaf fills the field that it is made of.
	for _, parent := range [...]column{
		{"email.bounced.", "bounce_type"}, {"email.opened.", "message_class"}, {"email.clicked.", "message_class"},
	} {
		if leaf, ok := strings.CutPrefix(e.eventType, parent.name); ok && leaf != "" && !strings.Contains(leaf, ".") {
			columns = append(columns, column{parent.value, leaf})
		}
	}
	return columns
}

// appendString writes s as JSON, without the escapes for HTML that encoding/json adds by default.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendEscaped(b []byte, s string) []byte {
	buffer := bytes.NewBuffer(b)
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	encoder.Encode(s) //nolint:errcheck // a string into a buffer
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
}

// plainKey is a quoted key without quotes and escapes.
func plainKey(key []byte) ([]byte, error) {
	if bytes.IndexByte(key, '\\') < 0 {
		return key[1 : len(key)-1], nil
	}
	var name string
	err := json.Unmarshal(key, &name)
	return []byte(name), err
}

var errNoObject = errors.New("data is not a JSON object")

// eachMember calls f with each member of a JSON object: the key with its quotes, and the value, as they stand there.
// The object is known to be JSON, because PostgreSQL's type json has taken it; so this only looks for where things
// end. A parser would read every number to write it again: it took a seventh of the worker's CPU time.
func eachMember(object []byte, f func(key, value []byte) error) error {
	rest := skipSpace(object)
	if len(rest) == 0 || rest[0] != '{' {
		return errNoObject
	}
	rest = skipSpace(rest[1:])
	for len(rest) > 0 && rest[0] != '}' {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		n := valueEnd(rest)
		key := rest[:n]
		rest = skipSpace(rest[n:])
		if len(key) < 2 || key[0] != '"' || len(rest) == 0 || rest[0] != ':' {
			return errNoObject
		}
		rest = skipSpace(rest[1:])
		n = valueEnd(rest)
		if n == 0 {
			return errNoObject
		}
		if err := f(key, rest[:n]); err != nil {
			return err
		}
		rest = skipSpace(rest[n:])
	}
	if len(rest) == 0 {
		return errNoObject
	}
	return nil
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// valueEnd is the length of the value that b begins with.
func valueEnd(b []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case depth == 0 && (c == ',' || c == ':' || c == ' ' || c == '\t' || c == '\r' || c == '\n'):
			return i
		}
	}
	return len(b)
}
