package db_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mailhook/db"
)

func TestRetryPresets(t *testing.T) {
	t.Parallel()
	const thirtySeconds, thirtyMinutes = "30s 30s 30s 30s 30s 30s 30s 30s 30s 30s", "30m 30m 30m 30m 30m 30m 30m 30m 30m 30m"
	for name, want := range map[string]string{
		"standard":   "5s 5m 30m 2h 5h 10h 14h 20h 24h",
		"svix":       "5s 5m 30m 2h 5h 10h 10h",
		"resend":     "5s 5m 30m 2h 5h 10h 10h",
		"mailgun":    "10m 10m 15m 30m 1h 2h 4h",
		"postmark":   "1m 5m 10m 10m 10m 15m 30m 1h 2h 6h",
		"sparkpost":  "1m 2m 4m 8m 15m 30m 1h 2h 4h",                 // 8 h in all
		"sendgrid":   "1m 4m 10m 15m 30m 1h 2h 4h 6h 10h",            // 24 h in all
		"mumara-one": "1m 2m 4m 8m 16m 32m 64m 128m 256m 512m 1024m", // exponential
		"mailjet":    thirtySeconds + " " + thirtyMinutes,
	} {
		preset, ok := db.FindRetryPreset(name)
		var schedule []time.Duration
		for delay := range strings.FieldsSeq(want) {
			d, err := time.ParseDuration(delay)
			if err != nil {
				t.Fatal(err)
			}
			schedule = append(schedule, d)
		}
		if !ok || !slices.Equal(preset.Schedule, schedule) {
			t.Errorf("%s: %v, want %v", name, preset.Schedule, schedule)
		}
		if isMailjet := name == "mailjet"; preset.SuspendWhenExhausted != isMailjet || (preset.Jitter == 0) != isMailjet {
			t.Errorf("%s: %+v", name, preset)
		}
	}
	if len(db.RetryPresets()) != 9 || db.RetryPresetNames() != "standard, svix, resend, mailgun, postmark, sparkpost, sendgrid, mumara-one, mailjet" {
		t.Error(db.RetryPresetNames())
	}
	for _, preset := range db.RetryPresets() {
		for _, delay := range preset.Schedule {
			if delay < time.Second || delay > 24*time.Hour { // what an explicit schedule may have
				t.Errorf("%s: %v", preset.Name, delay)
			}
		}
	}
	if _, ok := db.FindRetryPreset("never"); ok || db.RetryPresets()[0].Name != db.DefaultRetryPreset {
		t.Error("the default is not the first, or there is one too many")
	}
}
