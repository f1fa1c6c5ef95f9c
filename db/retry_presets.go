package db

import (
	"slices"
	"strings"
	"time"
)

// A RetryPreset is a retry schedule with a name.
type RetryPreset struct {
	Name string
	// Schedule is the delay after each failure: n delays are n + 1 attempts.
	Schedule []time.Duration
	// Jitter is the share by which a delay varies at random, either way.
	Jitter float32
	// SuspendWhenExhausted suspends the subscription when a schedule ends without success.
	SuspendWhenExhausted bool
}

// DefaultRetryPreset is the name of the preset of a subscription that asks for nothing else. Migration 00006 has the
// same values as column defaults.
const DefaultRetryPreset = "standard"

// DefaultRetryJitter is the jitter of every schedule but mailjet's, explicit ones included.
const DefaultRetryJitter = 0.2

// RetryPresets is the table of presets, the default first: how the services of those names repeat a webhook. SparkPost, SendGrid and
// Mumara ONE publish for how long (8 h, 24 h), or only that the delays grow: the steps are ours.
func RetryPresets() []RetryPreset {
	const s, m, h = time.Second, time.Minute, time.Hour
	svix := []time.Duration{5 * s, 5 * m, 30 * m, 2 * h, 5 * h, 10 * h, 10 * h}
	presets := []RetryPreset{
		{Name: DefaultRetryPreset, Schedule: []time.Duration{5 * s, 5 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h}},
		{Name: "svix", Schedule: svix},
		{Name: "resend", Schedule: svix},
		{Name: "mailgun", Schedule: []time.Duration{10 * m, 10 * m, 15 * m, 30 * m, 1 * h, 2 * h, 4 * h}},
		{Name: "postmark", Schedule: []time.Duration{1 * m, 5 * m, 10 * m, 10 * m, 10 * m, 15 * m, 30 * m, 1 * h, 2 * h, 6 * h}},
		{Name: "sparkpost", Schedule: []time.Duration{1 * m, 2 * m, 4 * m, 8 * m, 15 * m, 30 * m, 1 * h, 2 * h, 4 * h}},
		{Name: "sendgrid", Schedule: []time.Duration{1 * m, 4 * m, 10 * m, 15 * m, 30 * m, 1 * h, 2 * h, 4 * h, 6 * h, 10 * h}},
		{Name: "mumara-one", Schedule: []time.Duration{1 * m, 2 * m, 4 * m, 8 * m, 16 * m, 32 * m, 64 * m, 128 * m, 256 * m, 512 * m, 1024 * m}},
		{Name: "mailjet", Schedule: slices.Concat(slices.Repeat([]time.Duration{30 * s}, 10), slices.Repeat([]time.Duration{30 * m}, 10)), SuspendWhenExhausted: true},
	}
	for i := range presets {
		if presets[i].Name != "mailjet" {
			presets[i].Jitter = DefaultRetryJitter
		}
	}
	return presets
}

// RetryPresetNames are the names of the presets in one text, for people.
func RetryPresetNames() string {
	var names []string
	for _, preset := range RetryPresets() {
		names = append(names, preset.Name)
	}
	return strings.Join(names, ", ")
}

// FindRetryPreset is the preset of that name.
func FindRetryPreset(name string) (RetryPreset, bool) {
	for _, preset := range RetryPresets() {
		if preset.Name == name {
			return preset, true
		}
	}
	return RetryPreset{}, false
}
