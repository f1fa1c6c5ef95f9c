package format

import (
	"os"
	"strings"
	"testing"
	"time"
)

// documented are the events that docs/receivers.md shows, by format.
func documented() map[string]*Event {
	at := time.Date(2024, 1, 15, 10, 30, 0, 123_000_000, time.UTC)
	event := func(eventType, data string) *Event {
		return &Event{
			ID: "evt_018d0c8a5b3f7a2e9c41d6f0b8a37e55", Type: eventType, OccurredAt: at,
			Recipient: "r@example.com", MessageID: "abc123xyz", CampaignID: "123", Data: []byte(data),
		}
	}
	click := event("email.clicked.newsletter", `{"broadcast_name":"January Newsletter","list_id":"7","subscriber_id":"320","link_url":"https://example.com/offer","ip_address":"192.0.2.1","user_agent":"Mozilla/5.0 (X11; Linux x86_64)","meta_data":{"plan":"pro"}}`)
	bounce := event("email.bounced.hard", `{"subscriber_id":"320","smtp_code":550,"enhanced_code":"5.1.1","reason":"user unknown"}`)
	return map[string]*Event{"mumara": click, "mumara-one": click, "mumara-classic": click, "sendgrid": click, "mailjet": bounce, "xml": bounce, "cloudevents": bounce}
}

// TestDocs: docs/receivers.md has a row for each type that another platform has a word for, and of each format a section and
// a sample.
func TestDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/receivers.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, e := range samples(t) {
		row, words := "| `"+e.Type+"` |", 0
		for _, word := range []func(string) string{mumaraWord, mumaraOneWord, mumaraClassicWord, mailjetWord, sendGridWord} {
			event, isWord := spelling(word, e.Type)
			if !isWord {
				row += " – |"
				continue
			}
			words++
			row += " `" + event + "` |"
		}
		if words > 0 && !strings.Contains(text, "\n"+row+"\n") {
			t.Errorf("docs/receivers.md lacks the row\n%s", row)
		}
	}
	for name, e := range documented() {
		f, _ := Find(name)
		body, err := f.One(e, nil)
		if err != nil || !strings.Contains(text, "\n"+string(body)+"\n") {
			t.Errorf("docs/receivers.md lacks the sample of format %s, %v\n%s", name, err, body)
		}
	}
	for _, name := range Names("web") {
		if !strings.Contains(text, "\n### `"+name+"`\n") && name != "standard" {
			t.Errorf("docs/receivers.md has no section %s", name)
		}
	}
}
