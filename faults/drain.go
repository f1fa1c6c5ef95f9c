package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// drain waits until nothing is left to do: no row in outbox, no unfinished delivery. What remains at the deadline is
// the answer to what is wrong.
func (f *field) drain(ctx context.Context, within time.Duration) error {
	began := time.Now()
	deadline := began.Add(within)
	for {
		var left bool
		err := f.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM mailhook.outbox) OR EXISTS (SELECT FROM mailhook.deliveries)").Scan(&left)
		if err == nil && !left {
			f.drained = time.Since(began)
			return nil
		}
		if time.Now().After(deadline) {
			f.problem("not drained within %v: %s", within, f.remains(ctx))
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return errors.Join(errors.New("cut short while draining"), ctx.Err())
		}
	}
}

// remains says what is left, by who holds it.
func (f *field) remains(ctx context.Context) string {
	rows, err := f.pool.Query(ctx, `
		SELECT count(*) || ' rows in outbox' FROM mailhook.outbox
		UNION ALL
		SELECT count(*) || ' deliveries ' || CASE
			WHEN d.lease_id IS NULL AND d.next_attempt_at > now() THEN 'not yet due'
			WHEN d.lease_id IS NULL THEN 'due'
			WHEN w.id IS NULL THEN 'leased by a worker that is not registered'
			ELSE 'leased by a worker seen ' || date_trunc('second', now() - w.seen_at) || ' ago' END
		FROM mailhook.deliveries AS d LEFT JOIN mailhook.workers AS w ON w.id = d.leased_by
		GROUP BY d.lease_id IS NULL, d.next_attempt_at > now(), w.id, w.seen_at`)
	if err != nil {
		return err.Error()
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	return strings.Join(lines, ", ")
}

// settle waits until the workers have as many goroutines as they started with: those of connections, which are closed,
// and of senders, which end after 10 s without work.
func (f *field) settle(ctx context.Context) {
	for _, p := range f.living() {
		last := 0.0
		err := eventually(ctx, 20*time.Second, "goroutines return", func() (bool, error) {
			f.receiver.hangUp() // each time: a connection that was never used counts as idle after 5 s
			metrics, err := p.metrics(ctx)
			last = metrics["go_goroutines"]
			return err == nil && last <= p.goroutines+goroutineNoise, nil
		})
		if err != nil {
			p.asked.Store(true)
			p.signal(syscall.SIGQUIT) // the stacks go into its log
			<-p.ended
			f.problem("goroutines of %s: %.0f at the start, %.0f after all was drained: see %s", p.name, p.goroutines, last, p.log)
		}
	}
}

// goroutineNoise is what a scrape and the sessions in use add: two for a connection of the pool that dials or checks.
const goroutineNoise = 10

// mostRSS is what a worker may take.
const mostRSS = 256 << 20

func (f *field) checkMemory() {
	f.mu.Lock()
	peak := f.peakRSS
	f.mu.Unlock()
	if peak > mostRSS {
		f.problem("a worker took %d MiB, more than %d", peak>>20, mostRSS>>20)
	}
}

// sessionsOfWorker is what one worker has, as it says at its start: --connections and one that listens.
const sessionsOfWorker = 9

// mostLog is what a worker may log in a scenario: an outage must not fill a disk.
const mostLog = 1 << 20

// checkFrugality: no worker has more sessions than it said, and none has flooded its log.
func (f *field) checkFrugality(ctx context.Context) error {
	sessions, err := f.count(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('mailhook worker', 'mailhook listener')")
	if most := sessionsOfWorker * len(f.living()); int(sessions) > most {
		f.problem("%d sessions of workers, more than %d", sessions, most)
	}
	for _, p := range f.processes() {
		if about, err := os.Stat(p.log); err == nil && about.Size() > mostLog {
			f.problem("%s has logged %d bytes", p.name, about.Size())
		}
	}
	return err
}

// sumMetric adds a metric up over the workers that live.
func (f *field) sumMetric(ctx context.Context, name string) (sum float64, err error) {
	for _, p := range f.living() {
		metrics, err := p.metrics(ctx)
		if err != nil {
			return 0, fmt.Errorf("metrics of %s: %w", p.name, err)
		}
		sum += metrics[name]
	}
	return sum, nil
}
