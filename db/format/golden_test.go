package format

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db/dbtest"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

func TestMain(m *testing.M) { dbtest.Main(m) }

// samples are an event of each type of the catalogue, as it is after dispatch.
func samples(t *testing.T) []*Event {
	t.Helper()
	rows, err := dbtest.New(t).Pool.Query(t.Context(), "SELECT name, sample FROM mailhook.event_types ORDER BY name COLLATE \"C\"")
	if err != nil {
		t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Event, error) {
		e := &Event{ID: "evt_018d0c8a5b3f7a2e9c41d6f0b8a37e55", OccurredAt: time.Date(2024, 1, 15, 10, 30, 0, 123_000_000, time.UTC)}
		if err := row.Scan(&e.Type, &e.Data); err != nil {
			return nil, err
		}
		var columns struct {
			Recipient, MessageID, CampaignID, SendingDomain, SendingNode, Bridge, DedicatedIP string
		}
		var named map[string]json.RawMessage
		if err := json.Unmarshal(e.Data, &named); err != nil {
			return nil, err
		}
		for name, to := range map[string]*string{
			"recipient": &columns.Recipient, "message_id": &columns.MessageID, "campaign_id": &columns.CampaignID, "sending_domain": &columns.SendingDomain,
			"sending_node": &columns.SendingNode, "bridge": &columns.Bridge, "dedicated_ip": &columns.DedicatedIP,
		} {
			if value, ok := named[name]; ok {
				if err := json.Unmarshal(value, to); err != nil {
					return nil, err
				}
			}
		}
		e.Recipient, e.MessageID, e.CampaignID, e.SendingDomain = columns.Recipient, columns.MessageID, columns.CampaignID, columns.SendingDomain
		e.SendingNode, e.Bridge, e.DedicatedIP = columns.SendingNode, columns.Bridge, columns.DedicatedIP
		return e, nil
	})
	if err != nil || len(events) < 29 {
		t.Fatalf("%d types in the catalogue, %v", len(events), err)
	}
	return events
}

// TestGolden: every type of the catalogue in every format, byte for byte. -update writes the files.
func TestGolden(t *testing.T) {
	t.Parallel()
	events := samples(t)
	for _, name := range Names("web") {
		f, _ := Find(name)
		var text bytes.Buffer
		for _, e := range events {
			body, err := f.One(e, nil)
			if err != nil {
				t.Fatalf("%s of %s: %v", name, e.Type, err)
			}
			fmt.Fprintf(&text, "== %s\n%s\n", e.Type, body)
			checkShape(t, f, e, body)
			// As a test send: the columns are in the sample alone.
			test := &Event{ID: e.ID, Type: e.Type, OccurredAt: e.OccurredAt, Data: e.Data, IsTest: true}
			if body, err := f.One(test, nil); err != nil || !isWellFormed(f, body) || e.Recipient != "" && !bytes.Contains(body, []byte(e.Recipient)) {
				t.Errorf("%s of a test send of %s: %v, %s", name, e.Type, err, body)
			}
		}
		checkGolden(t, name, text.Bytes())
	}
}

func checkGolden(t *testing.T, name string, text []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: write it with -update", err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("format %s differs from %s: look at git diff after go test ./db/format -run TestGolden -update", name, path)
	}
}

// TestGoldenMessages: what people read, of every type, by every channel for people, byte for byte.
func TestGoldenMessages(t *testing.T) {
	t.Parallel()
	to := &Target{Settings: map[string]string{"sound": "pianobar", "priority": "1"}, Secrets: map[string]string{"user_key": "uuuuuuuuuuuuuuuuuuuuuuuuuuuuuu", "api_token": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}
	events := samples(t)
	for _, name := range []string{"pushover", "slack", "teams"} {
		var text bytes.Buffer
		for _, e := range events {
			body, err := found(t, name).One(e, to)
			if err != nil {
				t.Fatalf("%s of %s: %v", name, e.Type, err)
			}
			fmt.Fprintf(&text, "== %s\n%s\n", e.Type, body)
		}
		checkGolden(t, name, text.Bytes())
	}
}

// checkShape parses a body and compares the types of its members with those that the platform documents.
func checkShape(t *testing.T, f Format, e *Event, body []byte) {
	t.Helper()
	if f.ContentType == "application/xml" {
		if err := parseXML(body); err != nil {
			t.Errorf("%s of %s: %v: %s", f.Name, e.Type, err, body)
		}
		return
	}
	if f.Arrays == OnlyArrays {
		var list []json.RawMessage
		if err := json.Unmarshal(body, &list); err != nil || len(list) != 1 {
			t.Errorf("%s of %s is no array of one: %v", f.Name, e.Type, err)
			return
		}
		body = list[0]
	}
	found, ok := members(body)
	if !ok {
		t.Errorf("%s of %s is no object: %s", f.Name, e.Type, body)
		return
	}
	shape := shapes()[f.Name]
	seen := map[string]bool{}
	for _, m := range found {
		var value any
		json.Unmarshal([]byte(m.value), &value)
		if kind := reflect.TypeOf(value).Kind(); seen[m.key] || shape[m.key] == nil || !slices.Contains(shape[m.key], kind) {
			t.Errorf("%s of %s: %q is %s, twice: %v: %s", f.Name, e.Type, m.key, kind, seen[m.key], body)
		}
		seen[m.key] = true
	}
	for key, kinds := range shape {
		if slices.Contains(kinds, always) && !seen[key] {
			t.Errorf("%s of %s lacks %q: %s", f.Name, e.Type, key, body)
		}
	}
}

// parseXML reads a document to its end, which must have one root.
func parseXML(body []byte) error {
	decoder, depth, roots := xml.NewDecoder(bytes.NewReader(body)), 0, 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) && roots == 1 && depth == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		switch token.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
		case xml.EndElement:
			depth--
		}
	}
}

// always marks a member that no event goes without.
const always = reflect.Invalid

// shapes are the members that each JSON format may have, and their kinds, as each platform documents them.
func shapes() map[string]map[string][]reflect.Kind {
	one := func(kinds ...reflect.Kind) []reflect.Kind { return kinds }
	text, number, truth, object, list := one(reflect.String), one(reflect.Float64), one(reflect.Bool), one(reflect.Map), one(reflect.Slice)
	each := func(kind []reflect.Kind, names ...string) map[string][]reflect.Kind {
		shape := map[string][]reflect.Kind{}
		for _, name := range names {
			shape[name] = kind
		}
		return shape
	}
	join := func(parts ...map[string][]reflect.Kind) map[string][]reflect.Kind {
		all := map[string][]reflect.Kind{}
		for _, part := range parts {
			maps.Copy(all, part)
		}
		return all
	}
	must := func(kind []reflect.Kind) []reflect.Kind { return append(slices.Clone(kind), always) }
	id := one(reflect.String, reflect.Float64)
	campaigns := join(each(must(text), "event", "timestamp"), each(number, "campaign_id"), each(object, "data"), each(truth, "test"),
		each(text, "email", "broadcast_name", "sending_domain", "sending_node", "message_id", "bounce_type", "complaint_type"))
	return map[string]map[string][]reflect.Kind{
		"standard":   join(each(must(text), "id", "type", "timestamp"), each(must(object), "data")),
		"mumara":     join(campaigns, each(text, "link_url")),
		"mumara-one": join(campaigns, each(text, "url")),
		"mumara-classic": join(each(must(text), "event"), each(must(number), "timestamp"), each(must(object), "meta_data"), each(object, "data"),
			each(text, "campaign_id", "list_id", "subscriber_email", "subscriber_id", "link_url", "ip_address", "user_agent")),
		"mailjet": join(each(must(text), "event", "email", "customcampaign", "CustomID", "Payload"), each(must(number), "time", "mj_campaign_id", "mj_contact_id"),
			each(must(id), "MessageID"), each(truth, "blocked", "hard_bounce"), each(number, "mj_list_id"), each(object, "data"),
			each(text, "ip", "geo", "agent", "url", "error_related_to", "error", "comment", "source", "mj_message_id", "smtp_reply")),
		"sendgrid": join(each(must(text), "event", "sg_event_id"), each(must(number), "timestamp"), each(number, "marketing_campaign_id"), each(object, "data"),
			each(list, "category"), each(text, "email", "sg_message_id", "smtp-id", "marketing_campaign_name", "ip", "useragent", "url", "reason", "status", "response", "attempt", "type", "plan", "order")),
		"cloudevents": join(each(must(text), "specversion", "id", "source", "type", "time", "datacontenttype"), each(text, "subject"), each(must(object), "data")),
	}
}
