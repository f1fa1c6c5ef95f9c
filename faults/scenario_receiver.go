package main

import (
	"context"
	"time"
)

// deadEndpoints compares healthy endpoints beside others that are dead with the same in calm times, in turns.
func deadEndpoints() scenario {
	const timeout = 5 * time.Second
	var calm, broken []interval
	return scenario{
		name: "dead-endpoints", what: "30 % of endpoints blackholed, 20 % failing, 10 % dripping", ci: true, isLong: true,
		workers: 2, load: usualLoad(), drain: 2 * time.Minute,
		market: func(ctx context.Context, f *field) error {
			for i := range accounts {
				// Of twenty accounts with one subscription each: 6 are blackholed, 4 failing, 2 dripping, 8 healthy.
				if _, err := f.subscribe(ctx, &subscription{account: account(i), types: []string{"*"}, healthy: i >= 12, timeout: timeout}); err != nil {
					return err
				}
			}
			return nil
		},
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			for range 3 {
				calm = append(calm, f.lasting(ctx, f.seconds(15)))
				f.breakEndpoints(f.subscriptions[:12])
				broken = append(broken, f.lasting(ctx, f.seconds(25)))
				for _, s := range f.subscriptions {
					s.behave(behaviour{})
				}
				pause(ctx, timeout+time.Second) // until no request waits for a dead one
			}
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			f.compare("healthy endpoints beside dead ones", p99(c.lateDuring(calm)), p99(c.lateDuring(broken)))
			return nil
		},
	}
}

// breakEndpoints: a half of them blackholed, a third failing, a sixth dripping.
func (f *field) breakEndpoints(some []*subscription) {
	for i, s := range some {
		switch {
		case i < len(some)/2:
			s.behave(behaviour{manner: blackholed})
		case i < len(some)*5/6:
			s.behave(behaviour{status: 500})
		default:
			s.behave(behaviour{manner: dripping})
		}
	}
}

// lasting waits, and answers when.
func (f *field) lasting(ctx context.Context, d time.Duration) interval {
	from := time.Now()
	pause(ctx, d)
	return interval{from, time.Now()}
}

// mostSlower is what healthy endpoints may suffer from others.
const mostSlower = 1.5

// mostCalm is what an event takes at most where nothing is broken, on a busy machine, too.
const mostCalm = time.Second

// compare holds a p99 with a fault against one without. Below floor nobody suffers: on a machine that others use, a few
// milliseconds are noise.
func (f *field) compare(what string, without, with time.Duration) {
	f.note("p99 of %s: %v, without the fault %v", what, with.Round(time.Millisecond), without.Round(time.Millisecond))
	const floor = 50 * time.Millisecond
	if without == 0 || with == 0 {
		f.problem("nothing to compare for %s", what)
	} else if without > mostCalm {
		f.slow("p99 without the fault is %v: that is no calm time to compare %s with", without, what)
	} else if float64(with) > mostSlower*float64(without) && with > floor {
		f.slow("p99 of %s is %v, without the fault %v", what, with, without)
	}
}

// allDown lets every endpoint end its connections for a while, and then answer: each gets no more at once than its rate limit.
func allDown() scenario {
	const rate = 60
	var up, end time.Time
	return scenario{
		name: "all-down", what: "all endpoints down, then up: the peak at each is bounded", ci: true,
		workers: 2, load: usualLoad(),
		market: func(ctx context.Context, f *field) error {
			for i := range accounts {
				if _, err := f.subscribe(ctx, &subscription{account: account(i), types: []string{"*"}, healthy: true, rate: rate}); err != nil {
					return err
				}
			}
			return nil
		},
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			down := time.Now()
			for _, s := range f.subscriptions {
				s.behave(behaviour{manner: resetting})
			}
			pause(ctx, max(5*time.Second, f.seconds(20)))
			for _, s := range f.subscriptions {
				s.behave(behaviour{})
			}
			up = time.Now()
			f.faulty(fault{from: down, to: up})
			pause(ctx, 10*time.Second)
			end = time.Now()
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			peak, err := f.peakRate(up)
			f.note("peak %d requests/s at one endpoint, limit %d/s", peak, rate)
			if peak > 2*rate { // a second's worth may have been saved up
				f.problem("an endpoint got %d requests within a second after it came back, its limit is %d/s", peak, rate)
			}
			late := p99(c.lateBetween(up.Add(afterFault), end))
			f.note("p99 of what was committed 5 s after: %v", late.Round(time.Millisecond))
			if late > time.Second {
				f.slow("5 s after the endpoints came back, new events still take %v", late)
			}
			return err
		},
	}
}

// peakRate is the most requests that one endpoint got within any second from a moment on.
func (f *field) peakRate(from time.Time) (peak int, err error) {
	recent := map[int][]int64{}
	err = readLedger(f.receiver.ledger, func(r receipt) {
		if r.At < f.at(from) {
			return
		}
		times := append(recent[r.Subscription], r.At)
		for times[0] <= r.At-time.Second.Microseconds() {
			times = times[1:]
		}
		recent[r.Subscription] = times
		peak = max(peak, len(times))
	})
	return peak, err
}
