package format

import (
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
	"time"
)

// render is the body of an event with this data, of one format.
func render(t *testing.T, format, eventType, data string, change ...func(*Event)) string {
	t.Helper()
	f, ok := Find(format)
	if !ok {
		t.Fatalf("there is no format %s", format)
	}
	e := &Event{ID: "evt_1", Type: eventType, OccurredAt: time.Unix(1705314600, 999_000_000), Data: []byte(data)}
	for _, c := range change {
		c(e)
	}
	body, err := f.One(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestMembers: single members of bodies, by format, type and data; "" as the value: it must not be there.
func TestMembers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ format, eventType, data, name, want string }{
		{"mumara", "email.delivered", `{"campaign_id":"123456789012345"}`, "campaign_id", `123456789012345`},
		{"mumara", "email.delivered", `{"campaign_id":"1234567890123456"}`, "campaign_id", `"1234567890123456"`},
		{"mumara", "email.delivered", `{"campaign_id":123}`, "campaign_id", `123`},
		{"mumara", "email.delivered", `{"campaign_id":1.5}`, "campaign_id", `"1.5"`},
		{"mumara", "email.delivered", `{"campaign_id":"007"}`, "campaign_id", `"007"`},
		{"mumara", "email.delivered", `{"campaign_id":"0"}`, "campaign_id", `0`},
		{"mumara", "email.delivered", `{"campaign_id":"-1"}`, "campaign_id", `"-1"`},
		{"mumara", "email.delivered", `{"message_id":"42"}`, "message_id", `"42"`},
		{"mumara", "email.delivered", `{"message_id":42}`, "message_id", `"42"`},
		{"mumara", "email.delivered", `{"broadcast_name":"\ud800\u00e9"}`, "broadcast_name", `"\ud800\u00e9"`},
		{"mumara", "email.delivered", `{"broadcast_name":null}`, "broadcast_name", ""},
		{"mumara", "email.delivered", `{}`, "data", ""},
		{"mumara", "email.unsubscribed", `{"event":"x","n":1}`, "event", `"email.unsubscribed"`},
		{"mumara", "email.unsubscribed", `{"event":"x","n":1}`, "data", `{"event":"x","n":1}`},
		{"mumara", "email.bounced.hard", `{"bounce_type":"soft"}`, "bounce_type", `"hard"`},
		{"mumara", "shop.order.paid", `{"a":1}`, "event", `"shop.order.paid"`},
		{"mumara", "email.opened.app", `{}`, "event", `"opened"`},
		{"mumara-one", "form.submitted", `{"form_id":"f"}`, "event", `"form_submit"`},
		{"mumara-one", "form.submitted", `{"form_id":"f"}`, "data", `{"form_id":"f"}`},
		{"mumara-one", "email.clicked", `{"link_url":"u"}`, "url", `"u"`},
		{"mumara-classic", "email.clicked", `{"campaign_id":7,"subscriber_id":"8"}`, "campaign_id", `"7"`},
		{"mumara-classic", "email.clicked", `{"meta_data":{"a":[1, 2]}}`, "meta_data", `{"a":[1,2]}`},
		{"mumara-classic", "email.clicked", `{"meta_data":"x"}`, "meta_data", `{}`},
		{"mailjet", "email.opened", `{"message_id":"9223372036854775807"}`, "MessageID", `9223372036854775807`},
		{"mailjet", "email.opened", `{"message_id":"9223372036854775808"}`, "MessageID", `"9223372036854775808"`},
		{"mailjet", "email.opened", `{"subscriber_id":"1234567890123456"}`, "mj_contact_id", `"1234567890123456"`},
		{"mailjet", "email.opened", `{}`, "MessageID", `0`},
		{"mailjet", "email.opened", `{"meta_data":{"a": 1}}`, "Payload", `"{\"a\": 1}"`},
		{"mailjet", "email.opened", `{"meta_data":{}}`, "Payload", `""`},
		{"mailjet", "email.delivered", `{"smtp_code":250,"enhanced_code":"2.0.0","reason":"OK"}`, "smtp_reply", `"250 2.0.0 OK"`},
		{"mailjet", "email.delivered", `{"response":"250 done","reason":"OK"}`, "smtp_reply", `"250 done"`},
		{"sendgrid", "email.bounced.soft", `{}`, "type", `"blocked"`},
		{"sendgrid", "email.bounced.hard", `{}`, "type", `"bounce"`},
		{"sendgrid", "email.bounced", `{}`, "type", `"bounce"`},
		{"sendgrid", "email.bounced", `{"enhanced_code":"4.2.2"}`, "type", `"blocked"`},
		{"sendgrid", "email.bounced", `{"bounce_type":"undetermined","smtp_code":550}`, "type", `"bounce"`},
		{"sendgrid", "email.bounced", `{"bounce_type":"undetermined"}`, "type", `"bounce"`},
		{"sendgrid", "email.blocked", `{"smtp_code":550}`, "type", `"blocked"`},
		{"sendgrid", "email.bounced", `{"smtp_code":452}`, "type", `"blocked"`},
		{"sendgrid", "email.bounced", `{"smtp_code":550}`, "type", `"bounce"`},
		{"sendgrid", "email.bounced", `{"bounce_type":"hard","enhanced_code":"4.4.7"}`, "type", `"bounce"`},
		{"sendgrid", "email.rejected", `{"bounce_type":"hard"}`, "type", `"bounce"`},
		{"sendgrid", "email.rejected", `{}`, "type", `"blocked"`},
		{"sendgrid", "email.bounced", `{"enhanced_code":"5.1.1"}`, "status", `"5.1.1"`},
		{"sendgrid", "email.delayed", `{"attempt":3}`, "attempt", `"3"`},
		{"sendgrid", "email.opened", `{"message_id":"<a@b>"}`, "smtp-id", `"<a@b>"`},
		{"sendgrid", "email.opened", `{"message_id":"a@b"}`, "smtp-id", `"<a@b>"`},
		{"sendgrid", "email.opened", `{"meta_data":{"plan":"pro","email":"forged","plan":"twice"}}`, "plan", `"pro"`},
		{"sendgrid", "email.opened", `{"meta_data":{"email":"forged"}}`, "email", ""},
		{"sendgrid", "email.opened", `{"tags":["a","b"]}`, "category", `["a","b"]`},
		{"sendgrid", "email.opened", `{"tag":"t","category":"c","tags":["a"]}`, "category", `["a"]`},
		{"sendgrid", "email.opened", `{"tag":"t","category":"c"}`, "category", `"c"`},
		{"sendgrid", "email.opened", `{"tag":"t","tags":null}`, "category", `"t"`},
		{"cloudevents", "email.opened", `{"message_id":"m\u0007","recipient":"r"}`, "subject", `"m"`},
		{"cloudevents", "form.submitted", `{"recipient":"r"}`, "subject", `"r"`},
		{"cloudevents", "form.submitted", `{}`, "subject", ""},
	} {
		body := render(t, c.format, c.eventType, c.data)
		found, ok := members([]byte(strings.Trim(body, "[]")))
		got, times := "", 0
		for _, m := range found {
			if m.key == c.name {
				got, times = m.value, times+1
			}
		}
		if !ok || got != c.want || times > 1 {
			t.Errorf("%s of %s %s: %s is %s, want %s: %s", c.format, c.eventType, c.data, c.name, got, c.want, body)
		}
	}
}

// TestMailjetErrors: what a server said, as Mailjet's pairs.
func TestMailjetErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ eventType, data, want string }{
		{"email.bounced.hard", `{}`, "recipient/user unknown true"},
		{"email.bounced.soft", `{}`, "system/system issue false"},
		{"email.bounced", `{}`, "system/system issue false"},
		{"email.bounced", `{"smtp_code":550,"enhanced_code":"5.0.0"}`, "recipient/user unknown true"},
		{"email.bounced", `{"smtp_code":450}`, "system/system issue false"},
		{"email.bounced.soft", `{"smtp_code":550}`, "system/system issue false"},
		{"email.bounced.hard", `{"enhanced_code":"5.1.2"}`, "domain/invalid domain true"},
		{"email.bounced.hard", `{"enhanced_code":"5.2.1"}`, "recipient/mailbox inactive true"},
		{"email.bounced.soft", `{"enhanced_code":"4.2.2"}`, "recipient/quota exceeded false"},
		{"email.bounced.soft", `{"enhanced_code":"4.4.1"}`, "domain/no mail host false"},
		{"email.bounced.soft", `{"reason":"451 Greylisted, try later","enhanced_code":"4.2.2"}`, "domain/greylisted false"},
		{"email.bounced.hard", `{"reason":"550 Relay access denied","enhanced_code":"5.7.1"}`, "domain/relay/access denied true"},
		{"email.bounced.hard", `{"response":"550 No such user here"}`, "recipient/user unknown true"},
		{"email.bounced.soft", `{"reason":"connection timed out"}`, "system/connection issue false"},
		{"email.blocked", `{"smtp_code":554}`, "spam/sender blocked true"},
		{"email.blocked", `{"smtp_code":421}`, "spam/sender blocked false"},
		{"email.blocked", `{"reason":"rejected as spam"}`, "spam/content blocked false"},
		{"email.rejected", `{"enhanced_code":"5.7.1"}`, "spam/policy issue true"},
		{"email.suppressed", `{}`, "mailjet/preblocked false"},
		{"email.suppressed", `{"reason":"complained before"}`, "recipient/spam reporter false"},
		{"email.suppressed", `{"reason":"unsubscribed"}`, "recipient/blacklisted false"},
		{"email.failed", `{}`, "system/system issue false"},
		// The code decides, wherever it stands, but where servers give one for anything; then the words.
		{"email.bounced.hard", `{"enhanced_code":"5.1.1","reason":"User joe not listed in Domino Directory"}`, "recipient/user unknown true"},
		{"email.bounced.hard", `{"reason":"550 5.1.1 joe is blacklisted, policy, quota"}`, "recipient/user unknown true"},
		{"email.bounced.hard", `{"reason":"User joe not listed in Domino Directory"}`, "recipient/user unknown true"},
		{"email.bounced.hard", `{"enhanced_code":"5.1.2","reason":"Domain does not exist"}`, "domain/invalid domain true"},
		{"email.bounced.hard", `{"reason":"Domain does not exist"}`, "domain/invalid domain true"},
		{"email.bounced.hard", `{"enhanced_code":"5.2.2","reason":"relayed to mx2, mailbox full"}`, "recipient/quota exceeded true"},
		{"email.bounced.hard", `{"response":"552 5.2.2 relayed by a policy server"}`, "recipient/quota exceeded true"},
		{"email.bounced.hard", `{"reason":"relayed to mx2, mailbox full"}`, "recipient/quota exceeded true"},
		{"email.bounced.hard", `{"reason":"550 5.4.1 Recipient address rejected: Access denied"}`, "domain/relay/access denied true"},
		{"email.bounced.hard", `{"response":"550 5.5.0 Requested action not taken: mailbox unavailable"}`, "recipient/user unknown true"},
		{"email.bounced.hard", `{"enhanced_code":"5.5.0"}`, "system/protocol issue true"},
		{"email.bounced.hard", `{"enhanced_code":"5.7.1","reason":"Client host blocked using Spamhaus"}`, "spam/sender blocked true"},
		{"email.bounced.soft", `{"reason":"421 host 5.1.1.7 said: timed out"}`, "system/connection issue false"},
		{"email.bounced.hard", `{"reason":"typo in the domain: gmial.com"}`, "domain/typofix true"},
		{"email.failed", `{"reason":"error in template language, line 3"}`, "content/error in template language false"},
		{"email.bounced.hard", `{"reason":{"a":1},"smtp_code":[]}`, "recipient/user unknown true"},
	} {
		var got struct {
			Related string `json:"error_related_to"`
			Error   string `json:"error"`
			Hard    bool   `json:"hard_bounce"`
		}
		body := render(t, "mailjet", c.eventType, c.data)
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		text := got.Related + "/" + got.Error + map[bool]string{true: " true", false: " false"}[got.Hard]
		if text != c.want {
			t.Errorf("%s %s: %s, want %s", c.eventType, c.data, text, c.want)
		}
	}
}

// TestTestSends: a sample that somebody asked for says so, in every format.
func TestTestSends(t *testing.T) {
	t.Parallel()
	for _, name := range Names("web") {
		want := `"test":true`
		if name == "xml" {
			want = ` test="true"`
		}
		if body := render(t, name, "email.sent", `{}`, func(e *Event) { e.IsTest = true }); !strings.Contains(body, want) {
			t.Errorf("%s does not say that it is a test: %s", name, body)
		}
		if body := render(t, name, "email.sent", `{}`); strings.Contains(body, want) {
			t.Errorf("%s says that it is a test: %s", name, body)
		}
	}
}

// TestXML: what is awkward in XML, read by a parser.
func TestXML(t *testing.T) {
	t.Parallel()
	type field struct {
		Name   string   `xml:"name,attr"`
		Text   string   `xml:",chardata"`
		Fields []field  `xml:"field"`
		Items  []string `xml:"item"`
	}
	var got struct {
		XMLName   xml.Name `xml:"event"`
		ID        string   `xml:"id,attr"`
		Recipient string   `xml:"recipient_email"`
		Error     *struct {
			Code   string `xml:"smtp_code"`
			Reason string `xml:"reason"`
		} `xml:"error"`
		Fields []field `xml:"data>field"`
	}
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	body := render(t, "xml", "email.bounced", `{"recipient":"data","smtp_code":550,"reason":"<a>&\u0000\u000b\ufffe]]>\ud83d\ude00\ud800","a \"<b":[1,"x",null,{"c":true}],"n":null,"o":{"k":"\n"},"deep":`+deep+`}`,
		func(e *Event) { e.Recipient = "column" })
	if err := xml.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if got.ID != "evt_1" || got.Recipient != "column" || got.Error == nil || got.Error.Code != "550" || got.Error.Reason != "<a>&���]]>😀�" {
		t.Errorf("%+v of %s", got, body)
	}
	if len(got.Fields) != 3 || got.Fields[0].Name != `a "<b` || strings.Join(got.Fields[0].Items, "|") != "1|x||" || got.Fields[1].Fields[0].Text != "\n" {
		t.Errorf("%+v of %s", got.Fields, body)
	}
	if n := strings.Count(body, `<field name="a">`); n != deepestXML-1 || !strings.Contains(body, "{&#34;a&#34;:") {
		t.Errorf("%d levels of %s", n, body)
	}
	if body := render(t, "xml", "email.opened", `{"reason":"x"}`); strings.Contains(body, "<error>") {
		t.Errorf("an open is no failure: %s", body)
	}
}

// TestNoFormatQuotesTheEvent: an error is stored and logged.
func TestNoFormatQuotesTheEvent(t *testing.T) {
	t.Parallel()
	for _, name := range Names("web") {
		f, _ := Find(name)
		for _, data := range []string{"", "null", `[1]`, `"hush"`, `{"hush"`, `{"hush":`, `{"\hush":1}`, `{"x":"hush`} {
			body, err := f.One(&Event{Type: "email.sent", Data: []byte(data)}, nil)
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("%s of %s: %v", name, data, err)
			}
			if err == nil && (data == "" || data == "null" || data == "[1]") {
				t.Errorf("%s renders %q as %s", name, data, body)
			}
		}
	}
}
