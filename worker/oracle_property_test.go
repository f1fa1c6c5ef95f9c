package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What dispatch must make of an event, told from the contract alone: this file shares no code with the product.

// A wroteEvent is a row of the outbox as a host may write it. nil is NULL.
type wroteEvent struct {
	id         int64
	insertedAt *time.Time // nil: the time of dispatch
	account    *string
	eventType  string
	occurredAt *string
	recipient  *string
	campaign   *string
	domain     *string
	node       *string
	bridge     *string
	ip         ipSpelling
	dedupeKey  *string
	data       dataSpelling
}

// An ipSpelling is a dedicated_ip with what it means.
type ipSpelling struct {
	text    *string
	address string // "": none
	refused bool
}

// A dataSpelling is data with what dispatch may read of it.
type dataSpelling struct {
	text           *string
	bounceType     string
	messageClass   string
	subscriptionID string
	refused        bool
	unreadable     bool // by filters: dispatched, and as good as empty to them
}

// A wantedCondition is one of filter_conditions: any of the values at a field or path is one of these, or begins so.
type wantedCondition struct {
	Field  string   `json:"field,omitempty"`
	Path   []string `json:"path,omitempty"`
	Any    []string `json:"any,omitempty"`
	Prefix []string `json:"prefix,omitempty"`
}

// A wantedSubscription is one as it stands when events are dispatched.
type wantedSubscription struct {
	id        string // of the form 0192f0c1-…
	account   string
	types     []string
	status    string
	deleted   bool
	createdAt time.Time
	domains   []string
	nodes     []string
	bridges   []string
	ips       []ipSpelling

	conditions []wantedCondition
}

// GoString is how a failing check shows an event.
func (e wroteEvent) GoString() string {
	at := "NULL"
	if e.insertedAt != nil {
		at = e.insertedAt.Format(time.RFC3339)
	}
	return fmt.Sprintf("{%d at %s account %s type %q occurred %s recipient %s campaign %s domain %s node %s bridge %s ip %s key %s data %s}", e.id, at, valueOf(e.account),
		e.eventType, valueOf(e.occurredAt), valueOf(e.recipient), valueOf(e.campaign), valueOf(e.domain), valueOf(e.node), valueOf(e.bridge), valueOf(e.ip.text), valueOf(e.dedupeKey), valueOf(e.data.text))
}

// valueOf is a value as a failing check shows it.
func valueOf(s *string) string {
	if s == nil {
		return "NULL"
	}
	return fmt.Sprintf("%.60q", *s)
}

// absent: NULL and ” are the same.
func absent(s *string) bool { return s == nil || *s == "" }

func (e wroteEvent) accountID() string {
	if absent(e.account) {
		return "default"
	}
	return *e.account
}

// leafType is the type after refinement: bounces by bounce_type, opens and clicks by message_class.
func (e wroteEvent) leafType() string {
	switch e.eventType {
	case "email.bounced":
		if e.data.bounceType == "hard" || e.data.bounceType == "soft" {
			return e.eventType + "." + e.data.bounceType
		}
	case "email.opened", "email.clicked":
		if e.data.messageClass == "newsletter" || e.data.messageClass == "transactional" {
			return e.eventType + "." + e.data.messageClass
		}
	}
	return e.eventType
}

func isTypeName(s string) bool {
	if len(s) > 100 {
		return false
	}
	for word := range strings.SplitSeq(s, ".") {
		for i, c := range []byte(word) {
			letter, digit := c >= 'a' && c <= 'z', c >= '0' && c <= '9'
			if !letter && (i == 0 || !digit && c != '_') {
				return false
			}
		}
		if word == "" {
			return false
		}
	}
	return true
}

// refused: it goes to quarantine.
func (e wroteEvent) refused() bool {
	for _, s := range []*string{e.account, e.recipient, e.campaign, e.domain, e.node, e.bridge, e.dedupeKey} {
		if s != nil && len(*s) > 1000 {
			return true
		}
	}
	return !isTypeName(e.eventType) || e.ip.refused || e.data.refused ||
		e.occurredAt != nil && !strings.HasPrefix(*e.occurredAt, "2024-")
}

// names: a node is for everything below it, and * for all but subscription.*.
func names(node, eventType string) bool {
	if node == "*" {
		return eventType != "subscription" && !strings.HasPrefix(eventType, "subscription.")
	}
	return eventType == node || strings.HasPrefix(eventType, node+".")
}

func namesAny(nodes []string, eventType string) bool {
	for _, node := range nodes {
		if names(node, eventType) {
			return true
		}
	}
	return false
}

// A verdict holds an event against a subscription, condition by condition.
type verdict struct {
	account, created, status, eventType, domain, node, bridge, ip, conditions, aboutItself bool
}

// judge: dispatchedAt stands for the inserted_at of an event without one.
func (e wroteEvent) judge(s wantedSubscription, dispatchedAt time.Time) verdict {
	at := dispatchedAt
	if e.insertedAt != nil {
		at = *e.insertedAt
	}
	v := verdict{
		account:     e.accountID() == s.account,
		created:     s.createdAt.Before(at),
		status:      s.status != "inactive",
		eventType:   namesAny(s.types, e.leafType()),
		domain:      passes(s.domains, e.domain, strings.ToLower),
		node:        passes(s.nodes, e.node, strings.Clone),
		bridge:      passes(s.bridges, e.bridge, strings.Clone),
		ip:          len(s.ips) == 0,
		conditions:  true,
		aboutItself: strings.HasPrefix(e.leafType(), "subscription.") && e.data.subscriptionID == "sub_"+strings.ReplaceAll(s.id, "-", ""),
	}
	for _, c := range s.conditions {
		v.conditions = v.conditions && c.holds(e.fields())
	}
	for _, ip := range s.ips {
		v.ip = v.ip || e.ip.address != "" && ip.address == e.ip.address
	}
	return v
}

// passes: an empty list is no filter, an absent field fails a set one.
func passes(filter []string, value *string, fold func(string) string) bool {
	for _, f := range filter {
		if !absent(value) && fold(f) == fold(*value) {
			return true
		}
	}
	return len(filter) == 0
}

// today: what a replay asks, who takes the events from before the subscription as well.
func (v verdict) today() bool {
	return v.account && v.eventType && v.domain && v.node && v.bridge && v.ip && v.conditions && !v.aboutItself
}

func (v verdict) atDispatch() bool { return v.today() && v.created && v.status }

// A keyring of dedupe: which event won a key of an account, and whether its window is over.
type dedupe struct {
	winners map[[2]string]wroteEvent
}

// winner is the event that this one repeats, nil for none. Call it in the order of dispatch.
func (d *dedupe) winner(e wroteEvent) *wroteEvent {
	if absent(e.dedupeKey) {
		return nil
	}
	key := [2]string{e.accountID(), *e.dedupeKey}
	if first, ok := d.winners[key]; ok {
		return &first
	}
	d.winners[key] = e
	return nil
}

// expire ends the window of all keys seen so far.
func (d *dedupe) expire() { d.winners = map[[2]string]wroteEvent{} }

// publicEventID is evt_, then inserted_at in microseconds and the id, both of 16 hexadecimal digits, and the installation.
func publicEventID(insertedAt time.Time, id int64, installation string) string {
	return fmt.Sprintf("evt_%016x%016x%s", insertedAt.UnixMicro(), id, installation)
}

// fields are what filters see: data as receivers get it, and the domain of the recipient.
func (e wroteEvent) fields() map[string]any {
	fields := map[string]any{}
	if !absent(e.data.text) && !e.data.unreadable && *e.data.text != "null" {
		decoder := json.NewDecoder(strings.NewReader(*e.data.text))
		decoder.UseNumber()
		if err := decoder.Decode(&fields); err != nil {
			panic(err)
		}
	}
	for name, value := range map[string]*string{
		"recipient": e.recipient, "campaign_id": e.campaign, "sending_domain": e.domain, "sending_node": e.node, "bridge": e.bridge, "dedicated_ip": e.ip.text,
	} {
		if !absent(value) {
			fields[name] = *value
		}
	}
	if !absent(e.recipient) && strings.Contains(*e.recipient, "@") {
		fields["recipient_domain"] = strings.ToLower((*e.recipient)[strings.LastIndex(*e.recipient, "@")+1:])
	}
	for beginning, name := range map[string]string{"email.bounced.": "bounce_type", "email.opened.": "message_class", "email.clicked.": "message_class"} {
		if leaf, ok := strings.CutPrefix(e.leafType(), beginning); ok && !strings.Contains(leaf, ".") {
			fields[name] = leaf
		}
	}
	maps.DeleteFunc(fields, func(_ string, value any) bool { return hasArrayInArray(value, false) })
	return fields
}

func hasArrayInArray(value any, within bool) bool {
	switch value := value.(type) {
	case []any:
		return within || slices.ContainsFunc(value, func(v any) bool { return hasArrayInArray(v, true) })
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(value)), func(v any) bool { return hasArrayInArray(v, false) })
	}
	return false
}

func (c wantedCondition) holds(fields map[string]any) bool {
	paths := [][]string{c.Path}
	switch c.Field {
	case "":
	case "tag":
		paths = [][]string{{"tag"}, {"tags"}, {"category"}}
	case "list_id":
		paths = [][]string{{"list_id"}, {"list_ids"}}
	default:
		paths = [][]string{{c.Field}}
	}
	for _, path := range paths {
		for _, value := range reach([]any{fields}, path, []int{200, 20, 7, 4, 3}[len(path)-1]) {
			if c.takes(value) {
				return true
			}
		}
	}
	return false
}

// reach follows a path, through arrays by each of their first elements.
func reach(values []any, path []string, elements int) []any {
	if len(path) == 0 {
		return values
	}
	var next []any
	for _, value := range values {
		object, _ := value.(map[string]any)
		switch member := object[path[0]].(type) {
		case nil:
		case []any:
			next = append(next, member[:min(len(member), elements)]...)
		default:
			next = append(next, member)
		}
	}
	return reach(next, path[1:], elements)
}

// takes: texts as they are, numbers and booleans as what is written like one.
func (c wantedCondition) takes(value any) bool {
	text, isText := value.(string)
	for _, wanted := range c.Any {
		switch value := value.(type) {
		case string:
			if wanted == value {
				return true
			}
		case bool:
			if wanted == strconv.FormatBool(value) {
				return true
			}
		case json.Number:
			a, ok := new(big.Rat).SetString(wanted)
			b, isNumber := new(big.Rat).SetString(value.String())
			if ok && isNumber && a.Cmp(b) == 0 && json.Valid([]byte(wanted)) { // "07" is no number
				return true
			}
		}
	}
	return isText && slices.ContainsFunc(c.Prefix, func(p string) bool { return strings.HasPrefix(text, p) })
}
