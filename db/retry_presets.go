package db

import (
	"slices"
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

// DefaultRetryJitter is the jitter of standard, svix and explicit schedules.
const DefaultRetryJitter = 0.2

// RetryPresets is the table of presets, the default first. svix and mailjet are the schedules of those services.
func RetryPresets() []RetryPreset {
	return []RetryPreset{
		{
			Name: "standard",
			Schedule: []time.Duration{
				5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
				10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
			},
			Jitter: DefaultRetryJitter,
		},
		{
			Name: "svix",
			Schedule: []time.Duration{
				5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour,
			},
			Jitter: DefaultRetryJitter,
		},
		{
			Name:                 "mailjet",
			Schedule:             slices.Concat(slices.Repeat([]time.Duration{30 * time.Second}, 10), slices.Repeat([]time.Duration{30 * time.Minute}, 10)),
			SuspendWhenExhausted: true,
		},
	}
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
