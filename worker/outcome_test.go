package worker

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

func TestEveryStatusHasItsOutcome(t *testing.T) {
	t.Parallel()
	for status := range 1400 {
		status, only200 := status%700, status >= 700
		var want string
		switch {
		case only200 && status > 200 && status < 300:
			want = "http_2xx"
		case status < 100 || status > 599:
			want = "bad_response"
		case status < 200:
			want = "http_1xx"
		case status < 300:
			want = "ok"
		case status < 400:
			want = "http_3xx"
		case status == 410:
			want = "http_410"
		case status == 429:
			want = "http_429"
		case status < 500:
			want = "http_4xx"
		default:
			want = "http_5xx"
		}
		o := outcome{word: statusOutcome(status, only200), statusCode: status}
		if o.word != want {
			t.Errorf("%d is %s, want %s (only 200: %v)", status, o.word, want, only200)
		}
		if o.delivered() != (want == "ok") || o.suspends() != (status == 410) {
			t.Errorf("%d: delivered %v, suspends %v", status, o.delivered(), o.suspends())
		}
		slows, vanishes := slices.Contains([]int{429, 502, 503, 504}, status), status == 502 || status == 504
		refuses := status >= 400 && status < 500 && !slices.Contains([]int{408, 410, 429}, status)
		breaks := status >= 500 && status < 600 && !slows
		if o.slows() != slows || o.vanishes() != vanishes || o.refuses() != refuses || o.breaks() != breaks {
			t.Errorf("%d: slows %v, vanishes %v, refuses %v, breaks %v", status, o.slows(), o.vanishes(), o.refuses(), o.breaks())
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"120", "", 2 * time.Minute},
		{" 7 ", "", 7 * time.Second},
		{"-1", "", 0},
		{"soon", "", 0},
		{"99999999999999999999", "", 0},
		{"4294967295", "", 48 * time.Hour},
		{"Mon, 15 Jan 2024 10:31:00 GMT", "", time.Minute},
		{"Mon, 15 Jan 2024 10:29:00 GMT", "", 0},
		// A receiver whose clock is an hour ahead means a minute all the same.
		{"Mon, 15 Jan 2024 11:31:00 GMT", "Mon, 15 Jan 2024 11:30:00 GMT", time.Minute},
	} {
		h := http.Header{"Retry-After": {c.value}, "Date": {c.date}}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("Retry-After %q, Date %q: %v, want %v", c.value, c.date, got, c.want)
		}
	}
}
