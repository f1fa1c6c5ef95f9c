package main

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// usualLoad is what hosts write unless a scenario says otherwise.
func usualLoad() load { return load{connections: 4, rate: 300, most: 20} }

// sigkill kills a random worker every few seconds, and starts another.
func sigkill() scenario {
	return scenario{
		name: "sigkill", what: "SIGKILL of a random worker every 2 to 5 s, three workers", ci: true,
		workers: 3, load: usualLoad(), recovery: afterKill, market: sluggish,
		run: func(ctx context.Context, f *field) error {
			random := f.random("nemesis")
			for end := time.Now().Add(f.seconds(40)); time.Now().Before(end); {
				if !pause(ctx, 2*time.Second+time.Duration(random.IntN(3000))*time.Millisecond) {
					return ctx.Err()
				}
				living := f.living()
				if err := f.crash(ctx, living[random.IntN(len(living))]); err != nil {
					return err
				}
				if err := f.startWorkers(ctx, 1); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// window kills all workers in the moment in which an answer 2xx is on its way: it is not recorded, so the request comes
// again.
func window() scenario {
	return scenario{
		name: "window", what: "kill -9 of all workers between a receiver's 2xx and its record", ci: true,
		workers: 2, load: usualLoad(), recovery: afterKill, market: sluggish,
		run: func(ctx context.Context, f *field) error {
			random := f.random("nemesis")
			for range f.scaled(6, 2) {
				if !pause(ctx, time.Second+time.Duration(random.IntN(1000))*time.Millisecond) {
					return ctx.Err()
				}
				if err := f.crashOnAnswer(ctx); err != nil {
					return err
				}
				if err := f.startWorkers(ctx, 2); err != nil {
					return err
				}
			}
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			if c.verdict.duplicates == 0 {
				f.problem("no kill fell between an answer and its record: nothing was shown")
			}
			return nil
		},
	}
}

// crashOnAnswer kills all workers from the handler of the next answer.
func (f *field) crashOnAnswer(ctx context.Context) error {
	victims := f.living()
	struck := make(chan struct{})
	var once sync.Once
	hook := func(*subscription, receipt) {
		once.Do(func() {
			for _, p := range victims {
				p.signal(syscall.SIGKILL)
			}
			close(struck)
		})
	}
	f.receiver.answered.Store(&hook)
	defer f.receiver.answered.Store(nil)
	select {
	case <-struck:
	case <-time.After(30 * time.Second):
		return fmt.Errorf("no answer within 30 s")
	}
	return f.crash(ctx, victims...)
}

// slowAccount is one whose endpoint a scenario makes slow; its events come in bulk.
const slowAccount = "slow"

// withSlow is the usual market and a subscription with many slow requests.
func withSlow(b behaviour) func(context.Context, *field) error {
	return func(ctx context.Context, f *field) error {
		if err := f.populate(ctx); err != nil {
			return err
		}
		_, err := f.subscribe(ctx, &subscription{account: slowAccount, types: []string{"*"}, inFlight: 200, behaviour: b})
		return err
	}
}

// sigterm stops workers while 50 slow requests are in flight: the first time by one signal, the second by two.
func sigterm() scenario {
	return scenario{
		name: "sigterm", what: "SIGTERM with 50 slow requests in flight, twice, the second time by two signals", ci: true,
		workers: 1, load: usualLoad(), market: withSlow(behaviour{delay: 3 * time.Second}),
		run: func(ctx context.Context, f *field) error {
			for signals := 1; signals <= 2; signals++ {
				if err := f.stopBusyWorker(ctx, signals); err != nil {
					return err
				}
				if err := f.startWorkers(ctx, 1); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// stopTime is the grace of a stopping worker (--grace), and ten seconds.
const stopTime = 30 * time.Second

func (f *field) stopBusyWorker(ctx context.Context, signals int) error {
	if err := f.host.bulk(ctx, slowAccount, 50); err != nil {
		return err
	}
	if err := eventually(ctx, 20*time.Second, "50 requests in flight", func() (bool, error) { return f.receiver.open.Load() >= 50, nil }); err != nil {
		return err
	}
	victim := f.living()[0]
	began := time.Now()
	for range signals {
		victim.signal(syscall.SIGTERM)
		pause(ctx, 300*time.Millisecond)
	}
	if err := victim.awaitEnd(stopTime); err != nil {
		f.problem("after %d × SIGTERM: %v", signals, err)
	}
	f.note("%d × SIGTERM: stopped after %.1f s", signals, time.Since(began).Seconds())
	held, err := f.count(ctx, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL")
	if held > 0 {
		f.problem("%d deliveries are leased by a worker that has stopped in order", held)
	}
	return err
}

// sigstop stops a worker beyond the heartbeat, until the other has taken its deliveries and sent them again, and lets it
// go on. Its requests fail and those of the other last, so that an outcome which is not fenced puts off a delivery that is under way.
func sigstop() scenario {
	return scenario{
		name: "sigstop", what: "SIGSTOP beyond the heartbeat with requests in flight, then SIGCONT", ci: true,
		workers: 2, load: usualLoad(), recovery: afterKill,
		market: withSlow(behaviour{perTurn: []behaviour{{status: 503, delay: 4 * time.Second}, {status: 200, delay: 8 * time.Second}}}),
		run: func(ctx context.Context, f *field) error {
			if err := f.host.bulk(ctx, slowAccount, 100); err != nil {
				return err
			}
			if err := eventually(ctx, 20*time.Second, "80 requests in flight", func() (bool, error) { return f.receiver.open.Load() >= 80, nil }); err != nil {
				return err
			}
			return f.stall(ctx, f.living()[0])
		},
		verify: func(ctx context.Context, f *field, _ *checker) error {
			stale, err := f.sumMetric(ctx, "mailhook_stale_outcomes_total")
			if stale == 0 {
				f.problem("no outcome came too late (mailhook_stale_outcomes_total): nothing was shown")
			}
			f.note("%.0f outcomes fenced", stale)
			return err
		},
	}
}

// stall stops a worker until it has been rescued, and a second longer than it takes the other to begin.
func (f *field) stall(ctx context.Context, victim *process) error {
	victim.signal(syscall.SIGSTOP)
	defer victim.signal(syscall.SIGCONT)
	stopped := time.Now()
	stranded, err := f.held(ctx, victim.cmd.Process.Pid)
	if err != nil {
		return err
	}
	f.allow(len(stranded))
	f.faulty(fault{from: stopped, to: stopped, stranded: stranded})
	err = eventually(ctx, afterKill, "the stopped worker is rescued", func() (bool, error) {
		n, err := f.count(ctx, "SELECT count(*) FROM mailhook.workers WHERE pid = $1", victim.cmd.Process.Pid)
		return n == 0, err
	})
	if err != nil {
		return err
	}
	f.note("rescued after %.1f s", time.Since(stopped).Seconds())
	pause(ctx, 2*time.Second)
	return nil
}
