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
		"standard": {9, 75*time.Hour + 35*time.Minute + 5*time.Second},
		"svix":     {7, 27*time.Hour + 35*time.Minute + 5*time.Second},
		"mailjet":  {20, 305 * time.Minute},
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
	if _, ok := db.FindRetryPreset("never"); ok || db.RetryPresets()[0].Name != db.DefaultRetryPreset {
		t.Error("the default is not the first, or there is one too many")
	}
}
