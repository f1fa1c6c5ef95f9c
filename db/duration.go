package db

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads a whole number, at most 2147483647, and one of the units ms s m h d, as the API and all flags take it.
// What is too long for a Duration is the longest.
func ParseDuration(text string) (time.Duration, error) {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyz")
	unit, ok := map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": day,
	}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || digits[0] == '+' || digits[0] == '-' {
		return 0, errors.New("must be a whole number and one of the units ms s m h d, for example 30s")
	}
	if n > int64(math.MaxInt64/unit) {
		return math.MaxInt64, nil // it must not come round to a time within the bounds
	}
	return time.Duration(n) * unit, nil
}

// FormatDuration writes a duration as ParseDuration takes it: one number and the largest of the units h m s ms that is
// exact. Not d: a retry schedule is answered as 24h.
func FormatDuration(d time.Duration) string {
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if d >= u.unit && d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}

// FormatDays is FormatDuration with whole days as days.
func FormatDays(d time.Duration) string {
	if d >= day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return FormatDuration(d)
}
