// Command faults breaks what can break, on purpose, and proves by ledgers that no event is lost: a private PostgreSQL for
// each scenario, workers that are the real binary, a host and receivers that write down what they did.
//
//	make faults                          every scenario but soak; writes docs/reliability.md
//	make faults SCENARIO=soak KEEP=1     an hour; adds its row to docs/reliability.md, and plots beside it
//	make faults SCENARIO=sigkill,stop    some of them; only prints
//	make faults-ci                       a small version of some, within 6 minutes: times are told, not judged
//
// Exit 1 if an invariant is broken. More of the environment:
//
//	SEED=7           the seed of all that is random; without it one of the clock, which is printed (1 in the small version)
//	SCALE=0.3        less time and fewer events
//	DURATION=1h      of nemesis and soak
//	EXPLAIN=1        the plans of statements over a second go into the log of PostgreSQL (auto_explain)
//	LANES=3          how many scenarios run at one time
//	KEEP=1           the rows of named scenarios go into the report, too, in place of those that are there
//	REPORT=file      where the report of a whole run goes
//	MAILHOOK_BIN     the binary that is tested; MAILHOOK_BROKEN_BIN the one with the tag broken, for proof
//	MAILHOOK_PG_BIN  the directory of PostgreSQL's binaries
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	begin := run
	if len(os.Args) == 2 && os.Args[1] == floodArgument {
		begin = runFlood
	}
	if err := begin(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1) //nolint:gocritic // the signals end with the process
	}
}

// options are what the environment and the flags say.
type options struct {
	names    []string // none: all
	seed     uint64
	scale    float64
	lanes    int
	duration time.Duration
	report   string
	binary   string
	broken   string
	ci, json bool
}

func parse() (o options, err error) {
	flag.BoolVar(&o.ci, "ci", false, "the small version that the gate runs")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON")
	flag.Parse()
	o.seed, o.scale, o.lanes = uint64(time.Now().UnixNano())%1_000_000, 1, 1
	if o.ci {
		o.seed, o.scale, o.lanes = 1, 0.25, 3 // always the same, so that a red gate is a change of ours
	}
	if names := os.Getenv("SCENARIO"); names != "" {
		o.names = strings.Split(names, ",")
	}
	o.binary, o.broken, o.report = os.Getenv("MAILHOOK_BIN"), os.Getenv("MAILHOOK_BROKEN_BIN"), os.Getenv("REPORT")
	if o.binary == "" {
		return o, errors.New("MAILHOOK_BIN names no binary: run make faults")
	}
	number := func(name string, read func(string) error) {
		if text := os.Getenv(name); text != "" && err == nil {
			if failed := read(text); failed != nil {
				err = fmt.Errorf("%s: %w", name, failed)
			}
		}
	}
	number("SEED", func(s string) (err error) { o.seed, err = strconv.ParseUint(s, 10, 64); return err })
	number("SCALE", func(s string) (err error) { o.scale, err = strconv.ParseFloat(s, 64); return err })
	number("LANES", func(s string) (err error) { o.lanes, err = strconv.Atoi(s); return err })
	number("DURATION", func(s string) (err error) { o.duration, err = time.ParseDuration(s); return err })
	return o, err
}

func run(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	chosen, err := choose(o)
	if err != nil {
		return err
	}
	progress("seed %d, scale %v", o.seed, o.scale)
	results := runAll(ctx, chosen, o)
	if o.json {
		if err := printJSON(results); err != nil {
			return err
		}
	}
	red, absent := 0, 0
	for _, r := range results {
		if r.NotRun != "" {
			absent++
		}
		if len(r.Problems) > 0 {
			red++
		}
	}
	keep := len(o.names) == 0 || os.Getenv("KEEP") != ""
	if keep && !o.ci && o.scale == 1 && o.report != "" && ctx.Err() == nil {
		if err := writeReport(o.report, results); err != nil {
			return err
		}
	}
	if red > 0 || ctx.Err() != nil {
		return errors.Join(fmt.Errorf("%d of %d scenarios are red (SEED=%d)", red, len(results), o.seed), ctx.Err())
	}
	progress("%d scenarios are green, %d not run", len(results)-absent, absent)
	return nil
}

// choose is the scenarios that SCENARIO names, else all that are not asked for by name alone.
func choose(o options) ([]scenario, error) {
	var chosen []scenario
	names := slices.Clone(o.names)
	for _, s := range scenarios() {
		i := slices.Index(names, s.name)
		if i >= 0 {
			names = slices.Delete(names, i, i+1)
		}
		if i >= 0 || len(o.names) == 0 && !s.named && (!o.ci || s.ci) {
			chosen = append(chosen, s)
		}
	}
	if len(names) > 0 {
		var all []string
		for _, s := range scenarios() {
			all = append(all, s.name)
		}
		return nil, fmt.Errorf("there is no scenario %q; there are %s", names[0], strings.Join(all, ", "))
	}
	return chosen, nil
}

// runAll runs the scenarios, some at a time, and answers them in their own order. The longest begin first.
func runAll(ctx context.Context, chosen []scenario, o options) []result {
	results, of := make([]result, len(chosen)), about(o.lanes)
	next := make(chan int)
	var wg sync.WaitGroup
	for range o.lanes {
		wg.Go(func() {
			for i := range next {
				progress("%s: %s", chosen[i].name, chosen[i].what)
				results[i] = chosen[i].execute(ctx, o)
				results[i].Again, results[i].Of = o.again(chosen[i].name), of
				fmt.Fprintln(os.Stderr, results[i].line())
			}
		})
	}
	for _, long := range []bool{true, false} {
		for i, s := range chosen {
			if s.isLong == long && ctx.Err() == nil {
				next <- i
			}
		}
	}
	close(next)
	wg.Wait()
	return results
}

// again is the command that repeats a scenario.
func (o options) again(name string) string {
	command := fmt.Sprintf("make faults SCENARIO=%s SEED=%d", name, o.seed)
	if o.scale != 1 {
		command += fmt.Sprintf(" SCALE=%v", o.scale)
	}
	if o.duration > 0 {
		command += fmt.Sprintf(" DURATION=%v", o.duration)
	}
	return command
}

// about says where and of what rows of the report were made.
func about(lanes int) string {
	commit, err := exec.CommandContext(context.Background(), "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	postgres, _ := exec.CommandContext(context.Background(), os.Getenv("MAILHOOK_PG_BIN")+"/postgres", "--version").Output() //nolint:gosec // as make found it
	return fmt.Sprintf("%s, commit %s, %d cores, %s, %s, %d at a time:", time.Now().UTC().Format("2006-01-02"), strings.TrimSpace(string(commit)), runtime.NumCPU(),
		strings.TrimSpace(string(postgres)), runtime.Version(), lanes)
}
