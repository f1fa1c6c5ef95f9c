package httpapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// Bounds of filters, where huma's tags do not state them.
const (
	maxFilterBytes    = 1000
	maxFilterValues   = 200 // of each filter, and of all conditions together
	maxDataConditions = 10
	maxPathNames      = 5
	maxPathBytes      = 200
)

// Filters narrow the events of a subscription down; an empty list is no filter. Those from campaign_id on are left out
// where they are none.
type Filters struct {
	SendingDomain   []string               `json:"sending_domain" nullable:"false"`
	SendingNode     []string               `json:"sending_node" nullable:"false"`
	Bridge          []string               `json:"bridge" nullable:"false"`
	DedicatedIP     []string               `json:"dedicated_ip" nullable:"false"`
	CampaignID      []string               `json:"campaign_id,omitempty"`
	ListID          []string               `json:"list_id,omitempty"`
	Tag             []string               `json:"tag,omitempty"`
	RecipientDomain []string               `json:"recipient_domain,omitempty"`
	MessageClass    []string               `json:"message_class,omitempty"`
	Data            map[string]DataMatcher `json:"data,omitempty"`
}

// A DataMatcher is what a field of data must be: any of these values, or, where those are none, one that begins so.
type DataMatcher struct{ Any, Prefix []string }

// MarshalJSON writes a list, or an object with prefix.
func (m DataMatcher) MarshalJSON() ([]byte, error) {
	if m.Prefix != nil {
		return json.Marshal(map[string][]string{"prefix": m.Prefix})
	}
	return json.Marshal(m.Any)
}

// Schema is either of the two.
func (DataMatcher) Schema(huma.Registry) *huma.Schema {
	list := &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}}
	return &huma.Schema{OneOf: []*huma.Schema{
		list, {Type: huma.TypeObject, Properties: map[string]*huma.Schema{"prefix": list}, Required: []string{"prefix"}},
	}}
}

type filtersInput struct {
	SendingDomain   optional[[]string]      `json:"sending_domain,omitempty" maxItems:"200"`
	SendingNode     optional[[]string]      `json:"sending_node,omitempty" maxItems:"200"`
	Bridge          optional[[]string]      `json:"bridge,omitempty" maxItems:"200"`
	DedicatedIP     optional[[]string]      `json:"dedicated_ip,omitempty" maxItems:"200" doc:"IP addresses; they compare by value."`
	CampaignID      optional[[]filterValue] `json:"campaign_id,omitempty" maxItems:"200"`
	ListID          optional[[]filterValue] `json:"list_id,omitempty" maxItems:"200" doc:"Any of data.list_id and data.list_ids."`
	Tag             optional[[]filterValue] `json:"tag,omitempty" maxItems:"200" doc:"Any of data.tag, data.tags and data.category."`
	RecipientDomain optional[[]filterValue] `json:"recipient_domain,omitempty" maxItems:"200" doc:"What follows the last @ of the recipient."`
	MessageClass    optional[[]filterValue] `json:"message_class,omitempty" maxItems:"200" doc:"newsletter and transactional, in any case."`
	Data            optional[dataInput]     `json:"data,omitempty"`
}

// A filterValue is text; a number or boolean is taken as it is written.
type filterValue string

// UnmarshalJSON takes a string, a number or a boolean; the schema lets nothing else through.
func (v *filterValue) UnmarshalJSON(text []byte) error {
	if text[0] == '"' {
		return json.Unmarshal(text, (*string)(v))
	}
	*v = filterValue(numberText(string(text)))
	return nil
}

// Schema is any of the three.
func (filterValue) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{{Type: huma.TypeString}, {Type: huma.TypeNumber}, {Type: huma.TypeBoolean}}}
}

// dataInput is a path and what is to be found there: a value, a list of values, {"any": […]} or {"prefix": […]}. null removes a condition.
type dataInput map[string]json.RawMessage

// Schema is an object: what is wrong in it is told by condition.read.
func (dataInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: &huma.Schema{},
		Description: `Conditions on fields of data as receivers get it, by path: names with dots between them (a dot within a name is \.). Each is a value, a list of values (any of them) or {"prefix": […]} (a text that begins with one of them). At most 10; PATCH sets one by one, and null removes one. An array matches by any of its first 200 elements; on a path of 2, 3, 4 or 5 names by the first 20, 7, 4 or 3. A member with arrays in arrays matches nothing. All conditions together, those from campaign_id on too, have at most 200 values.`,
		Examples:    []any{map[string]any{"plan": []string{"pro"}, "meta_data.country": map[string]any{"prefix": []string{"D"}}}},
	}
}

// A condition is an element of subscriptions.filter_conditions: of a field, or of a path into data.
type condition struct {
	Field  string   `json:"field,omitempty"`
	Path   []string `json:"path,omitempty"`
	Any    []string `json:"any,omitempty"`
	Prefix []string `json:"prefix,omitempty"`
}

// name is what a condition is called in the API: that of its field, or data and its path.
func (c condition) name() string {
	if c.Field != "" {
		return c.Field
	}
	return "data." + spellPath(c.Path)
}

func conditionsIn(row db.Subscription) (conditions []condition) {
	json.Unmarshal(row.FilterConditions, &conditions) //nolint:errcheck // our own
	return conditions
}

func filtersOf(row db.Subscription) Filters {
	f := Filters{SendingDomain: row.FilterSendingDomain, SendingNode: row.FilterSendingNode, Bridge: row.FilterBridge, DedicatedIP: row.FilterDedicatedIp}
	for _, c := range conditionsIn(row) {
		switch c.Field {
		case "campaign_id":
			f.CampaignID = c.Any
		case "list_id":
			f.ListID = c.Any
		case "tag":
			f.Tag = c.Any
		case "recipient_domain":
			f.RecipientDomain = c.Any
		case "message_class":
			f.MessageClass = c.Any
		default:
			if f.Data == nil {
				f.Data = map[string]DataMatcher{}
			}
			f.Data[spellPath(c.Path)] = DataMatcher{c.Any, c.Prefix}
		}
	}
	return f
}

// filterNames are the filters that there are, as the API calls them.
func filterNames() (names []string) {
	kind := reflect.TypeFor[Filters]()
	for i := range kind.NumField() {
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

func applyFilters(in optional[filtersInput], to *db.Subscription) (found []FieldError) {
	none := optional[[]string]{set: true, null: true}
	filters := in.value
	if in.null {
		filters = filtersInput{SendingDomain: none, SendingNode: none, Bridge: none, DedicatedIP: none}
		to.FilterConditions = []byte("[]")
	}
	for _, f := range []struct {
		name string
		in   optional[[]string]
		to   *[]string
		each func(string) (string, fault)
	}{
		{"sending_domain", filters.SendingDomain, &to.FilterSendingDomain, asIs}, // the database lowers the case
		{"sending_node", filters.SendingNode, &to.FilterSendingNode, asIs},
		{"bridge", filters.Bridge, &to.FilterBridge, asIs},
		{"dedicated_ip", filters.DedicatedIP, &to.FilterDedicatedIp, address},
	} {
		if f.in.set {
			*f.to = []string{}
			found = append(found, applyFilter("filters."+f.name, f.in.value, f.to, f.each)...)
		}
	}
	return append(found, applyConditions(filters, to)...)
}

func applyFilter(field string, values []string, to *[]string, each func(string) (string, fault)) (found []FieldError) {
	for i, value := range values {
		at := fmt.Sprintf("%s[%d]", field, i)
		if value == "" {
			found = append(found, FieldError{at, "too_short", "must not be empty"})
			continue
		}
		found = append(found, checkText(at, value, maxFilterBytes)...)
		text, wrong := each(value)
		if wrong.code != "" {
			found = append(found, FieldError{at, wrong.code, wrong.message})
		}
		*to = append(*to, text)
	}
	*to = unique(*to)
	return found
}

// A fault is what is wrong with a value of a filter, all empty for nothing.
type fault struct{ code, message string }

// messageClass is one of the two that there are, in lower case, as leaf types have them.
func messageClass(value string) (string, fault) {
	text := strings.ToLower(value)
	if text != "newsletter" && text != "transactional" {
		return "", fault{"not_allowed", "must be newsletter or transactional"}
	}
	return text, fault{}
}

func asIs(value string) (string, fault) { return value, fault{} }

// address takes an address, or the prefix of a single one; the database writes it as host() does.
func address(value string) (string, fault) {
	if prefix, err := netip.ParsePrefix(value); err == nil && prefix.IsSingleIP() {
		return prefix.Addr().String(), fault{}
	}
	addr, err := netip.ParseAddr(value)
	if err != nil || addr.Zone() != "" {
		return "", fault{"invalid_address", "must be an IPv4 or IPv6 address"}
	}
	return addr.String(), fault{}
}

// applyConditions puts the filters that are conditions into a subscription, each in the place of the one before it.
func applyConditions(in filtersInput, to *db.Subscription) (found []FieldError) {
	byName := map[string]condition{}
	for _, c := range conditionsIn(*to) {
		byName[c.name()] = c
	}
	for _, f := range []struct {
		name string
		in   optional[[]filterValue]
		each func(string) (string, fault)
	}{
		{"campaign_id", in.CampaignID, asIs}, {"list_id", in.ListID, asIs}, {"tag", in.Tag, asIs}, {"recipient_domain", in.RecipientDomain, recipientDomain},
		{"message_class", in.MessageClass, messageClass},
	} {
		if !f.in.set {
			continue
		}
		c := condition{Field: f.name}
		found = append(found, applyFilter("filters."+f.name, textsOf(f.in.value), &c.Any, f.each)...)
		put(byName, c)
	}
	found = append(found, applyData(in.Data, byName)...)
	conditions := slices.SortedFunc(maps.Values(byName), func(a, b condition) int { return cmp.Compare(a.name(), b.name()) })
	count := 0
	for _, c := range conditions {
		count += len(c.Any) + len(c.Prefix)
	}
	if count > maxFilterValues {
		found = append(found, FieldError{"filters", "too_many", fmt.Sprintf("must have at most %d values in campaign_id, list_id, tag, recipient_domain, message_class and data together, and would have %d", maxFilterValues, count)})
	}
	text, err := json.Marshal(append([]condition{}, conditions...))
	if err != nil {
		return append(found, FieldError{"filters", "invalid", "cannot be stored"})
	}
	to.FilterConditions = text
	return found
}

// put keeps a condition; one that asks for nothing is none.
func put(byName map[string]condition, c condition) {
	if len(c.Any) == 0 && len(c.Prefix) == 0 {
		delete(byName, c.name())
		return
	}
	byName[c.name()] = c
}

func textsOf(values []filterValue) []string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return texts
}
