package main

import (
	"context"
	"errors"
	"time"

	"mailhook/db/localpg"
)

// A scenario is one way to break something. Its run breaks it, while the host writes and the workers deliver; all else
// is the same for each: install, begin, break, stop the host, drain, check.
type scenario struct {
	name, what string
	ci         bool // in the small version
	named      bool // only by name
	isLong     bool // begins before the others

	workers  int
	breaks   string // what the broken binary leaves out (MAILHOOK_BREAK)
	load     load
	settings map[string]string // of PostgreSQL
	// ground, if given, says where PostgreSQL lies and by which clock it lives. It fails with notRun where this machine has no such ground.
	ground func(*field, *localpg.Options) error
	// place, if given, puts something between PostgreSQL and those that connect to it.
	place func(context.Context, *field) error
	// market makes the subscriptions; nil is the usual.
	market func(context.Context, *field) error
	run    func(context.Context, *field) error
	// verify, if given, adds what only this scenario asks.
	verify func(context.Context, *field, *checker) error
	// instead, if given, is all there is: no field, no ledgers.
	instead func(context.Context, options, *result) error

	recovery time.Duration // the bar; 0: none
	drain    time.Duration // the deadline; 0 is a minute
}

// notRun is what this machine lacks for a scenario. Such a scenario is neither green nor red.
type notRun string

func (n notRun) Error() string { return "not run: " + string(n) }

// The bars of recovery.
const (
	afterFault = 5 * time.Second
	afterKill  = 20 * time.Second
)

func scenarios() []scenario {
	return []scenario{
		sigkill(), window(), sigterm(), sigstop(), terminate(), restart(),
		promoteSync(), promoteAsync(), halfOpen(), pooler(), clockSteps(), upgrade(), diskFull(),
		poison(), deadEndpoints(), hostileEndpoints(), allDown(), churn(), snapshot(), million(), connections(),
		proof(), nemesis(), soak(),
	}
}

func (s scenario) execute(ctx context.Context, o options) (r result) {
	began := time.Now()
	r = result{Scenario: s.name, What: s.what, Seed: o.seed}
	defer func() { r.Seconds = time.Since(began).Seconds() }()
	if s.instead != nil {
		if err := s.instead(ctx, o, &r); err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		return r
	}
	f, err := installField(ctx, s, o)
	if err != nil {
		missing, ok := errors.AsType[notRun](err)
		if r.NotRun = string(missing); !ok {
			r.Problems = append(r.Problems, err.Error())
		}
		if f != nil {
			f.close(!ok)
		}
		return r
	}
	if err := f.campaign(ctx, &r); err != nil {
		f.problem("%v", err)
	}
	f.mu.Lock()
	r.Allowed, r.PeakRSS, r.Notes, r.Problems = f.allowed, f.peakRSS, f.notes, f.problems
	f.mu.Unlock()
	if len(r.Problems) > 0 {
		r.Directory = f.dir
	}
	f.close(len(r.Problems) > 0)
	return r
}

// campaign is the course of every scenario.
func (f *field) campaign(ctx context.Context, r *result) error {
	s := f.scenario
	market := s.market
	if market == nil {
		market = func(ctx context.Context, f *field) error { return f.populate(ctx) }
	}
	if err := market(ctx, f); err != nil {
		return err
	}
	if err := f.startWorkers(ctx, s.workers); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go f.watchMemory(watching)
	go f.watchLocks(watching)
	go f.bystand(watching)

	f.host.start(ctx, s.load)
	broke := s.run(ctx, f)
	if err := errors.Join(broke, f.host.stop(ctx)); err != nil {
		return err
	}
	deadline := s.drain
	if deadline == 0 {
		deadline = time.Minute
	}
	if err := f.drain(ctx, deadline); err != nil {
		return err
	}
	c, err := f.check(ctx)
	if err != nil {
		return err
	}
	r.Events, r.Receipts, r.Lost, r.Duplicates = c.verdict.events, c.verdict.receipts, c.verdict.lost, c.verdict.duplicates
	r.Recovery = c.verdict.recovery.Seconds()
	if s.recovery > 0 && c.verdict.netRecovery > s.recovery {
		f.slow("recovery took %v, more than %v", c.verdict.netRecovery.Round(10*time.Millisecond), s.recovery)
	}
	f.tellStalls()
	if s.verify != nil {
		if err := s.verify(ctx, f, c); err != nil {
			return err
		}
	}
	f.settle(ctx)
	f.checkMemory()
	return f.checkFrugality(ctx)
}
