package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A bystander commits a row each 100 ms into a table that mailhook knows nothing of, in the same database. When it has to
// wait, the machine stands still and not we: what happens then is no measure of us.
const (
	bystanderInterval = 100 * time.Millisecond
	stallLimit        = 250 * time.Millisecond
)

func (f *field) bystand(ctx context.Context) {
	var conn *pgx.Conn
	for pause(ctx, bystanderInterval) {
		began := time.Now()
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, f.hostURL); err != nil {
				continue // an outage, which is another matter
			}
		}
		_, err := conn.Exec(ctx, "INSERT INTO host.bystanders VALUES (now())")
		if err == nil && time.Since(began) > stallLimit {
			f.mu.Lock()
			f.stalls = append(f.stalls, interval{began, time.Now()})
			f.mu.Unlock()
		}
	}
	if conn != nil {
		conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // at the end
	}
}

// stalled is how long the machine stood still between two moments.
func (f *field) stalled(from, to time.Time) (total time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.stalls {
		first, last := later(x.from, from), x.to
		if last.After(to) {
			last = to
		}
		total += max(0, last.Sub(first))
	}
	return total
}

// watchLocks looks ten times a second for a session of the host that waits for one of ours. A migration may hold the host up for its
// lock_timeout, 100 ms, which two looks can see; a wait that is seen three times is a broken promise, however busy the machine.
func (f *field) watchLocks(ctx context.Context) {
	seen := map[string]int{}
	for pause(ctx, bystanderInterval) {
		rows, err := f.pool.Query(ctx, `
			SELECT format('pid %s since %s, %s of %s, by: %s', h.pid, h.query_start, h.wait_event, left(h.query, 60), left(o.query, 60))
			FROM pg_stat_activity AS h
			CROSS JOIN LATERAL unnest(pg_blocking_pids(h.pid)) AS b (pid)
			JOIN pg_stat_activity AS o ON o.pid = b.pid AND o.application_name LIKE 'mailhook%'
			WHERE (h.usename = 'host_app' OR h.application_name = 'host') AND h.wait_event_type = 'Lock'`)
		if err != nil {
			continue // an outage
		}
		waits, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			continue
		}
		now := map[string]int{}
		for _, w := range waits {
			if now[w] = seen[w] + 1; now[w] == 3 {
				f.problem("a session of the host waits for one of ours: %s", w)
			}
		}
		seen = now
		f.logSlow(ctx)
	}
}

// logSlow writes down the statements of workers that run for more than a second, and what they wait for: where to look
// first when something is late.
func (f *field) logSlow(ctx context.Context) {
	rows, err := f.pool.Query(ctx, `
		SELECT format('%s %s pid %s for %s, %s %s, behind %s: %s', now(), a.application_name, a.pid, now() - a.query_start, a.wait_event_type, a.wait_event, pg_blocking_pids(a.pid), split_part(a.query, chr(10), 1))
		FROM pg_stat_activity AS a
		WHERE a.application_name LIKE 'mailhook%' AND a.state = 'active' AND now() - a.query_start > '1 second'`)
	if err != nil {
		return // an outage
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(lines) == 0 {
		return
	}
	file, err := os.OpenFile(filepath.Join(f.dir, "slow-statements.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer file.Close() //nolint:errcheck // for people
	fmt.Fprintln(file, strings.Join(lines, "\n"))
}

// tellStalls says how much of a run is no measure.
func (f *field) tellStalls() {
	if total := f.stalled(f.began, time.Now()); total > 0 {
		f.note("the machine stood still for %v", total.Round(100*time.Millisecond))
	}
}
