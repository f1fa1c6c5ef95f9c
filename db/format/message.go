package format

import (
	"encoding/json"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A message is an event in words, for people: what the channels beside web show. Its texts have no control characters.
type message struct {
	// title says what happened in one sentence, at most maxTitle characters.
	title string
	lines []line
	// link is an http or https URL without spaces that the event is about; empty: none.
	link string
}

// A line is a detail: one of the event's own fields under a name for people, at most maxValue characters.
type line struct{ label, value string }

// How long texts may become, in characters. A word within a title is shorter, so that the end of the sentence is seen.
const (
	maxTitle = 250
	maxWord  = 80
	maxValue = 300
	maxLink  = 2000
)

// message says what happened. Nested values of the data are left out.
func (e *Event) message() (message, error) {
	texts, err := e.texts()
	if err != nil {
		return message{}, err
	}
	m := message{title: sentence(e.Type, texts)}
	if e.IsTest {
		m.title = "Test: " + m.title
	}
	m.title = cut(m.title, maxTitle)
	for _, d := range details() {
		if value := texts[d.key]; value != "" {
			m.lines = append(m.lines, line{d.label, cut(value, maxValue)})
		}
	}
	m.lines = append(m.lines, line{"Event", e.Type}, line{"Time", e.OccurredAt.UTC().Format("2006-01-02 15:04:05 UTC")})
	for _, key := range []string{"link_url", "page_url"} {
		if m.link == "" {
			m.link = linkOf(texts[key])
		}
	}
	return m, nil
}

// texts are the fields of the event that have a value and are no array or object, as people read them, by key.
func (e *Event) texts() (map[string]string, error) {
	texts := map[string]string{}
	err := eachMember(e.Data, func(key, value []byte) error {
		name, err := plainKey(key)
		if err != nil || len(value) == 0 {
			return err
		}
		switch value[0] {
		case '{', '[', 'n': // null
			return nil
		case '"':
			var text string
			if err := json.Unmarshal(value, &text); err != nil {
				return errNoObject // not that error: it may quote the event
			}
			texts[string(name)] = plain(text)
		default:
			texts[string(name)] = string(value)
		}
		return nil
	})
	for _, c := range e.columns() {
		texts[c.name] = plain(c.value)
	}
	return texts, err
}

// plain is a text as one line: what a terminal or a chat would take for more than text is a space.
func plain(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text))
}

// cut shortens a text to so many characters, the last of them an ellipsis.
func cut(text string, most int) string {
	if len(text) <= most || utf8.RuneCountInString(text) <= most {
		return text
	}
	n := 0
	for i := range text {
		if n++; n == most {
			return strings.TrimRight(text[:i], " ") + "…"
		}
	}
	return text
}

// linkOf is the text if it is a URL that may be followed, as it can be written between < and >.
func linkOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || len(text) > maxLink || strings.ContainsAny(text, " <>|\"\\^`{}") {
		return ""
	}
	return text
}

type detail struct{ label, key string }

// details are the fields that are shown, in this order.
func details() []detail {
	return []detail{
		{"Recipient", "recipient"}, {"Sender", "sender"}, {"Subject", "subject"}, {"Newsletter", "broadcast_name"}, {"Link", "link_url"},
		{"Bounce", "bounce_type"}, {"Complaint", "complaint_type"}, {"Reason", "reason"}, {"SMTP code", "smtp_code"}, {"Enhanced code", "enhanced_code"}, {"Source", "source"},
		{"Form", "form_name"}, {"Page", "page_url"}, {"Trigger", "trigger_name"}, {"Workflow", "workflow_name"}, {"Step", "step_name"}, {"Action", "action"},
		{"Subscription", "name"}, {"Since", "since"}, {"Failures in a row", "consecutive_failures"}, {"Last outcome", "last_outcome"},
		{"Campaign", "campaign_id"}, {"List", "list_id"}, {"Sending domain", "sending_domain"}, {"IP address", "ip_address"}, {"Message", "message_id"},
	}
}
