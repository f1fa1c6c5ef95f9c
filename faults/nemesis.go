package main

import (
	"context"
	"syscall"
	"time"
)

// nemesis mixes the faults at random, one after the other, for DURATION (two minutes). Recovery has no bar here: an outage
// in the middle of a rescue begins its 15 s anew.
func nemesis() scenario {
	return scenario{
		name: "nemesis", what: "all faults in random order",
		workers: 3, load: usualLoad(), drain: 2 * time.Minute, market: sluggish,
		run: func(ctx context.Context, f *field) error {
			random, counts := f.random("nemesis"), map[string]int{}
			for end := time.Now().Add(f.duration(2 * time.Minute)); time.Now().Before(end); {
				names := []string{"crash", "crash on answer", "terminate", "database", "short stop", "long stop", "endpoints"}
				name := names[random.IntN(len(names))]
				counts[name]++
				if err := f.strike(ctx, name, time.Duration(random.IntN(4000))*time.Millisecond, random.IntN(1000)); err != nil {
					return err
				}
				if !pause(ctx, time.Second+time.Duration(random.IntN(3000))*time.Millisecond) {
					return ctx.Err()
				}
			}
			f.note("%v", counts)
			return nil
		},
	}
}

// strike makes one fault, as long as it lasts, and mends it.
func (f *field) strike(ctx context.Context, name string, lasts time.Duration, die int) error {
	living := f.living()
	victim := living[die%len(living)]
	switch name {
	case "crash":
		if err := f.crash(ctx, victim); err != nil {
			return err
		}
		return f.startWorkers(ctx, 1)
	case "crash on answer":
		if err := f.crashOnAnswer(ctx); err != nil {
			return err
		}
		return f.startWorkers(ctx, len(living))
	case "terminate":
		_, err := f.terminateOurs(ctx)
		return err
	case "database":
		return f.crashDatabase(ctx, lasts/2)
	case "short stop": // less than the standstill: nothing may come of it
		victim.signal(syscall.SIGSTOP)
		pause(ctx, lasts)
		victim.signal(syscall.SIGCONT)
	case "long stop":
		return f.stall(ctx, victim)
	default:
		s := f.everySubscription()[die%len(f.everySubscription())]
		s.behave(behaviour{manner: manner(1 + die%3)})
		pause(ctx, lasts)
		s.behave(behaviour{})
	}
	return nil
}
