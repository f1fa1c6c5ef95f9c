package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"time"

	"mailhook/db/localpg"
)

const (
	clockStep  = 90 * time.Second
	standstill = 5 * time.Second
	// stepSlack is how long a claim or a record may take to come from the database's clock to the ledger or back.
	stepSlack = 2 * time.Second
)

// A step is a moment at which the database's clock was set, and how far ahead it was from then on.
type step struct {
	at     time.Time
	offset time.Duration
}

// clockSteps sets the database's clock forward and back, and back and forward, beside an account whose endpoint fails now
// and then.
func clockSteps() scenario {
	var steps []step
	var began, ended time.Time
	flaky := &subscription{account: "flaky", types: []string{"*"}, behaviour: behaviour{flaky: 0.5}}
	return scenario{
		name: "clock", what: "the database's clock stepped by +90 s, −90 s, −90 s and +90 s under load",
		workers: 2, load: usualLoad(), drain: 3 * time.Minute,
		ground: byOwnClock,
		market: func(ctx context.Context, f *field) error {
			if err := sluggish(ctx, f); err != nil {
				return err
			}
			if _, err := f.subscribe(ctx, flaky); err != nil {
				return err
			}
			// Events from before a subscription was made are none of its own, also by a clock that was set back over it.
			return f.exec(ctx, "UPDATE mailhook.subscriptions SET created_at = created_at - interval '1 day'")
		},
		run: func(ctx context.Context, f *field) error {
			steps = []step{{f.began, 0}}
			began = time.Now()
			for _, by := range []time.Duration{clockStep, -clockStep, -clockStep, clockStep} {
				if err := f.host.bulk(ctx, flaky.account, 100); err != nil {
					return err
				}
				if !pause(ctx, f.seconds(8)) {
					return ctx.Err()
				}
				if err := f.clock.Step(by); err != nil {
					return err
				}
				steps = append(steps, step{time.Now(), f.clock.Offset()})
			}
			pause(ctx, f.seconds(8))
			ended = time.Now()
			return nil
		},
		verify: func(ctx context.Context, f *field, c *checker) error {
			f.boundLateness(c, began, ended, standstill)
			rescued, err := f.sumMetric(ctx, "mailhook_workers_rescued_total")
			if rescued > 0 {
				f.problem("%.0f live workers were rescued", rescued)
			}
			return errors.Join(err, f.checkTimes(flaky, steps))
		},
	}
}

// byOwnClock gives PostgreSQL a clock that can be set.
func byOwnClock(f *field, o *localpg.Options) error {
	dir, err := os.MkdirTemp("", "mailhook-clock-")
	if err != nil {
		return err
	}
	f.atEnd(func() { os.RemoveAll(dir) })        //nolint:errcheck // in a temporary directory
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the server's account reads it
		return err
	}
	o.Clock, err = localpg.NewClock(dir)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, errors.ErrUnsupported) {
		return notRun(err.Error())
	}
	return err
}

// checkTimes holds the requests of one subscription against its schedule by the database's clock: what it showed when the
// outcome before was recorded, and when the delivery was claimed. Where a step lies near, the more lenient of both counts.
func (f *field) checkTimes(s *subscription, steps []step) error {
	byKey := map[int64][]receipt{}
	err := readLedger(f.receiver.ledger, func(r receipt) {
		if r.Subscription == s.number {
			byKey[r.Key] = append(byKey[r.Key], r)
		}
	})
	retries := 0
	for key, all := range byKey {
		slices.SortFunc(all, func(a, b receipt) int { return int(a.At - b.At) })
		for i := 1; i < len(all); i++ {
			retries++
			recorded, _ := f.shown(steps, all[i-1].Answered, 0, stepSlack)
			_, claimed := f.shown(steps, all[i].At, -stepSlack, 0)
			least := time.Duration(float64(s.schedule[min(i, len(s.schedule))-1]) * (1 - jitter))
			if gap := claimed.Sub(recorded); gap < least-2*time.Millisecond {
				f.problem("an attempt before next_attempt_at: key %d, request %d came %v after the one before by the database's clock, at least %v are due", key, i+1, gap, least)
			}
		}
	}
	if retries == 0 {
		f.problem("no request came twice: nothing was shown of next_attempt_at")
	}
	f.note("%d retries held against the database's clock", retries)
	return err
}

// shown is the least and the most that the database's clock can have shown at a moment of the ledgers, if that is off by
// something between before and after.
func (f *field) shown(steps []step, at int64, before, after time.Duration) (least, most time.Time) {
	moment := f.began.Add(time.Duration(at) * time.Microsecond)
	for i, x := range steps {
		if x.at.After(moment.Add(after)) || i+1 < len(steps) && steps[i+1].at.Before(moment.Add(before)) {
			continue
		}
		t := moment.Add(x.offset)
		if least.IsZero() || t.Before(least) {
			least = t
		}
		most = later(most, t)
	}
	return least, most
}
