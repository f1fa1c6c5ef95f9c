package worker

import (
	"strings"
	"testing"
	"time"

	"mailhook/db"
)

func TestBodyOfFormatStandard(t *testing.T) {
	t.Parallel()
	at := time.Date(2024, 1, 15, 10, 30, 0, 123_456_000, time.UTC)
	for _, c := range []struct {
		name  string
		event *event
		want  string // of data
	}{
		{"nothing but a type", &event{eventType: "email.sent", data: []byte("{}")}, `{}`},
		{
			"columns in their order, then data in its own",
			&event{
				eventType: "email.delivered", recipient: "r@example.com", messageID: "abc", campaignID: "123", sendingDom: "mail.example.com", sendingNode: "smtp1",
				bridge: "cred-7", dedicatedIP: "203.0.113.9", data: []byte(`{"z": 1, "a": {"y": null, "b": ""}}`),
			},
			`{"recipient":"r@example.com","message_id":"abc","campaign_id":"123","sending_domain":"mail.example.com","sending_node":"smtp1","bridge":"cred-7","dedicated_ip":"203.0.113.9","z":1,"a":{"y": null, "b": ""}}`,
		},
		{"the column wins a clash", &event{eventType: "email.sent", recipient: "column", data: []byte(`{"recipient": "data", "n": 0}`)}, `{"recipient":"column","n":0}`},
		{"absent is left out", &event{eventType: "email.sent", data: []byte(`{"a": null, "b": "", "c": false, "d": [], "e": {}}`)}, `{"c":false,"d":[],"e":{}}`},
		{"a leaf fills its field", &event{eventType: "email.bounced.hard", data: []byte(`{"reason":"x"}`)}, `{"bounce_type":"hard","reason":"x"}`},
		{"once", &event{eventType: "email.clicked.newsletter", data: []byte(`{"message_class":"newsletter","link_url":"u"}`)}, `{"message_class":"newsletter","link_url":"u"}`},
		{"no escapes for HTML, those of JSON", &event{eventType: "email.sent", recipient: "<a&b>\"\\\n\u2028é", data: []byte(`{"k<":"é<"}`)}, `{"recipient":"<a&b>\"\\\n\u2028é","k<":"é<"}`},
		{"escaped keys are the same keys", &event{eventType: "email.sent", recipient: "r", data: []byte(`{"\u0072ecipient":"x","big":12345678901234567890}`)}, `{"recipient":"r","big":12345678901234567890}`},
	} {
		c.event.id = db.EventID{InsertedAt: at, ID: 7, Installation: "0123abcd"}
		c.event.occurredAt = at
		body, err := c.event.body()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := `{"id":"` + c.event.id.String() + `","type":"` + c.event.eventType + `","timestamp":"2024-01-15T10:30:00.123Z","data":` + c.want + `}`
		if string(body) != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, body, want)
		}
	}
}

func TestABodyThatCannotBeRendered(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", "null", "[1]", `"x"`} {
		e := &event{eventType: "email.sent", data: []byte(data)}
		if _, err := e.body(); err == nil || strings.Contains(err.Error(), "x") {
			t.Errorf("data %q: %v", data, err)
		}
	}
}
