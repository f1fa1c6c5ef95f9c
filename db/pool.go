package db

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"
)

// A Role says what a process does with its sessions; it decides their settings.
type Role struct {
	// Name shows as application_name.
	Name string
	// IndexOnly keeps the planner from scanning whole tables. For the worker: all of its statements have an index for
	// every step, and the statistics of tables that fill and empty in seconds mislead the planner.
	IndexOnly bool
	// GenericPlans plans a statement once for a session, not for each call. For dispatch, record, heartbeat and pulse: their plans leave no
	// choice (each step has one index), and planning was four fifths of a small dispatch. A claim has a choice that a plan made on an
	// empty table gets wrong.
	GenericPlans bool
	// AsyncCommit lets a commit return before it is on disk. For the worker: what a crash of the database
	// takes back is done again with the same ids (P3), and nothing is lost, because the host's commit is on disk.
	AsyncCommit bool
	// StatementTimeout bounds every statement.
	StatementTimeout time.Duration
	// MaxConns bounds the pool.
	MaxConns int32
}

// Open makes a pool whose sessions have all settings pinned that a host's ALTER ROLE or postgresql.conf could
// bend: isolation, read-write, search_path, TimeZone, timeouts and plan_cache_mode. It connects once, and
// checks that the schema fits this binary.
func Open(ctx context.Context, url string, role Role) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	config.MaxConns = role.MaxConns
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		// Without it every uuid goes through its text.
		pgxuuid.Register(conn.TypeMap())
		return role.pin(ctx, conn)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("set up pool: %w", err)
	}
	err = pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return CheckSchema(ctx, c.Conn()) })
	if err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// Connect makes one session outside a pool, with the same settings: for LISTEN.
func Connect(ctx context.Context, url string, role Role) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	config.ConnectTimeout = 5 * time.Second
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if err := role.pin(ctx, conn); err != nil {
		conn.Close(ctx) //nolint:errcheck // the first error is the one to tell
		return nil, err
	}
	return conn, nil
}

// pin uses set_config and not startup parameters: poolers refuse those they do not know.
// force_custom_plan elsewhere: a generic plan cached while a table was empty made a claim of 360 ms out of 8.
func (r Role) pin(ctx context.Context, conn *pgx.Conn) error {
	synchronous, scans, plans := "on", "on", "force_custom_plan"
	if r.AsyncCommit {
		synchronous = "off"
	}
	if r.GenericPlans {
		plans = "force_generic_plan"
	}
	if r.IndexOnly {
		scans = "off"
	}
	_, err := conn.Exec(ctx, `
		SELECT set_config(name, value, false) FROM unnest(
			ARRAY['application_name', 'default_transaction_isolation', 'default_transaction_read_only', 'search_path', 'TimeZone',
				'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'plan_cache_mode', 'jit', 'synchronous_commit',
				'enable_seqscan', 'enable_bitmapscan', 'standard_conforming_strings'],
			ARRAY[$1, 'read committed', 'off', 'pg_catalog', 'UTC', $2, '5s', '30s', $5, 'off', $3, $4, $4, 'on']
		) AS settings (name, value)`,
		r.Name, fmt.Sprint(r.StatementTimeout.Milliseconds()), synchronous, scans, plans)
	if err != nil {
		return fmt.Errorf("pin session settings: %w", err)
	}
	return nil
}
