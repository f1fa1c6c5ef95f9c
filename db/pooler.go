package db

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Behind a pooler every statement runs in a transaction that brings its settings along: a session goes to whoever comes
// next, the host perhaps, and must be left as it was. It costs two more round trips.

// begin is the one simple query that begins such a transaction.
func (r Role) begin() string {
	var set []string
	for _, s := range r.settings() {
		set = append(set, "pg_catalog.set_config('"+s.name+"', '"+strings.ReplaceAll(s.value, "'", "''")+"', true)")
	}
	return "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT " + strings.Join(set, ", ")
}

// Begin starts a transaction.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) {
	return p.BeginTx(ctx, pgx.TxOptions{BeginQuery: p.begin})
}

// Exec runs a statement.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	if !p.Pooled() {
		return p.Pool.Exec(ctx, sql, args...)
	}
	err = pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
		tag, err = tx.Exec(ctx, sql, args...)
		return err
	})
	return tag, err
}

// Query runs a statement that answers rows, none with an error. Its transaction ends with them.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if !p.Pooled() {
		return p.Pool.Query(ctx, sql, args...)
	}
	tx, err := p.Begin(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		tx.Rollback(ctx) //nolint:errcheck // the first error is the one to tell
		return rows, err
	}
	return &txRows{Rows: rows, ctx: ctx, tx: tx}, nil
}

// QueryRow runs a statement that answers one row at most.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if !p.Pooled() {
		return p.Pool.QueryRow(ctx, sql, args...)
	}
	rows, err := p.Query(ctx, sql, args...)
	return txRow{rows, err}
}

// txRows are the rows of the only statement of a transaction, which is committed when they are closed.
type txRows struct {
	pgx.Rows
	ctx context.Context
	tx  pgx.Tx // nil when it has ended
	err error  // of its end
}

func (r *txRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *txRows) Close() {
	r.Rows.Close()
	switch tx := r.tx; {
	case tx == nil:
	case r.Rows.Err() != nil:
		r.tx = nil
		tx.Rollback(r.ctx) //nolint:errcheck // the first error is the one to tell
	default:
		r.tx = nil
		r.err = tx.Commit(r.ctx)
	}
}

func (r *txRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

type txRow struct {
	rows pgx.Rows
	err  error
}

func (r txRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
