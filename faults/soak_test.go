package main

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// What grows is found beside what comes and goes, and what comes and goes is not taken for growth.
func TestGrowth(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	run := func(perHour float64, plateau bool) string {
		f := &field{plots: t.TempDir(), lasts: time.Hour, scale: 1}
		var samples []sample
		for at := time.Duration(0); at < time.Hour; at += 10 * time.Second {
			s := sample{at: at, goroutines: 400 + perHour*at.Hours() + 10*random.Float64()}
			if n := int(at / (5 * time.Minute)); at%(5*time.Minute) < time.Minute || plateau && n >= 5 && n < 9 {
				s.goroutines += 400
			}
			samples = append(samples, s)
		}
		if err := f.judge(quantities()[1], samples); err != nil {
			t.Fatal(err)
		}
		return strings.Join(f.problems, " ")
	}
	for _, plateau := range []bool{false, true} {
		if told := run(0, plateau); told != "" {
			t.Errorf("plateau %v, nothing grows: %s", plateau, told)
		}
	}
	if told := run(60, false); !strings.Contains(told, "goroutines grows") {
		t.Errorf("one goroutine a minute is not found: %q", told)
	}
}
