package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// InTurn runs statements that begin only when no other under the same advisory lock is under way, over all processes: each
// sees what the ones before it committed. Who does not get its turn within the patience gets 55P03.
func InTurn(p *Pool, lock int64, patience time.Duration) DBTX {
	return turns{p, lock, fmt.Sprintf("%dms", patience.Milliseconds())}
}

// turns takes the lock and runs the statement in one round trip, so that nobody waits for a process that is stopped in between; one
// that is stopped while it reads the answer may hold the lock until its connection ends. Behind a pooler it takes several round trips.
type turns struct {
	pool     *Pool
	lock     int64
	patience string
}

// takeTurn waits for the lock for its own time; the statement has that of the session again.
const takeTurn = "SELECT set_config('lock_timeout', $2, true), pg_advisory_xact_lock($1), set_config('lock_timeout', '" + lockTimeout + "', true)"

func (t turns) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.pool.Pooled() {
		tx, err := t.pool.Begin(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := tx.Exec(ctx, takeTurn, t.lock, t.patience); err != nil {
			tx.Rollback(ctx) //nolint:errcheck // the first error is the one to tell
			return nil, err
		}
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			tx.Rollback(ctx) //nolint:errcheck // as above
			return rows, err
		}
		return &txRows{Rows: rows, ctx: ctx, tx: tx}, nil
	}
	// What is sent together without BEGIN is one transaction, and each statement of it has a snapshot of its own.
	batch := &pgx.Batch{}
	batch.Queue(takeTurn, t.lock, t.patience)
	batch.Queue(sql, args...)
	results := t.pool.SendBatch(ctx, batch)
	if _, err := results.Exec(); err != nil {
		return nil, errors.Join(err, results.Close())
	}
	rows, err := results.Query()
	if err != nil {
		results.Close() //nolint:errcheck // as above
		return rows, err
	}
	return &turnRows{Rows: rows, results: results}, nil
}

func (t turns) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := t.Query(ctx, sql, args...)
	return txRow{rows, err}
}

func (t turns) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	rows, err := t.Query(ctx, sql, args...)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	rows.Close()
	return rows.CommandTag(), rows.Err()
}

// turnRows are the rows of the last statement of a batch, which ends, and commits, when they are closed.
type turnRows struct {
	pgx.Rows
	results pgx.BatchResults
	closed  bool
	err     error // of the commit
}

func (r *turnRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *turnRows) Close() {
	r.Rows.Close()
	if !r.closed {
		r.closed, r.err = true, r.results.Close()
	}
}

func (r *turnRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}
