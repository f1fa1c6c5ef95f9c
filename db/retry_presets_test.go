package db_test

import (
	"testing"
	"time"

	"mailhook/db"
)

func TestRetryPresets(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		delays int
		total  time.Duration
	}{
		"standard":   {9, 75*time.Hour + 35*time.Minute + 5*time.Second},
		"svix":       {7, 27*time.Hour + 35*time.Minute + 5*time.Second},
		"resend":     {7, 27*time.Hour + 35*time.Minute + 5*time.Second},
		"mailgun":    {7, 8*time.Hour + 5*time.Minute},
		"postmark":   {10, 10*time.Hour + 21*time.Minute},
		"sparkpost":  {9, 8 * time.Hour},
		"sendgrid":   {10, 24 * time.Hour},
		"mumara-one": {11, 34*time.Hour + 7*time.Minute},
		"mailjet":    {20, 305 * time.Minute},
	} {
		preset, ok := db.FindRetryPreset(name)
		var total time.Duration
		for _, delay := range preset.Schedule {
			total += delay
		}
		if !ok || len(preset.Schedule) != want.delays || total != want.total {
			t.Errorf("%s: %d delays, %v in all", name, len(preset.Schedule), total)
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
