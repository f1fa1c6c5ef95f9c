package format

// teamsText is the most characters of all lines together: with JSON's escapes a message stays below the 28 KB that Teams takes.
const teamsText = 2500

var _ = register(Format{Name: "teams", Channel: "teams", ContentType: "application/json", Render: renderTeams})

// renderTeams writes what the webhook of a Teams workflow takes: a message with one Adaptive Card 1.4. Its texts are TextRuns, in
// which, other than in TextBlocks and facts, Markdown is no more than text.
func renderTeams(b []byte, e *Event, _ *Target) ([]byte, error) {
	m, err := e.message()
	if err != nil {
		return nil, err
	}
	b = append(b, `{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","contentUrl":null,"content":{`+
		`"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.4",`+
		`"body":[{"type":"RichTextBlock","inlines":[{"type":"TextRun","size":"medium","weight":"bolder","text":`...)
	b = appendString(b, m.title)
	b = append(b, `}]}`...)
	used := 0
	for _, l := range m.lines {
		if used += len([]rune(l.label)) + len([]rune(l.value)); used > teamsText {
			break
		}
		b = append(b, `,{"type":"RichTextBlock","spacing":"small","inlines":[{"type":"TextRun","weight":"bolder","text":`...)
		b = appendString(b, l.label+": ")
		b = append(b, `},{"type":"TextRun","text":`...)
		b = appendString(b, l.value)
		b = append(b, `}]}`...)
	}
	b = append(b, ']')
	if m.link != "" {
		b = append(b, `,"actions":[{"type":"Action.OpenUrl","title":"Open","url":`...)
		b = appendString(b, m.link)
		b = append(b, `}]`...)
	}
	return append(b, `}}]}`...), nil
}
