package format

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"
	"unicode/utf8"
)

// A member is a key of a JSON object, and its value without spaces.
type member struct{ key, value string }

// members reads an object by encoding/json: the oracle of eachMember and of what is rendered.
func members(object []byte) (found []member, ok bool) {
	if !json.Valid(object) {
		return nil, false
	}
	decoder := json.NewDecoder(bytes.NewReader(object))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return nil, false
	}
	for decoder.More() {
		key, err := decoder.Token()
		var value json.RawMessage
		if err != nil || decoder.Decode(&value) != nil {
			return nil, false
		}
		found = append(found, member{key.(string), compact(value)})
	}
	return found, true
}

func compact(value []byte) string {
	var out bytes.Buffer
	json.Compact(&out, value)
	return out.String()
}

func addObjects(f *testing.F, add func(string)) {
	f.Helper()
	for _, text := range []string{
		`{}`, ` { "a" : 1 , "b" : [ 1 , { "c" : "}" } ] } `, `{"a":"\\","b":"\""}`, `{"\u0072ecipient":"x"}`, `{"a":null,"b":"","c":false}`, `{"a":1,"a":2}`, `{"":""}`,
		`{"a":"\ud800"}`, `{"a":1e999999}`, `{"a":{"b":[[[[]]]]}}`, `[]`, `null`, `{`, `{"a"`, `{"a":}`, `{,}`, `{"a":1,}`, `"{}"`, "{\"a\":\"\u2028\x7f\"}", `{"recipient":"x","message_class":"y"}`,
	} {
		add(text)
	}
}

// FuzzRenderer: of every object that type json takes, the body of format standard is JSON with the members that the contract
// says, and that of every other format is JSON without a name given twice, or XML.
func FuzzRenderer(f *testing.F) {
	addObjects(f, func(data string) {
		f.Add("email.sent", "r@example.com", "<a&b>\"\\\n\u2028", "", []byte(data))
		f.Add("email.opened.newsletter", "", "m", "192.0.2.1", []byte(data))
	})
	for _, eventType := range []string{"email.bounced.hard", "email.delivered", "email.unsubscribed", "form.submitted", ""} {
		f.Add(eventType, "r", "<0>", "", []byte(`{"meta_data":{"email":1,"a":2,"a":3,"\ud800":{}},"tags":["x"],"campaign_id":1e3,"subscriber_id":"007","list_id":{},"smtp_code":5,"reason":"\u0001\ufffe]]>"}`))
	}
	f.Fuzz(func(t *testing.T, eventType, recipient, messageID, ip string, data []byte) {
		given, ok := members(data)
		for _, text := range []string{eventType, recipient, messageID, ip, string(data)} {
			ok = ok && utf8.ValidString(text) // so is every text in PostgreSQL
		}
		e := &Event{ID: "evt_1", Type: eventType, OccurredAt: time.UnixMicro(1), Recipient: recipient, MessageID: messageID, DedicatedIP: ip, Data: data}
		for _, name := range Names("web") {
			f, _ := Find(name)
			if body, err := f.One(e, nil); ok && (err != nil || !isWellFormed(f, body)) {
				t.Fatalf("%q is rendered in format %s as %q, %v", data, name, body, err)
			}
		}
		body, err := standard(t).One(e, nil)
		if !ok {
			return // it did not panic
		}
		var envelope struct {
			ID, Type string
			Data     json.RawMessage
		}
		if err != nil || json.Unmarshal(body, &envelope) != nil || envelope.ID != e.ID || envelope.Type != eventType {
			t.Fatalf("%q is rendered as %q, %v", data, body, err)
		}
		var want []member
		columns := e.columns()
		for _, c := range columns {
			quoted, _ := json.Marshal(c.value)
			want = append(want, member{c.name, string(quoted)})
		}
		for _, m := range given {
			taken := slices.ContainsFunc(columns, func(c column) bool { return c.name == m.key })
			if !taken && m.value != "null" && m.value != `""` {
				want = append(want, m)
			}
		}
		got, _ := members(envelope.Data)
		if !slices.EqualFunc(got, want, sameMember) {
			t.Fatalf("%q is rendered as %q, with %q, want %q", data, body, got, want)
		}
	})
}

// isWellFormed says that a parser takes the body, and that no member of an object of ours is there twice.
func isWellFormed(f Format, body []byte) bool {
	if f.ContentType == "application/xml" {
		return parseXML(body) == nil
	}
	if f.Arrays == OnlyArrays {
		body = bytes.TrimSuffix(bytes.TrimPrefix(body, []byte("[")), []byte("]"))
	}
	found, ok := members(body)
	names := map[string]bool{}
	for _, m := range found {
		ok = ok && !names[m.key]
		names[m.key] = true
	}
	return ok
}

// sameMember compares values as they are read: encoding/json may write a text in another way.
func sameMember(a, b member) bool {
	var x, y any
	return a.key == b.key && (a.value == b.value || json.Unmarshal([]byte(a.value), &x) == nil && json.Unmarshal([]byte(b.value), &y) == nil && x != nil && x == y)
}

// FuzzMembers: an object is cut where a parser would cut it, and anything else is refused or cut without a panic.
func FuzzMembers(f *testing.F) {
	addObjects(f, func(data string) { f.Add([]byte(data)) })
	f.Fuzz(func(t *testing.T, object []byte) {
		var got []member
		err := eachMember(object, func(key, value []byte) error {
			name, err := plainKey(key)
			got = append(got, member{string(name), compact(value)})
			return err
		})
		want, ok := members(object)
		if !ok {
			return
		}
		if err != nil || !slices.EqualFunc(got, want, func(a, b member) bool {
			return a.value == b.value && (a.key == b.key || !utf8.Valid(object))
		}) {
			t.Fatalf("%q is cut into %q, %v, want %q", object, got, err, want)
		}
	})
}
