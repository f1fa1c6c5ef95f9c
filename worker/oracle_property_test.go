package worker

import (
	"fmt"
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
}

// GoString is how a failing check shows an event.
func (e wroteEvent) GoString() string {
	at := "NULL"
	if e.insertedAt != nil {
		at = e.insertedAt.Format(time.RFC3339)
	}
	return fmt.Sprintf("{%d at %s account %s type %q occurred %s recipient %s domain %s node %s bridge %s ip %s key %s data %s}", e.id, at, valueOf(e.account),
		e.eventType, valueOf(e.occurredAt), valueOf(e.recipient), valueOf(e.domain), valueOf(e.node), valueOf(e.bridge), valueOf(e.ip.text), valueOf(e.dedupeKey), valueOf(e.data.text))
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
	for _, s := range []*string{e.account, e.recipient, e.domain, e.node, e.bridge, e.dedupeKey} {
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
	account, created, status, eventType, domain, node, bridge, ip, aboutItself bool
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
		aboutItself: strings.HasPrefix(e.leafType(), "subscription.") && e.data.subscriptionID == "sub_"+strings.ReplaceAll(s.id, "-", ""),
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
	return v.account && v.eventType && v.domain && v.node && v.bridge && v.ip && !v.aboutItself
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
