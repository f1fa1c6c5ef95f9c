package format

import (
	"strings"
	"unicode/utf8"
)

// sentences say what an event of a type is, with its fields in braces; a type that is not here has that of its nearest
// ancestor. {message} is the name of the newsletter or its subject.
func sentences() map[string]string {
	return map[string]string{
		"email.queued":           "{message} to {recipient} is queued",
		"email.sent":             "{message} was sent to {recipient}",
		"email.received":         "{message} to {recipient} was taken by the sending server",
		"email.delivered":        "{message} was delivered to {recipient}",
		"email.delayed":          "{message} to {recipient} is delayed",
		"email.bounced":          "{message} to {recipient} bounced",
		"email.bounced.hard":     "{message} to {recipient} bounced for good",
		"email.bounced.soft":     "{message} to {recipient} bounced for now",
		"email.rejected":         "{message} to {recipient} was rejected by the receiving server",
		"email.blocked":          "{message} to {recipient} was blocked",
		"email.failed":           "{message} to {recipient} could not be sent",
		"email.suppressed":       "{message} to {recipient} was not sent: the address is on a suppression list",
		"email.opened":           "{recipient} opened {message}",
		"email.clicked":          "{recipient} clicked {link_url} in {message}",
		"email.complained":       "{recipient} reported {message} as spam",
		"email.unsubscribed":     "{recipient} unsubscribed",
		"email.subscribed":       "{recipient} subscribed",
		"email.replied":          "{recipient} replied to {message}",
		"email.inbound":          "{sender} wrote to {recipient}",
		"recipient.deleted":      "{recipient} was deleted",
		"form.submitted":         "{recipient} submitted {form_name}",
		"trigger.fired":          "{trigger_name} fired for {recipient}",
		"workflow.step":          "{recipient} came to {step_name} of {workflow_name}",
		"subscription.failing":   "Deliveries to {name} fail: they are held",
		"subscription.recovered": "Deliveries to {name} arrive again",
		"subscription.suspended": "{name} is suspended",
	}
}

// sentence is that of the type, filled in; one that is not known is told by its name.
func sentence(eventType string, texts map[string]string) string {
	known := sentences()
	for node := eventType; node != ""; node = parentOf(node) {
		if text, ok := known[node]; ok {
			return fill(text, texts)
		}
	}
	if texts["recipient"] == "" {
		return eventType
	}
	return fill(eventType+" for {recipient}", texts)
}

func parentOf(node string) string {
	i := strings.LastIndexByte(node, '.')
	return node[:max(i, 0)]
}

// fill puts words into the braces; one that stands for what is absent begins a sentence with a capital.
func fill(text string, texts map[string]string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		name, after, _ := strings.Cut(rest, "}")
		word, isKnown := word(name, texts)
		if first, n := utf8.DecodeRuneInString(word); !isKnown && out.Len() == 0 {
			word = strings.ToUpper(string(first)) + word[n:]
		}
		out.WriteString(cut(word, maxWord))
		text = after
	}
}

// word is the value of a field, or what stands for it.
func word(name string, texts map[string]string) (text string, isKnown bool) {
	if name == "message" {
		for _, key := range []string{"broadcast_name", "subject"} {
			if texts[key] != "" {
				return texts[key], true
			}
		}
		switch texts["message_class"] {
		case "newsletter":
			return "a newsletter", false
		case "transactional":
			return "a transactional message", false
		}
		return "a message", false
	}
	if texts[name] != "" {
		return texts[name], true
	}
	switch name {
	case "link_url":
		return "a link", false
	case "form_name":
		return "a form", false
	case "trigger_name":
		return "a trigger", false
	case "step_name":
		return "a step", false
	case "workflow_name":
		return "a workflow", false
	case "name":
		return "a subscription", false
	}
	return "somebody", false
}
