package format

import (
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func found(t testing.TB, name string) Format {
	t.Helper()
	f, ok := Find(name)
	if !ok {
		t.Fatalf("there is no format %s", name)
	}
	return f
}

func TestSentences(t *testing.T) {
	t.Parallel()
	const all = `{"broadcast_name":"January Newsletter","link_url":"https://example.com/offer","form_name":"Signup","trigger_name":"Birthday","step_name":"Send day 3","workflow_name":"Onboarding","sender":"s@example.com","name":"CRM"}`
	for _, c := range []struct{ eventType, data, want string }{
		{"email.clicked.newsletter", all, "r@example.com clicked https://example.com/offer in January Newsletter"},
		{"email.clicked.newsletter", `{}`, "r@example.com clicked a link in a newsletter"},
		{"email.opened.transactional", `{"subject":"Your receipt"}`, "r@example.com opened Your receipt"},
		{"email.opened.transactional", `{}`, "r@example.com opened a transactional message"},
		{"email.bounced.hard", all, "January Newsletter to r@example.com bounced for good"},
		{"email.bounced.hard.mailbox", `{}`, "A message to r@example.com bounced for good"},
		{"email.inbound", all, "s@example.com wrote to r@example.com"},
		{"email.inbound", `{}`, "Somebody wrote to r@example.com"},
		{"form.submitted", all, "r@example.com submitted Signup"},
		{"trigger.fired", `{}`, "A trigger fired for r@example.com"},
		{"workflow.step", all, "r@example.com came to Send day 3 of Onboarding"},
		{"subscription.suspended", all, "CRM is suspended"},
		{"my.own", all, "my.own for r@example.com"},
	} {
		m, err := (&Event{Type: c.eventType, Recipient: "r@example.com", Data: []byte(c.data)}).message()
		if err != nil || m.title != c.want {
			t.Errorf("%s %s: %q, %v, want %q", c.eventType, c.data, m.title, err, c.want)
		}
	}
	if m, err := (&Event{Type: "my.own", Data: []byte("{}"), IsTest: true}).message(); err != nil || m.title != "Test: my.own" {
		t.Error(m, err)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"https://example.com/a?b=c&d=e#f": true, "http://[::1]/": true, "javascript:alert(1)": false, "/path": false, "https://": false, "": false,
		"https://example.com/a b": false, "https://example.com/>x": false, "https://example.com/a|b": false, "https://example.com/" + strings.Repeat("a", maxLink): false,
	} {
		if got := linkOf(text) != ""; got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// hostile is an event whose every text is as long as it may be, and of characters that are written in the most bytes.
func hostile(text string) *Event {
	data := map[string]string{}
	for _, d := range details() {
		data[d.key] = text
	}
	data["link_url"] = "https://example.com/" + strings.Repeat("&", maxLink-20)
	encoded, _ := json.Marshal(data)
	return &Event{Type: "email.clicked.newsletter", Recipient: text, OccurredAt: time.Unix(1705314600, 0), Data: encoded}
}

func hostileTexts() map[string]string {
	return map[string]string{
		"markup": strings.Repeat("<&>", 3000), "quotes": strings.Repeat(`"\`, 4000), "wide": strings.Repeat("😀", 2000), "separators": strings.Repeat("x\u2028\x01", 2000),
		"markdown": strings.Repeat("**a** [x](http://y) _b_ `c` <!channel> @here", 200),
	}
}

func TestMessagesKeepWithinTheirLimits(t *testing.T) {
	t.Parallel()
	for name, text := range hostileTexts() {
		e := hostile(text)
		form := formOf(t, e, nil)
		if n := utf8.RuneCountInString(form.Get("message")); n > 1024 || n < 900 {
			t.Errorf("%s: a message of %d characters", name, n)
		}
		if n := utf8.RuneCountInString(form.Get("title")); n > 250 || n < 80 || form.Has("url") {
			t.Errorf("%s: a title of %d characters, url %q", name, n, form.Get("url"))
		}
		var slack struct {
			Blocks []struct{ Text struct{ Text string } }
		}
		body := renderMessage(t, "slack", e)
		if err := json.Unmarshal(body, &slack); err != nil || len(slack.Blocks) != 2 {
			t.Fatalf("%s: %v %s", name, err, body)
		}
		if header, section := utf8.RuneCountInString(slack.Blocks[0].Text.Text), utf8.RuneCountInString(slack.Blocks[1].Text.Text); header > 150 || section > 3000 || section < 500 {
			t.Errorf("%s: a header of %d and a section of %d characters", name, header, section)
		}
		if body := renderMessage(t, "teams", e); !json.Valid(body) || len(body) > 28<<10 || len(body) < 2000 {
			t.Errorf("%s: a card of %d bytes", name, len(body))
		}
	}
}

func renderMessage(t *testing.T, name string, e *Event) []byte {
	t.Helper()
	body, err := found(t, name).One(e, &Target{})
	if err != nil || !utf8.Valid(body) {
		t.Fatal(err)
	}
	return body
}

func formOf(t *testing.T, e *Event, settings map[string]string) url.Values {
	t.Helper()
	body, err := found(t, "pushover").One(e, &Target{Settings: settings, Secrets: map[string]string{"user_key": "u", "api_token": "a"}})
	if err != nil {
		t.Fatal(err)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return form
}

func TestPushoverForm(t *testing.T) {
	t.Parallel()
	e := &Event{
		Type: "email.clicked.newsletter", Recipient: "r@example.com", CampaignID: "123", OccurredAt: time.Unix(1705314600, 0),
		Data: []byte(`{"link_url":"https://example.com/offer","broadcast_name":"January Newsletter","meta_data":{"plan":"pro"},"subject":null}`),
	}
	form := formOf(t, e, map[string]string{"sound": "pianobar", "priority": "1", "device": "phone"})
	want := url.Values{
		"token": {"a"}, "user": {"u"}, "title": {"r@example.com clicked https://example.com/offer in January Newsletter"},
		"message": {"Recipient: r@example.com\nNewsletter: January Newsletter\nLink: https://example.com/offer\nCampaign: 123\nEvent: email.clicked.newsletter\nTime: 2024-01-15 10:30:00 UTC"},
		"sound":   {"pianobar"}, "priority": {"1"}, "device": {"phone"}, "timestamp": {"1705314600"}, "url": {"https://example.com/offer"},
	}
	if form.Encode() != want.Encode() {
		t.Errorf("got %v, want %v", form, want)
	}
	form = formOf(t, e, map[string]string{"priority": "2"})
	retry, _ := strconv.Atoi(form.Get("retry"))
	if expire, _ := strconv.Atoi(form.Get("expire")); retry < 30 || expire > 10800 || expire < retry {
		t.Errorf("an emergency is repeated after %d s, for %d s", retry, expire)
	}
}

func TestPushoverAnswers(t *testing.T) {
	t.Parallel()
	f := found(t, "pushover")
	for answer, want := range map[string]bool{
		`{"status":1,"request":"647d2300"}`: true, `{"request":"x", "status" : 1 }`: true, `{"status":0,"errors":["x"]}`: false, `{"request":{"status":1}}`: false,
		`<html>`: false, ``: false, `{"status":1`: false, `{"status":"1"}`: false,
	} {
		if got := f.IsTaken([]byte(answer)); got != want {
			t.Errorf("%s: %v", answer, got)
		}
	}
	for status := 100; status < 600; status++ {
		if got, want := f.IsPermanent(status), status/100 == 4 && status != 429; got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}

func TestPushoverSounds(t *testing.T) {
	t.Parallel()
	sounds := map[string]string{
		"Mute": "none", "Vibrate": "vibrate", "Pushover": "pushover", "Bike": "bike", "Bugle": "bugle", "Cash Register": "cashregister", "Classical": "classical", "Cosmic": "cosmic",
		"Falling": "falling", "Gamelan": "gamelan", "Incoming": "incoming", "Intermission": "intermission", "Magic": "magic", "Mechanical": "mechanical", "Piano Bar": "pianobar",
		"Siren": "siren", "Space Alarm": "spacealarm", "Tug Boat": "tugboat", "Alien Alarm": "alien", "Climb": "climb", "Persistent": "persistent", "Echo": "echo", "Up Down": "updown", "None": "none",
	}
	if len(sounds) != 24 || len(pushoverSounds()) != 24 {
		t.Fatal("there are 24")
	}
	for label, name := range sounds {
		for _, given := range []string{label, strings.ToLower(label), strings.ToUpper(name), name} {
			if got, ok := PushoverSound(given); !ok || got != name {
				t.Errorf("%q: %q, want %q", given, got, name)
			}
		}
	}
	for _, given := range []string{"", "silent", "piano  bar", "default"} {
		if got, ok := PushoverSound(given); ok {
			t.Errorf("%q is %q", given, got)
		}
	}
	if names := PushoverSounds(); len(names) != 23 || names[0] != "pushover" {
		t.Error(names)
	}
}

func TestSlackMessage(t *testing.T) {
	t.Parallel()
	e := &Event{Type: "email.replied", Recipient: "<!channel>&co@example.com", OccurredAt: time.Unix(1705314600, 0), Data: []byte(`{"subject":"a > b","page_url":"https://example.com/?a=1&b=2"}`)}
	const want = `{"text":"&lt;!channel&gt;&amp;co@example.com replied to a &gt; b","blocks":[` +
		`{"type":"header","text":{"type":"plain_text","text":"<!channel>&co@example.com replied to a > b","emoji":false}},` +
		`{"type":"section","text":{"type":"mrkdwn","text":"*Recipient:* &lt;!channel&gt;&amp;co@example.com\n*Subject:* a &gt; b\n*Page:* <https://example.com/?a=1&amp;b=2|https://example.com/?a=1&amp;b=2>\n*Event:* email.replied\n*Time:* 2024-01-15 10:30:00 UTC","verbatim":true}}]}`
	if got := string(renderMessage(t, "slack", e)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// In a TextRun Markdown is text; in a TextBlock or a fact it would not be.
func TestTeamsHasNoMarkdown(t *testing.T) {
	t.Parallel()
	var message struct {
		Attachments []struct {
			Content struct{ Body []map[string]any }
		}
	}
	if err := json.Unmarshal(renderMessage(t, "teams", hostile(hostileTexts()["markdown"])), &message); err != nil {
		t.Fatal(err)
	}
	for _, element := range message.Attachments[0].Content.Body {
		runs, _ := element["inlines"].([]any)
		if element["type"] != "RichTextBlock" || len(runs) == 0 {
			t.Errorf("%v", element)
		}
		for _, run := range runs {
			if run.(map[string]any)["type"] != "TextRun" {
				t.Errorf("%v", run)
			}
		}
	}
}
