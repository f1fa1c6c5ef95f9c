package main

import (
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// checkerOfOne is a checker with one subscription and nothing in its ledgers.
func checkerOfOne(t *testing.T) (*checker, uuid.UUID) {
	t.Helper()
	id := uuid.New()
	f := &field{began: time.Now().Add(-time.Hour), subscriptions: []*subscription{{id: id, account: "a", types: []string{"*"}, healthy: true, schedule: []time.Duration{10 * time.Second}}}}
	return &checker{field: f, fates: map[pair]*fate{}, examples: map[string][]string{}, counts: map[string]int{}, facts: facts{committed: map[int64]fact{}, rolledBack: map[int64]bool{}}}, id
}

// Each invariant about the attempts of one delivery is broken once, and said by name.
func TestBrokenDeliveriesAreTold(t *testing.T) {
	t.Parallel()
	start := time.Now()
	after := func(d time.Duration, a attempt) attempt { a.startedAt = start.Add(d); return a }
	for name, test := range map[string]struct {
		attempts []attempt
		want     string // "": nothing is wrong
	}{
		"in order":                             {[]attempt{after(0, attempt{number: 1, outcome: "http_5xx"}), after(9*time.Second, attempt{number: 2, outcome: "ok", endedAs: "delivered"})}, ""},
		"cancelled":                            {[]attempt{after(0, attempt{number: 1, outcome: "http_5xx"}), after(time.Second, attempt{number: 1, endedAs: "cancelled"})}, ""},
		"too early":                            {[]attempt{after(0, attempt{number: 1, outcome: "http_5xx"}), after(7*time.Second, attempt{number: 2, outcome: "ok", endedAs: "delivered"})}, "an attempt before next_attempt_at"},
		"too early by the length of the first": {[]attempt{after(0, attempt{number: 1, outcome: "http_5xx", took: 2 * time.Second}), after(9*time.Second, attempt{number: 2, outcome: "ok", endedAs: "delivered"})}, "an attempt before next_attempt_at"},
		"no end":                               {[]attempt{after(0, attempt{number: 1, outcome: "http_5xx"})}, "a delivery does not end once"},
		"two ends":                             {[]attempt{after(0, attempt{number: 1, outcome: "ok", endedAs: "delivered"}), after(time.Second, attempt{number: 1, endedAs: "cancelled"})}, "a delivery does not end once"},
		"a gap":                                {[]attempt{after(0, attempt{number: 2, outcome: "ok", endedAs: "delivered"})}, "attempts are not numbered from 1 without gaps"},
		"beyond the end":                       {[]attempt{after(0, attempt{number: 1, outcome: "reset"}), after(time.Minute, attempt{number: 2, outcome: "reset"}), after(2*time.Minute, attempt{number: 3, outcome: "reset", endedAs: "exhausted"})}, "an attempt beyond the schedule"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, id := checkerOfOne(t)
			for i := range test.attempts {
				test.attempts[i].subscription = id
			}
			c.checkDelivery(c.field.numbers(), test.attempts)
			if test.want == "" && len(c.counts) > 0 || test.want != "" && c.counts[test.want] == 0 {
				t.Errorf("%v, expected %q", c.examples, test.want)
			}
		})
	}
}

// What is committed must end, what is rolled back must not be seen, and an accepted request may not come again.
func TestBrokenPairsAreTold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		committed bool
		fate      *fate
		want      string
	}{
		"delivered":   {true, &fate{deliveries: 1, ends: 1, delivered: 1, accepted: 1}, ""},
		"no trace":    {true, nil, "LOST"},
		"no end":      {true, &fate{deliveries: 1, accepted: 1}, "LOST"},
		"given up":    {true, &fate{deliveries: 1, ends: 1}, "an event of a healthy endpoint was not delivered"},
		"not sent":    {true, &fate{deliveries: 1, ends: 1, delivered: 1}, "never accepted"},
		"twice":       {true, &fate{deliveries: 1, ends: 1, delivered: 1, accepted: 2}, "1 duplicates"},
		"rolled back": {false, &fate{deliveries: 1, ends: 1, delivered: 1, accepted: 1}, "did not commit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := checkerOfOne(t)
			if test.committed {
				c.facts.committed[1] = fact{account: "a", eventType: "email.sent"}
			}
			if test.fate != nil {
				c.fates[pair{0, 1}] = test.fate
			}
			c.checkExpected()
			c.checkFates()
			c.tell()
			told := strings.Join(c.field.problems, "\n")
			if test.want == "" && told != "" || !strings.Contains(told, test.want) {
				t.Errorf("%q, expected %q", told, test.want)
			}
		})
	}
}

func TestRecoveryCountsFromTheFaultThatHeldUp(t *testing.T) {
	t.Parallel()
	c, _ := checkerOfOne(t)
	f, p := c.field, pair{0, 1}
	at := func(s float64) time.Time { return f.began.Add(time.Duration(s * float64(time.Second))) }
	f.faults = []fault{{from: at(10), to: at(12), outage: true}, {from: at(20), to: at(23), outage: true}, {from: at(30), to: at(30), stranded: map[pair]bool{{0, 2}: true}}, {from: at(50), to: at(50), stranded: map[pair]bool{}, everybody: true}}
	for _, test := range []struct {
		pair             pair
		committed, ended float64
		want             time.Duration
	}{
		{p, 5, 6, 0},
		{p, 9, 14, 2 * time.Second},
		{p, 9, 25, 10 * time.Second}, // 13 s, of which 3 were another outage
		{p, 13, 15, 0},
		{pair{0, 2}, 29, 46, 16 * time.Second},
		{pair{0, 2}, 29, 66, 16 * time.Second}, // from when nobody was left to rescue
		{p, 29, 66, 0},
		{p, 29, 46, 0}, // not of the killed worker
	} {
		if got := f.heldUp(test.pair, at(test.committed), at(test.ended)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestTheLedgerIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	l, err := newLedger(filepath.Join(t.TempDir(), "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		if err := l.appendDurably(transaction{Number: i}); err != nil || l.durable != i+1 {
			t.Fatal(err, l.durable)
		}
	}
	var got []int64
	if err := readLedger(l, func(x transaction) { got = append(got, x.Number) }); err != nil || len(got) != 3 || got[2] != 2 {
		t.Error(got, err)
	}
	l.file.Close()
	if l.append(transaction{}) == nil {
		t.Error("a closed ledger takes lines")
	}
}

func TestTheFitFindsASlopeAndItsError(t *testing.T) {
	t.Parallel()
	start, slope, deviation := fit([]float64{0, 1, 2, 3}, []float64{1, 3, 5, 7})
	if start != 1 || slope != 2 || deviation > 1e-9 {
		t.Error(start, slope, deviation)
	}
	// By hand: residuals ±0.5 about a slope of 0.2.
	if _, slope, deviation = fit([]float64{0, 1, 2, 3}, []float64{0, 1, 0, 1}); math.Abs(slope-0.2) > 1e-9 || math.Abs(deviation-math.Sqrt(0.8/2/5)) > 1e-9 {
		t.Error(slope, deviation)
	}
}
