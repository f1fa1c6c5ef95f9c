package format

import (
	"slices"
	"strings"
)

// A mailjetFault is a pair of error_related_to and error, and by what it is known: the end of an enhanced code, after its class,
// or words of the server's text in lower case.
type mailjetFault struct {
	related, fault string
	codes, words   []string
}

// mailjetFaults come in the order in which their words are tried. Their pairs are Mailjet's. A single word is here where it has
// one meaning alone: "relayed" and "not listed" are said of faults of all kinds.
func mailjetFaults() []mailjetFault {
	return []mailjetFault{
		{"recipient", "spam reporter", nil, []string{"complained", "spam report"}},
		{"recipient", "blacklisted", nil, []string{"unsubscribed", "recipient blacklisted", "recipient is blacklisted"}},
		{"domain", "typofix", nil, []string{"typofix", "typo in", "misspelt domain", "misspelled domain"}},
		{"content", "error in template language", nil, []string{"template language", "template error", "error in template", "rendering failure", "rendering failed"}},
		{"domain", "invalid domain", []string{"1.2"}, []string{"domain does not exist", "domain name not found", "domain not found", "no such domain", "unknown domain", "nxdomain"}},
		{"recipient", "user unknown", []string{"1.1", "1.6"}, []string{"user unknown", "unknown user", "no such user", "does not exist", "not listed in", "no mailbox here", "mailbox unavailable"}},
		{"recipient", "mailbox inactive", []string{"2.1"}, []string{"inactive", "mailbox disabled", "account disabled"}},
		{"recipient", "quota exceeded", []string{"2.2"}, []string{"quota", "mailbox full", "mailbox is full"}},
		{"domain", "no mail host", []string{"1.10", "4.1", "4.3", "4.4"}, []string{"no mail host", "no mx"}},
		{"mailjet", "duplicate in campaign", nil, []string{"duplicate"}},
		{"mailjet", "preblocked", nil, []string{"bounced before", "suppress"}},
		{"spam", "sender blocked", nil, []string{"blacklist", "blocklist", "block list", "is listed", "address listed", "listed at", "listed by", "spamhaus"}},
		{"domain", "relay/access denied", nil, []string{"access denied", "relaying denied", "relay denied", "unable to relay", "relay not permitted", "not permitted to relay", "relaying not allowed"}},
		{"spam", "content blocked", []string{"6.0", "7.2"}, []string{"spam", "message content", "content rejected", "content blocked"}},
		{"spam", "policy issue", []string{"7.0", "7.1"}, []string{"policy"}},
		{"system", "connection issue", []string{"4.2"}, []string{"timeout", "timed out", "lost connection", "connection refused", "connection reset", "connection lost", "connection closed", "connection failed"}},
		{"system", "protocol issue", []string{"5.0", "5.1", "5.2"}, []string{"protocol"}},
	}
}

// mailjetError says what a failure is related to, in Mailjet's pairs: by its enhanced code, else by the server's words, else by
// the type of the event. Words come first where servers give one code for anything, and greylisting has no code of its own.
func mailjetError(eventType string, isHard bool, f *fields) (related, fault string) {
	text := strings.ToLower(f.reason.text() + " " + f.response.text())
	if strings.Contains(text, "greylist") || strings.Contains(text, "graylist") {
		return "domain", "greylisted"
	}
	code := f.faultCode()
	byCode, isKnown := mailjetCode(code)
	byWords, isSaid := mailjetWords(text)
	isVague := code == "4.1" || strings.HasPrefix(code, "5.") || strings.HasPrefix(code, "7.")
	switch {
	case isKnown && (!isVague || !isSaid):
		return byCode.related, byCode.fault
	case isSaid:
		return byWords.related, byWords.fault
	case eventType == "email.suppressed":
		return "mailjet", "preblocked"
	case eventType == "email.blocked":
		return "spam", "sender blocked"
	case eventType == "email.rejected":
		return "spam", "policy issue"
	case isHard:
		return "recipient", "user unknown"
	}
	return "system", "system issue"
}

func mailjetCode(code string) (mailjetFault, bool) {
	for _, m := range mailjetFaults() {
		if slices.Contains(m.codes, code) {
			return m, true
		}
	}
	return mailjetFault{}, false
}

func mailjetWords(text string) (mailjetFault, bool) {
	for _, m := range mailjetFaults() {
		if slices.ContainsFunc(m.words, func(words string) bool { return strings.Contains(text, words) }) {
			return m, true
		}
	}
	return mailjetFault{}, false
}

// faultCode is the enhanced code without its class: that of the event, else one at the beginning of the server's answer, where
// the reply code may stand before it.
func (f *fields) faultCode() string {
	if f.enhancedCode != nil {
		_, code, _ := strings.Cut(f.enhancedCode.text(), ".")
		return code
	}
	for _, answer := range []raw{f.response, f.reason} {
		for nth, word := range strings.Fields(answer.text()) {
			class, code, _ := strings.Cut(word, ".")
			if (class == "4" || class == "5") && strings.Count(code, ".") == 1 {
				return code
			}
			if nth == 1 {
				break
			}
		}
	}
	return ""
}
