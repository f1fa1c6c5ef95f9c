package format

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// A raw is a JSON value as it stands in the event; nil: absent.
type raw []byte

// text is what a string says; of any other value, its JSON.
func (v raw) text() string {
	if len(v) < 2 || v[0] != '"' {
		return string(v)
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return string(v[1 : len(v)-1])
	}
	var text string
	if json.Unmarshal(v, &text) != nil {
		return string(v)
	}
	return text
}

// number is the value of an id of at most so many digits, as a JSON number; false: it is none, and a string elsewhere.
func (v raw) number(digits int) (string, bool) {
	text := v.text()
	if text == "" || len(text) > digits || text[0] == '0' && text != "0" || strings.Trim(text, "0123456789") != "" {
		return "", false
	}
	_, err := strconv.ParseInt(text, 10, 64)
	return text, err == nil
}

func (v raw) isObject() bool { return len(v) > 0 && v[0] == '{' }

// fields are the members of an event that other platforms have a place for, by our names.
type fields struct {
	recipient, messageID, campaignID, sendingDomain, sendingNode, dedicatedIP,
	broadcastName, listID, subscriberID, metaData, tags, category, tag, customID,
	linkURL, ipAddress, userAgent, geo,
	bounceType, smtpCode, enhancedCode, reason, response, attempt,
	complaintType, source raw
}

func (f *fields) of(name string) *raw {
	switch name {
	case "recipient":
		return &f.recipient
	case "message_id":
		return &f.messageID
	case "campaign_id":
		return &f.campaignID
	case "sending_domain":
		return &f.sendingDomain
	case "sending_node":
		return &f.sendingNode
	case "dedicated_ip":
		return &f.dedicatedIP
	case "broadcast_name":
		return &f.broadcastName
	case "list_id":
		return &f.listID
	case "subscriber_id":
		return &f.subscriberID
	case "meta_data":
		return &f.metaData
	case "tags":
		return &f.tags
	case "category":
		return &f.category
	case "tag":
		return &f.tag
	case "custom_id":
		return &f.customID
	case "link_url":
		return &f.linkURL
	case "ip_address":
		return &f.ipAddress
	case "user_agent":
		return &f.userAgent
	case "geo":
		return &f.geo
	}
	return f.ofFailure(name)
}

func (f *fields) ofFailure(name string) *raw {
	switch name {
	case "bounce_type":
		return &f.bounceType
	case "smtp_code":
		return &f.smtpCode
	case "enhanced_code":
		return &f.enhancedCode
	case "reason":
		return &f.reason
	case "response":
		return &f.response
	case "attempt":
		return &f.attempt
	case "complaint_type":
		return &f.complaintType
	case "source":
		return &f.source
	}
	return nil
}

// fields reads the event once. As in format standard a column wins over data, and null and "" are absent; of a name that is
// there twice the first counts.
func (e *Event) fields() (*fields, error) {
	f := &fields{}
	for _, c := range e.columns() {
		if to := f.of(c.name); to != nil {
			*to = appendString(nil, c.value)
		}
	}
	err := eachMember(e.Data, func(key, value []byte) error {
		name, err := plainKey(key)
		if err != nil {
			return errNoObject // not that error: it may quote the event
		}
		if to := f.of(string(name)); to != nil && *to == nil && !isAbsent(value) {
			*to = value
		}
		return nil
	})
	return f, err
}

func isAbsent(value []byte) bool { return string(value) == "null" || string(value) == `""` }

// reply is what a server said, as far as the event knows: code, enhanced code and text; empty: nothing.
func (f *fields) reply() string {
	if f.response != nil {
		return f.response.text()
	}
	var parts []string
	for _, part := range []raw{f.smtpCode, f.enhancedCode, f.reason} {
		if part != nil {
			parts = append(parts, part.text())
		}
	}
	return strings.Join(parts, " ")
}

// isPermanent says of a failure that it stays: by the kind of the bounce, else by the class of the server's code; isKnown: there
// is one of these.
func (f *fields) isPermanent() (isPermanent, isKnown bool) {
	if kind := f.bounceType.text(); kind == "hard" || kind == "soft" {
		return kind == "hard", true
	}
	for _, v := range []raw{f.enhancedCode, f.smtpCode} {
		if v != nil {
			return strings.HasPrefix(v.text(), "5"), true
		}
	}
	return false, false
}

// spelling is a platform's word for an event type, or for the nearest of its parents that has one; our name, and false, where
// none has. word is "" for a type without.
func spelling(word func(eventType string) string, eventType string) (event string, isWord bool) {
	for node := eventType; ; {
		if event = word(node); event != "" {
			return event, true
		}
		dot := strings.LastIndexByte(node, '.')
		if dot < 0 {
			return eventType, false
		}
		node = node[:dot]
	}
}
