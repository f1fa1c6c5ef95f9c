package format

import (
	"strings"
	"testing"
	"time"
)

func standard(t testing.TB) Format {
	t.Helper()
	f, ok := Find("standard")
	if !ok {
		t.Fatal("there is no format standard")
	}
	return f
}

func TestBodyOfFormatStandard(t *testing.T) {
	t.Parallel()
	at := time.Date(2024, 1, 15, 10, 30, 0, 123_456_000, time.UTC)
	for _, c := range []struct {
		name  string
		event *Event
		want  string // of data
	}{
		{"nothing but a type", &Event{Type: "email.sent", Data: []byte("{}")}, `{}`},
		{
			"columns in their order, then data in its own",
			&Event{
				Type: "email.delivered", Recipient: "r@example.com", MessageID: "abc", CampaignID: "123", SendingDomain: "mail.example.com", SendingNode: "smtp1",
				Bridge: "cred-7", DedicatedIP: "203.0.113.9", Data: []byte(`{"z": 1, "a": {"y": null, "b": ""}}`),
			},
			`{"recipient":"r@example.com","message_id":"abc","campaign_id":"123","sending_domain":"mail.example.com","sending_node":"smtp1","bridge":"cred-7","dedicated_ip":"203.0.113.9","z":1,"a":{"y": null, "b": ""}}`,
		},
		{"the column wins a clash", &Event{Type: "email.sent", Recipient: "column", Data: []byte(`{"recipient": "data", "n": 0}`)}, `{"recipient":"column","n":0}`},
		{"absent is left out", &Event{Type: "email.sent", Data: []byte(`{"a": null, "b": "", "c": false, "d": [], "e": {}}`)}, `{"c":false,"d":[],"e":{}}`},
		{"a leaf fills its field", &Event{Type: "email.bounced.hard", Data: []byte(`{"reason":"x"}`)}, `{"bounce_type":"hard","reason":"x"}`},
		{"once", &Event{Type: "email.clicked.newsletter", Data: []byte(`{"message_class":"newsletter","link_url":"u"}`)}, `{"message_class":"newsletter","link_url":"u"}`},
		{"no escapes for HTML, those of JSON", &Event{Type: "email.sent", Recipient: "<a&b>\"\\\n\u2028é", Data: []byte(`{"k<":"é<"}`)}, `{"recipient":"<a&b>\"\\\n\u2028é","k<":"é<"}`},
		{"escaped keys are the same keys", &Event{Type: "email.sent", Recipient: "r", Data: []byte(`{"\u0072ecipient":"x","big":12345678901234567890}`)}, `{"recipient":"r","big":12345678901234567890}`},
	} {
		c.event.ID, c.event.OccurredAt = "evt_1", at
		body, err := standard(t).One(c.event, nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := `{"id":"` + c.event.ID + `","type":"` + c.event.Type + `","timestamp":"2024-01-15T10:30:00.123Z","data":` + c.want + `}`
		if string(body) != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, body, want)
		}
	}
}

func TestABodyThatCannotBeRendered(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", "null", "[1]", `"x"`} {
		e := &Event{Type: "email.sent", Data: []byte(data)}
		if _, err := standard(t).One(e, nil); err == nil || strings.Contains(err.Error(), "x") {
			t.Errorf("data %q: %v", data, err)
		}
	}
}
