package db

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// How a migration waits for a lock. Whoever comes to a table after it waits behind it, hosts too: so it waits briefly, gives
// up all that it holds, and tries again.
const (
	migrationLockTimeout = 100 * time.Millisecond
	migrationPatience    = time.Minute
	migrationPause       = time.Second // between tries, at most
)

// patiently runs apply until no lock is in its way, and answers all that it has applied. It gives up after
// migrationPatience, or when ctx has no time left for another try, with an error that says who holds a lock.
func patiently(ctx context.Context, conn *pgx.Conn, apply func() ([]*goose.MigrationResult, error)) (applied []*goose.MigrationResult, err error) {
	end := time.Now().Add(migrationPatience)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline.Add(-migrationPause)
	}
	for {
		results, err := apply()
		if partial := new(goose.PartialError); errors.As(err, &partial) {
			results = partial.Applied
		}
		applied = append(applied, results...)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "55P03" {
			return applied, err
		}
		pause := time.Duration((0.1 + 0.9*rand.Float64()) * float64(migrationPause)) //nolint:gosec // no secret
		if time.Now().Add(pause).After(end) {
			return applied, fmt.Errorf("gave up waiting for a lock: %s; what came before it is done, run this again for the rest: %w", lockHolder(ctx, conn), err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return applied, ctx.Err()
		}
	}
}

// lockHolder says in words whose transaction has held a lock on a table of ours for longest.
func lockHolder(ctx context.Context, conn *pgx.Conn) (holder string) {
	err := conn.QueryRow(ctx, `
		SELECT format('process %s (%s, %s) has held one on %s for %s', a.pid, a.usename, coalesce(nullif(a.application_name, ''), 'no application_name'),
			l.relation::regclass, date_trunc('milliseconds', clock_timestamp() - a.xact_start))
		FROM pg_catalog.pg_locks AS l
		JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
		JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
		WHERE l.granted AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
			AND c.relnamespace = 'mailhook'::regnamespace AND c.relkind IN ('r', 'p')
		ORDER BY a.xact_start
		LIMIT 1`).Scan(&holder)
	if err != nil {
		return "whoever held one has let it go by now"
	}
	return holder
}
