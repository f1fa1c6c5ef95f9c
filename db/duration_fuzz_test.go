package db_test

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"mailhook/db"
)

// FuzzDuration: what is accepted is the time that package time reads, and is written back as the same.
func FuzzDuration(f *testing.F) {
	for _, text := range []string{"", "s", "30s", "5m", "1d", "14d", "336h", "1ms", "-1s", "+1s", "1", "1.5s", "99999999999s", "2147483647d", "1s1s", "0x1s", "٣s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := db.ParseDuration(text)
		if err != nil {
			return
		}
		if standard, err := time.ParseDuration(text); d < 0 || err == nil && standard != d || err != nil && !strings.HasSuffix(text, "d") && d != math.MaxInt64 {
			t.Fatalf("%q is %v, by package time %v, %v", text, d, standard, err)
		}
		if days, err := strconv.ParseFloat(strings.TrimSuffix(text, "d"), 64); err == nil && d != math.MaxInt64 && d.Hours() != 24*days {
			t.Fatalf("%q is %v", text, d)
		}
		if d == math.MaxInt64 {
			return // longer than can be written
		}
		for _, written := range []string{db.FormatDuration(d), db.FormatDays(d)} {
			if again, err := db.ParseDuration(written); err != nil || again != d {
				t.Fatalf("%q is %v, written %q, read as %v, %v", text, d, written, again, err)
			}
		}
	})
}
