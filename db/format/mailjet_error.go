package format

import "strings"

// A mailjetFault is a pair of error_related_to and error, and by what it is known: the end of an enhanced code, after its class,
// or words of the server's text in lower case.
type mailjetFault struct {
	related, fault string
	codes, words   []string
}

// mailjetFaults come in the order in which they are tried. Their pairs are Mailjet's.
func mailjetFaults() []mailjetFault {
	return []mailjetFault{
		{"domain", "greylisted", nil, []string{"greylist", "graylist"}},
		{"domain", "relay/access denied", nil, []string{"relay", "access denied"}},
		{"recipient", "user unknown", []string{"1.1", "1.6"}, []string{"user unknown", "unknown user", "no such user", "does not exist", "no mailbox here"}},
		{"recipient", "mailbox inactive", []string{"2.1"}, []string{"inactive", "mailbox disabled", "account disabled"}},
		{"recipient", "quota exceeded", []string{"2.2"}, []string{"quota", "mailbox full", "mailbox is full"}},
		{"recipient", "spam reporter", nil, []string{"complained", "spam report"}},
		{"recipient", "blacklisted", nil, []string{"unsubscribed"}},
		{"domain", "invalid domain", []string{"1.2"}, []string{"domain not found", "no such domain", "nxdomain"}},
		{"domain", "no mail host", []string{"1.10", "4.1", "4.3", "4.4"}, []string{"no mail host", "no mx"}},
		{"mailjet", "duplicate in campaign", nil, []string{"duplicate"}},
		{"mailjet", "preblocked", nil, []string{"bounced before", "suppress"}},
		{"spam", "sender blocked", nil, []string{"blacklist", "blocklist", "listed", "spamhaus"}},
		{"spam", "content blocked", []string{"6.0", "7.2"}, []string{"spam", "content"}},
		{"spam", "policy issue", []string{"7.0", "7.1"}, []string{"policy"}},
		{"system", "connection issue", []string{"4.2"}, []string{"timeout", "timed out", "connection"}},
		{"system", "protocol issue", []string{"5.0", "5.1", "5.2"}, []string{"protocol"}},
	}
}

// mailjetError says what a failure is related to, in Mailjet's pairs: by the server's words, else by its enhanced code, else by
// the type of the event.
func mailjetError(eventType string, f *fields) (related, fault string) {
	text := strings.ToLower(f.reason.text() + " " + f.response.text())
	_, code, _ := strings.Cut(f.enhancedCode.text(), ".")
	byCode := ""
	for _, m := range mailjetFaults() {
		for _, words := range m.words {
			if strings.Contains(text, words) {
				return m.related, m.fault
			}
		}
		for _, c := range m.codes {
			if byCode == "" && c == code {
				byCode, related, fault = c, m.related, m.fault
			}
		}
	}
	if byCode != "" {
		return related, fault
	}
	switch {
	case eventType == "email.suppressed":
		return "mailjet", "preblocked"
	case eventType == "email.blocked":
		return "spam", "sender blocked"
	case eventType == "email.rejected":
		return "spam", "policy issue"
	case f.isPermanent():
		return "recipient", "user unknown"
	}
	return "system", "system issue"
}
