// Command bench measures mailhook on this machine, beside what it is compared with: a private PostgreSQL with fsync on,
// worker, receiver and host in one place. It runs on Linux.
//
//	make bench                       every row; writes bench/results.md and bench/results.json
//	make bench ROW=throughput,host   some of them; only prints
//
// A row that misses its bar says so; a lost event, or a row that cannot be measured, is an error. More of the
// environment:
//
//	ONLY=mailhook     of the throughput row only this contestant, once (bare, mailhook or river)
//	PROFILE=dir       the CPU profiles of mailhook's workers in dir, and after each row the statements that took the time
//	                  in PostgreSQL; for rows with one database, as ROW=throughput ONLY=mailhook
//	SCALE=0.05        a twentieth of the events and of the seconds, to see whether the bench itself works
//	RESULTS=dir       where the results of a whole run go
//	MAILHOOK_BIN      the worker's binary
//	MAILHOOK_PG_BIN   the directory of PostgreSQL's binaries
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	found, err := hidden(os.Args[1:])
	if !found {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// accounts is how many customers the rows have, unless they say otherwise.
const accounts = 1000

// rounds is how often the rows are measured that repeat themselves.
const rounds = 3

// A bench is one run: its server, its receivers, and what it has found.
type bench struct {
	cluster  *cluster
	receiver *receiver
	silent   *receiver // of the endpoints that are dead
	report   report
	scale    float64
	contests map[string][]drained // of the throughput row, by contestant
}

// A row is one measurement, by name.
type row struct {
	name, what string
	measure    func(context.Context) error
}

func (b *bench) rows() []row {
	return []row{
		{"throughput", "committed events of 1,000 accounts, 1 match each, beside River and the bare POST", b.throughput},
		{"cost", "what 1,000 deliveries of the throughput row cost, beside River", b.cost},
		{"batch", "400,000 events of one account, in requests with up to 1,000 of them, beside the throughput row", b.batch},
		{"fan-out", "50,000 events, 10 matches each", b.fanOut},
		{"host", "commits of one row into the outbox, beside the same table without trigger and with a NOTIFY in each", b.host},
		{"host-bulk", "20,000 rows in one INSERT … SELECT", b.hostBulk},
		{"latency-idle", "one event at a time, to a worker that sleeps", b.latencyIdle},
		{"latency-load", "1,000 events/s from hosts that commit up to 20 ms after the insert", b.latencyLoad},
		{"lanes", "complaints one at a time, to a worker that sleeps and to one with 1,000,000 opens before it", b.lanes},
		{"repeatable-read", "one event at a time, of a host whose snapshot is older than the worker's sleep", b.repeatableRead},
		{"before-arming", "one event at a time, inserted before the worker slept and committed after", b.beforeArming},
		{"held-snapshot", "a drain while a transaction holds a snapshot and hosts commit late", b.heldSnapshot},
		{"dead-neighbour", "live traffic beside endpoints that do not answer", b.deadNeighbour},
		{"slow-neighbours", "live traffic beside endpoints that answer after 5 s", b.slowNeighbours},
		{"subscriptions", "100,000 subscriptions, and 1,000 of one account of which 3 match", b.subscriptions},
		{"backlog", "5,000,000 events that wait, and 1,000 events × 1,000 matches of one commit", b.backlog},
		{"ordering", "each recipient's events in order, beside the same in no order", b.ordering},
		{"two-workers", "two worker processes on one database", b.twoWorkers},
		{"four-databases", "one worker process for four databases", b.fourDatabases},
	}
}

func run(ctx context.Context) (err error) {
	debug.SetGCPercent(400) // the receiver and the host share this process: fewer collections beside a measurement
	b := &bench{scale: 1, contests: map[string][]drained{}}
	chosen, err := b.chosen()
	if err != nil {
		return err
	}
	if text := os.Getenv("SCALE"); text != "" {
		if b.scale, err = strconv.ParseFloat(text, 64); err != nil {
			return fmt.Errorf("SCALE: %w", err)
		}
	}
	if b.receiver, err = newReceiver(); err != nil {
		return err
	}
	if b.silent, err = newReceiver(); err != nil {
		return err
	}
	if b.cluster, err = startCluster(ctx); err != nil {
		return err
	}
	defer b.cluster.stop()
	b.report.about, err = b.describe(ctx)
	if err != nil {
		return err
	}
	failed := b.measure(ctx, chosen)
	if failed == nil {
		os.Remove(b.cluster.log.Name()) //nolint:errcheck // nobody needs it
	} else {
		progress("the log of PostgreSQL is %s", b.cluster.log.Name())
	}
	b.report.print(os.Stdout)
	if whole := len(chosen) == len(b.rows()) && b.scale == 1 && os.Getenv("ONLY") == ""; whole && failed == nil {
		return b.report.write(os.Getenv("RESULTS"))
	}
	return failed
}

// chosen is the rows that ROW names, all without it.
func (b *bench) chosen() ([]row, error) {
	rows := b.rows()
	only := os.Getenv("ROW")
	if only == "" {
		return rows, nil
	}
	names := strings.Split(only, ",")
	var chosen []row // in their own order: some use what others found
	for _, r := range rows {
		if i := slices.Index(names, r.name); i >= 0 {
			chosen, names = append(chosen, r), slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		var all []string
		for _, r := range rows {
			all = append(all, r.name)
		}
		return nil, fmt.Errorf("there is no row %q; the rows are %s", names[0], strings.Join(all, ", "))
	}
	return chosen, nil
}

// measure goes on after a row that failed: the others take long enough to be worth having.
func (b *bench) measure(ctx context.Context, rows []row) error {
	var failed error
	for _, r := range rows {
		progress("%s: %s", r.name, r.what)
		began := time.Now()
		if err := errors.Join(r.measure(ctx), b.cluster.statements(ctx)); err != nil {
			progress("%s: %v", r.name, err)
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.name, err))
		}
		if ctx.Err() != nil {
			return errors.Join(failed, ctx.Err())
		}
		progress("%s took %v", r.name, time.Since(began).Round(time.Second))
	}
	return failed
}

// scaled is n, or less for a try.
func (b *bench) scaled(n int) int { return max(1, int(float64(n)*b.scale)) }

func (b *bench) seconds(n float64) time.Duration {
	return time.Duration(max(1, n*b.scale) * float64(time.Second))
}

// progress says on stderr what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
