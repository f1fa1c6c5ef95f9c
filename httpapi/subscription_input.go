package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
	"mailhook/db/format"
)

// Bounds of the settings of a subscription, where huma's tags do not state them.
const (
	minTimeout        = time.Second
	maxTimeout        = time.Minute
	minRetryDelay     = time.Second
	maxRetryDelay     = 24 * time.Hour
	maxRetries        = 50
	maxNameBytes      = 800 // 200 characters
	maxAccountIDBytes = 1000
)

// SubscriptionInput is what may be set at create and changed by PATCH.
type SubscriptionInput struct {
	Name               optional[string]        `json:"name,omitempty" maxLength:"200" doc:"For people."`
	Channel            optional[channelInput]  `json:"channel,omitempty" doc:"Where requests go."`
	EventTypes         optional[[]string]      `json:"event_types,omitempty" maxItems:"50" doc:"Nodes of the type hierarchy, each with everything below it; * is all but subscription.*. Other platforms' words for them are taken, and answered as our names."`
	Filters            optional[filtersInput]  `json:"filters,omitempty" doc:"An event must pass each that is not empty."`
	Format             optional[formatName]    `json:"format,omitempty" doc:"The body of requests, as a platform spells it. Default: standard, and of another channel than web its only one, by its name."`
	RetrySchedule      optional[RetrySchedule] `json:"retry_schedule,omitempty"`
	Success            optional[string]        `json:"success,omitempty" enum:"2xx,200" doc:"Which answers are success: 2xx, or 200 alone; then another 2xx is a failure, http_2xx. Default: 2xx."`
	Timeout            optional[string]        `json:"timeout,omitempty" doc:"For the whole request: 1s to 60s. Default: 15s."`
	MaxInFlight        optional[int32]         `json:"max_in_flight,omitempty" minimum:"1" maximum:"1000" doc:"Requests under way at one time. Default: 32."`
	Ordering           optional[string]        `json:"ordering,omitempty" enum:"none,message,recipient" doc:"Deliveries of one message, or of one recipient, go one after another: a failing one holds up its own only. Default: none."`
	RateLimitPerSecond optional[float64]       `json:"rate_limit_per_second,omitempty" minimum:"0.001" maximum:"10000" doc:"Requests. Default: null, no limit."`
	Batch              optional[batchInput]    `json:"batch,omitempty" doc:"Several events in one request, where the format has arrays. Default: null, one event a request."`
}

// patchSubscription is the operation that says of some fields that they are read-only.
const patchSubscription = "patch-subscription"

// readOnlyFields are those that GET answers and PATCH does not take.
func readOnlyFields() []string {
	return []string{
		"id", "account_id", "status", "status_reason", "public_key", "created_at", "updated_at", "secrets", "usage", "channel.header_names", "channel.auth_type",
	}
}

// A formatName is the name of a format of any channel.
type formatName string

// Schema lists the formats that there are.
func (formatName) Schema(huma.Registry) *huma.Schema {
	schema := &huma.Schema{Type: huma.TypeString}
	for _, channel := range []string{format.Web, channelPushover, channelSlack, channelTeams} {
		for _, name := range format.Names(channel) {
			schema.Enum = append(schema.Enum, name)
		}
	}
	schema.PrecomputeMessages()
	return schema
}

// A RetrySchedule is the name of a preset or, where that is empty, a list of delays.
type RetrySchedule struct {
	Preset string
	Delays []string
}

// MarshalJSON writes the name or the list.
func (r RetrySchedule) MarshalJSON() ([]byte, error) {
	if r.Preset != "" {
		return json.Marshal(r.Preset)
	}
	return json.Marshal(r.Delays)
}

// UnmarshalJSON reads the name or the list.
func (r *RetrySchedule) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, &r.Preset)
	}
	return json.Unmarshal(text, &r.Delays)
}

// Schema is either of the two.
func (RetrySchedule) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "The delay after each failure: " + db.RetryPresetNames() + ", or 1 to 50 delays of 1s to 24h. Default: standard.",
		Examples:    []any{"standard", []string{"30s", "5m"}},
		OneOf: []*huma.Schema{
			{Type: huma.TypeString}, // no enum: huma would not say what is allowed
			{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}},
		},
	}
}

// defaultSubscription has the default of every setting; the URL and the event types have none.
func defaultSubscription() db.Subscription {
	preset := db.RetryPresets()[0]
	return db.Subscription{
		Status:        "active",
		ChannelType:   "web",
		Format:        "standard",
		RetryPreset:   &preset.Name,
		RetrySchedule: preset.Schedule,
		RetryJitter:   preset.Jitter,
		Timeout:       15 * time.Second,
		MaxInFlight:   32,

		SuccessRule:      "2xx",
		Ordering:         "none",
		ChannelSettings:  []byte("{}"),
		FilterConditions: []byte("[]"),
	}
}

// applyWords is apply with the event types in other platforms' words, too. Those that the subscription has mean what they
// meant.
func (s *server) applyWords(ctx context.Context, q *db.Queries, in SubscriptionInput, to *db.Subscription, allowsHTTP bool) (credentials, []FieldError, error) {
	var wrong []FieldError
	if in.EventTypes.isValue() {
		var err error
		format := string(in.Format.pick(formatName(to.Format), formatName(defaultSubscription().Format)))
		if in.EventTypes.value, wrong, err = s.eventTypesOf(ctx, q, "event_types", in.EventTypes.value, format, to.EventTypes); err != nil {
			return nil, nil, err
		}
	}
	sealed, found := s.apply(in, to, allowsHTTP)
	return sealed, append(found, wrong...), nil
}

// apply puts the input into a subscription by RFC 7396 and answers what is wrong with the outcome. What the input does
// not name was checked when it was set; allowsHTTP is whether the account may use http. What is to be stored sealed is not
// in the subscription.
func (s *server) apply(in SubscriptionInput, to *db.Subscription, allowsHTTP bool) (credentials, []FieldError) {
	byDefault, channel := defaultSubscription(), to.ChannelType
	to.Name = in.Name.pick(to.Name, "")
	found := checkText("name", to.Name, maxNameBytes)
	sealed, wrong := s.applyChannel(in.Channel, to, allowsHTTP)
	found = append(found, wrong...)
	found = append(found, applyEventTypes(in.EventTypes, to)...)
	found = append(found, applyFilters(in.Filters, to)...)
	found = append(found, applyFormat(in.Format, to, to.ChannelType != channel)...)
	found = append(found, applyRetrySchedule(in.RetrySchedule, to)...)
	to.SuccessRule = in.Success.pick(to.SuccessRule, byDefault.SuccessRule)
	found = append(found, applyTimeout(in.Timeout, to)...)
	to.MaxInFlight = in.MaxInFlight.pick(to.MaxInFlight, byDefault.MaxInFlight)
	if in.RateLimitPerSecond.set {
		to.RateLimitPerSecond = nil
		if in.RateLimitPerSecond.isValue() {
			to.RateLimitPerSecond = &in.RateLimitPerSecond.value
		}
	}
	to.Ordering = in.Ordering.pick(to.Ordering, byDefault.Ordering)
	found = append(found, applyBatch(in.Batch, to)...)
	return sealed, append(found, checkTogether(to)...)
}

func applyEventTypes(in optional[[]string], to *db.Subscription) (found []FieldError) {
	if in.set || len(to.EventTypes) == 0 {
		to.EventTypes, found = checkEventTypes("event_types", in.value)
	}
	if !in.isValue() && len(found) > 0 {
		return []FieldError{{"event_types", "required", "is required"}}
	}
	return found
}

func applyRetrySchedule(in optional[RetrySchedule], to *db.Subscription) []FieldError {
	if !in.set {
		return nil
	}
	if in.null {
		in.value.Preset = db.DefaultRetryPreset
	}
	if in.value.Delays != nil {
		return applyDelays(in.value.Delays, to)
	}
	preset, ok := db.FindRetryPreset(in.value.Preset)
	if !ok {
		return []FieldError{{"retry_schedule", "not_allowed", "must be one of " + db.RetryPresetNames() + ", or a list of delays"}}
	}
	to.RetryPreset, to.RetrySchedule, to.RetryJitter, to.SuspendWhenExhausted = &preset.Name, preset.Schedule, preset.Jitter, preset.SuspendWhenExhausted
	return nil
}

func applyDelays(delays []string, to *db.Subscription) (found []FieldError) {
	if len(delays) < 1 || len(delays) > maxRetries {
		return []FieldError{{"retry_schedule", "out_of_range", fmt.Sprintf("must have 1 to %d delays", maxRetries)}}
	}
	schedule := make([]time.Duration, len(delays))
	for i, text := range delays {
		delay, wrong := checkDuration(fmt.Sprintf("retry_schedule[%d]", i), text, minRetryDelay, maxRetryDelay)
		schedule[i] = delay
		found = append(found, wrong...)
	}
	to.RetryPreset, to.RetrySchedule, to.RetryJitter, to.SuspendWhenExhausted = nil, schedule, db.DefaultRetryJitter, false
	return found
}

func applyTimeout(in optional[string], to *db.Subscription) (found []FieldError) {
	switch {
	case in.null:
		to.Timeout = defaultSubscription().Timeout
	case in.set:
		to.Timeout, found = checkDuration("timeout", in.value, minTimeout, maxTimeout)
	}
	return found
}
