package worker

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// What the random subscriptions and events of TestMatchingIsWhatTheContractSays are drawn from.

// chance is true once in n times. Small numbers come too often for a comparison with one of a small range.
func chance(rt *rapid.T, label string, n int) bool {
	return rapid.IntRange(0, 1<<16).Draw(rt, label)%n == n-1
}

func text(s string) *string { return &s }

// anyOf is one of these values, NULL or ”.
func anyOf(values ...string) *rapid.Generator[*string] {
	return rapid.Custom(func(rt *rapid.T) *string {
		switch n := rapid.IntRange(-2, 2*len(values)-1).Draw(rt, "value"); n {
		case -2:
			return nil
		case -1:
			return text("")
		default:
			return text(values[n/2])
		}
	})
}

// rarely is a value of the second generator once in a while, else of the first.
func rarely[T any](mostly, sometimes *rapid.Generator[T]) *rapid.Generator[T] {
	return rapid.Custom(func(rt *rapid.T) T {
		if chance(rt, "rarely", 60) {
			return sometimes.Draw(rt, "odd")
		}
		return mostly.Draw(rt, "usual")
	})
}

var (
	accountNames = []string{"default", "a", "A"}
	domainNames  = []string{"mail.example.com", "Mail.Example.COM", "other.example", "OTHER.example", "mail.example.co"}
	nodeNames    = []string{"smtp1", "SMTP1", "smtp2"}
	bridgeNames  = []string{"cred-7", "Cred-7", "cred-8"}
	namedNodes   = []string{
		"email", "*", "email.bounced", "email.bounced.hard", "email.bounced.soft", "email.opened", "email.opened.newsletter", "email.clicked",
		"email.clicked.transactional", "email.bounce", "emails", "form", "form.submitted", "shop.order.paid", "shop.order", "shop", "subscription", "subscription.failing", "subscriptions",
	}
	writtenTypes = []string{
		"email.sent", "email.bounced", "email.bounced.hard", "email.bounced.soft.greylisted", "email.opened", "email.clicked", "email.opened.newsletter", "email",
		"emails", "email_sent", "form.submitted", "shop.order", "shop.order.paid", "shop.order.paid.late", "shop.orders", "subscription.failing", "subscription.failing.again", "subscriptions.due", "x9_",
		strings.Repeat("a", 98) + ".b",
	}
	badTypes = []string{"", ".", "email.", ".email", "email..sent", "Email.sent", "email.Sent", "9email", "email.9", "_x", "email sent", "email.sent\n", "émail", "*", strings.Repeat("a", 99) + ".b"}
	// What is written in one group is one address.
	addresses = []ipSpelling{
		{text("203.0.113.9"), "A", false}, {text("203.0.113.9/32"), "A", false}, {text("203.0.113.9/24"), "A", false},
		{text("203.0.113.10"), "B", false},
		{text("2001:db8::1"), "C", false}, {text("2001:DB8:0:0::0001"), "C", false}, {text("2001:db8::1/64"), "C", false}, {text("2001:db8::0.0.0.1"), "C", false},
		{text("2001:db8::1:0"), "D", false},
		{text("::ffff:203.0.113.9"), "E", false}, {text("::FFFF:CB00:7109"), "E", false},
	}
	badAddresses   = []ipSpelling{{text("203.0.113.256"), "", true}, {text("localhost"), "", true}, {text("2001:db8::1%eth0"), "", true}, {text("203.0.113.9/33"), "", true}}
	recipientNames = []string{"r@example.com", "R@Sub.EXAMPLE.com", "nobody", "a@b@example.com", "x@"}
	campaignNames  = []string{"7", "c-7", "C-7", "true"}
	// What filters look into. Every place and value has a condition below that it meets, and one that it does not.
	filterData = []dataSpelling{
		{text: text(`{"plan": "pro", "list_id": 7, "tag": "vip"}`)}, {text: text(`{"plan": ["free", "Pro"], "list_ids": ["8", 7], "tags": ["new", "vip"]}`)},
		{text: text(`{"plan": null, "list_id": 7.50, "category": ["vip"], "tags": "vip"}`)}, {text: text(`{"plan": true, "list_id": "07", "tag": 7}`)},
		{text: text(`{"meta_data": {"country": "DE", "plan": "pro"}}`)}, {text: text(`{"meta_data": [{"country": "AT"}, {"country": ["CH", "DK"]}, 7]}`)},
		{text: text(`{"meta.data": {"a\"b": "pro"}, "recipient_domain": "example.com", "campaign_id": "c-7", "recipient": "pro"}`)},
		{text: text(`{"plan": "pr\ud800", "tag": "vip"}`), unreadable: true}, {text: text(`{"plan": "päck", "tags": [` + strings.Repeat(`"x",`, 200) + `"vip"]}`)},
		{text: text(`{"tags": [["vip"], "vip"], "plan": "pro", "meta_data": [{"country": [["DE"]]}]}`)}, {text: text(`{"tags": ["vip", "[,["], "plan": "pro", "meta_data": {"country": ["DE"]}}`)},
		{text: text(`{"tags": [` + strings.Repeat(`"x",`, 199) + `"vip", "new"], "list_id": -7, "plan": "proper"}`)},
	}
	conditions = []wantedCondition{
		{Field: "campaign_id", Any: []string{"7", "C-7"}}, {Field: "list_id", Any: []string{"7"}}, {Field: "list_id", Any: []string{"7.5", "8", "-7"}}, {Field: "list_id", Any: []string{"07"}},
		{Field: "tag", Any: []string{"vip"}}, {Field: "tag", Any: []string{"7", "new"}}, {Field: "recipient_domain", Any: []string{"example.com"}},
		{Field: "recipient_domain", Any: []string{"sub.example.com", "nobody"}}, {Field: "message_class", Any: []string{"newsletter"}}, {Field: "message_class", Any: []string{"transactional", "marketing"}},
		{Path: []string{"plan"}, Any: []string{"pro"}}, {Path: []string{"plan"}, Any: []string{"true", "Pro", "null"}}, {Path: []string{"plan"}, Prefix: []string{"pr", "pä"}}, {Path: []string{"plan"}, Prefix: []string{"P", "t"}},
		{Path: []string{"meta_data", "country"}, Prefix: []string{"D"}}, {Path: []string{"meta_data", "country"}, Any: []string{"AT", "CH"}}, {Path: []string{"meta_data"}, Any: []string{"7"}},
		{Path: []string{"meta.data", `a"b`}, Any: []string{"pro"}}, {Path: []string{"recipient"}, Prefix: []string{"r@", "pro"}}, {Path: []string{"bounce_type"}, Any: []string{"hard"}}, {Path: []string{"sending_node"}, Any: []string{"smtp1"}},
	}
	plainData = []dataSpelling{
		{}, {text: text("null")}, {text: text("{}")}, {text: text(`{"list_id": "7"}`)},
		{text: text(`{"bounce_type": "hard"}`), bounceType: "hard"}, {text: text(`{"a": 1, "bounce_type": "soft", "message_class": "newsletter"}`), bounceType: "soft", messageClass: "newsletter"},
		{text: text(`{"bounce_type": "Hard", "message_class": null}`)}, {text: text(`{"bounce_type": ["hard"]}`)}, {text: text(`{"meta_data": {"bounce_type": "hard"}}`)},
		{text: text(`{"message_class": "transactional"}`), messageClass: "transactional"}, {text: text(`{"message_class": "marketing"}`), messageClass: "marketing"},
		// As they stand they look like what cannot be read back, and can.
		{text: text(`{"x": "\\u0000"}`)}, {text: text(`{"x": "1e99999"}`)}, {text: text(`{"x": 1e-1000}`)},
		{text: text(`{"x":"` + strings.Repeat("x", 262144-8) + `"}`)},
	}
	badData = []dataSpelling{
		{text: text("[1]"), refused: true}, {text: text(`"text"`), refused: true}, {text: text("5"), refused: true}, {text: text("true"), refused: true},
		{text: text(`{"x": "\u0000"}`), refused: true}, {text: text(`{"x": 1e999999}`), refused: true},
		{text: text(`{"x":"` + strings.Repeat("x", 262144-7) + `"}`), refused: true},
	}
	longest = []*string{text(strings.Repeat("é", 500)), text(strings.Repeat("x", 1000))}
	tooLong = []*string{text(strings.Repeat("é", 501)), text(strings.Repeat("x", 1001))}
)

func (m *matcher) anyEvent(rt *rapid.T) wroteEvent {
	lengths := rapid.SampledFrom(append(slices.Clone(longest), tooLong...))
	dataOf := rapid.SampledFrom(append(slices.Clone(plainData), filterData...))
	e := wroteEvent{
		account:   anyOf(accountNames...).Draw(rt, "account"),
		eventType: rarely(rapid.SampledFrom(writtenTypes), rapid.SampledFrom(badTypes)).Draw(rt, "type"),
		recipient: rarely(anyOf(recipientNames...), lengths).Draw(rt, "recipient"),
		campaign:  rarely(anyOf(campaignNames...), lengths).Draw(rt, "campaign"),
		domain:    rarely(anyOf(domainNames...), lengths).Draw(rt, "domain"),
		node:      rarely(anyOf(nodeNames...), lengths).Draw(rt, "node"),
		bridge:    rarely(anyOf(bridgeNames...), lengths).Draw(rt, "bridge"),
		ip:        rarely(rapid.SampledFrom(append([]ipSpelling{{}, {text: text("")}}, addresses...)), rapid.SampledFrom(badAddresses)).Draw(rt, "ip"),
		dedupeKey: rarely(rapid.SampledFrom([]*string{nil, nil, nil, text(""), text("k1"), text("k2"), text("K1")}), lengths).Draw(rt, "dedupe key"),
		data:      rarely(dataOf, rapid.SampledFrom(badData)).Draw(rt, "data"),
		occurredAt: rarely(rapid.SampledFrom([]*string{nil, text("2024-01-15 10:30:00+00")}),
			rapid.SampledFrom([]*string{text("0044-03-15 12:00:00+00 BC"), text("10000-01-01 00:00:00+00"), text("infinity"), text("-infinity")})).Draw(rt, "occurred at"),
	}
	if strings.HasPrefix(e.eventType, "subscription.") || chance(rt, "about", 12) {
		about := rapid.SampledFrom(m.subscriptions).Draw(rt, "about whom").id
		e.data = dataSpelling{subscriptionID: "sub_" + strings.ReplaceAll(about, "-", "")}
		e.data.text = text(`{"subscription_id": "` + e.data.subscriptionID + `"}`)
	}
	if minutes := rapid.IntRange(-20, 21).Draw(rt, "inserted at"); minutes <= 20 {
		at := m.base.Add(time.Duration(minutes) * time.Minute)
		e.insertedAt = &at
	}
	return e
}

func ipTexts(ips []ipSpelling) []string {
	texts := []string{}
	for _, ip := range ips {
		texts = append(texts, *ip.text)
	}
	return texts
}

func someOf(rt *rapid.T, label string, values []string) []string {
	return rapid.SliceOfN(rapid.SampledFrom(values), 1, 4).Draw(rt, label)
}

// anyFilter is mostly none, so that events pass all four often enough.
func anyFilter(rt *rapid.T, label string, values []string) []string {
	if !chance(rt, label+" set", 4) {
		return []string{}
	}
	return someOf(rt, label, values)
}

// anyConditions are mostly none or one.
func anyConditions(rt *rapid.T) []wantedCondition {
	if !chance(rt, "conditions", 2) {
		return nil
	}
	return rapid.SliceOfN(rapid.SampledFrom(conditions), 1, 2).Draw(rt, "conditions")
}

func conditionsJSON(conditions []wantedCondition) []byte {
	text, err := json.Marshal(append([]wantedCondition{}, conditions...))
	if err != nil {
		panic(err)
	}
	return text
}
