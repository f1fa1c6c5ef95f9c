package format

import "strings"

// slackSection is the most characters that Slack takes in the text of a section, slackHeader in that of a header.
const (
	slackSection = 3000
	slackHeader  = 150
)

var _ = register(Format{Name: "slack", Channel: "slack", ContentType: "application/json", Render: renderSlack})

// renderSlack writes what an incoming webhook of Slack takes: {"text", "blocks"}. text is what notifications show. The title is
// plain text; in the rest &, < and > are escaped and nothing is parsed for mentions and links (verbatim) but the link itself.
func renderSlack(b []byte, e *Event, _ *Target) ([]byte, error) {
	m, err := e.message()
	if err != nil {
		return nil, err
	}
	b = append(b, `{"text":`...)
	b = appendString(b, escapeSlack(m.title))
	b = append(b, `,"blocks":[{"type":"header","text":{"type":"plain_text","text":`...)
	b = appendString(b, cut(m.title, slackHeader))
	b = append(b, `,"emoji":false}},{"type":"section","text":{"type":"mrkdwn","text":`...)
	b = appendString(b, slackText(m))
	return append(b, `,"verbatim":true}}]}`...), nil
}

// slackText has the lines that fit, each whole: a cut could fall into an escape.
func slackText(m message) string {
	var text strings.Builder
	used := 0
	for _, l := range m.lines {
		value := escapeSlack(l.value)
		if m.link != "" && l.value == cut(m.link, maxValue) {
			value = "<" + escapeSlack(m.link) + "|" + value + ">"
		}
		line := "*" + l.label + ":* " + value + "\n"
		if n := len([]rune(line)); used+n <= slackSection {
			text.WriteString(line)
			used += n
		}
	}
	return strings.TrimSuffix(text.String(), "\n")
}

func escapeSlack(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
