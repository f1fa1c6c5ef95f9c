package db

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"mailhook/sql"
)

// OldestPostgres is the oldest major version of PostgreSQL that mailhook supports.
const OldestPostgres = 14

const versionTable = "mailhook.goose_db_version"

// installLock is the key of the advisory lock that installers take, so that any number may run at once.
const installLock = 0x6d61696c686f6f6b // "mailhook"

// A MigrationStep is one migration and what became of it.
type MigrationStep struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// MigrateUp brings the schema to the newest version that this binary knows and answers the steps it took.
// It is safe to run from many processes at once, and beside hosts that write: it waits 100 ms for a lock, and tries again.
func MigrateUp(ctx context.Context, url string) ([]MigrationStep, error) {
	var steps []MigrationStep
	err := withGoose(ctx, url, func(lock *pgx.Conn, conn *stdsql.DB, p *goose.Provider) error {
		if _, err := conn.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS mailhook"); err != nil {
			return fmt.Errorf("create schema mailhook: %w", err)
		}
		results, err := patiently(ctx, lock, func() ([]*goose.MigrationResult, error) { return p.Up(ctx) })
		for _, r := range results {
			steps = append(steps, MigrationStep{r.Source.Version, r.Source.Path, true})
		}
		return err
	})
	return steps, err
}

// MigrateDown takes the schema back to version (0 removes all of mailhook, events and history too). It waits as MigrateUp does.
// It refuses to remove mailhook while triggers of an adapter sit on the host's tables.
func MigrateDown(ctx context.Context, url string, version int64) ([]MigrationStep, error) {
	var steps []MigrationStep
	err := withGoose(ctx, url, func(lock *pgx.Conn, conn *stdsql.DB, p *goose.Provider) error {
		exists, err := versionTableExists(ctx, conn)
		if err != nil || !exists {
			return err
		}
		if version == 0 {
			if err := refuseWithAdapters(ctx, conn); err != nil {
				return err
			}
		}
		results, err := patiently(ctx, lock, func() ([]*goose.MigrationResult, error) { return p.DownTo(ctx, version) })
		for _, r := range results {
			steps = append(steps, MigrationStep{r.Source.Version, r.Source.Path, false})
		}
		if err != nil || version != 0 {
			return err
		}
		_, err = conn.ExecContext(ctx, "DROP SCHEMA mailhook CASCADE")
		return err
	})
	return steps, err
}

// MigrationStatus lists every migration that this binary knows, oldest first. It changes nothing.
func MigrationStatus(ctx context.Context, url string) ([]MigrationStep, error) {
	var steps []MigrationStep
	err := withGoose(ctx, url, func(_ *pgx.Conn, conn *stdsql.DB, p *goose.Provider) error {
		exists, err := versionTableExists(ctx, conn)
		if err != nil {
			return err
		}
		applied := map[int64]bool{}
		if exists {
			rows, err := p.Status(ctx)
			if err != nil {
				return err
			}
			for _, row := range rows {
				applied[row.Source.Version] = row.State == goose.StateApplied
			}
		}
		for _, s := range p.ListSources() {
			steps = append(steps, MigrationStep{s.Version, s.Path, applied[s.Version]})
		}
		return nil
	})
	return steps, err
}

// WouldBeGone is what a MigrateDown would take away.
type WouldBeGone struct {
	Database string
	Steps    []MigrationStep // those to take back, the newest first
	// Subscriptions, undispatched events and unfinished deliveries; the last two are counted up to 1,000,000.
	Subscriptions, Undispatched, Deliveries int64
}

// MigrationsAbove says what a MigrateDown to version would take away. It changes nothing.
func MigrationsAbove(ctx context.Context, url string, version int64) (gone WouldBeGone, err error) {
	steps, err := MigrationStatus(ctx, url)
	for _, s := range slices.Backward(steps) {
		if s.Applied && s.Version > version {
			gone.Steps = append(gone.Steps, s)
		}
	}
	if err != nil || len(gone.Steps) == 0 {
		return gone, err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return gone, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing to do about it
	if err := conn.QueryRow(ctx, "SELECT quote_ident(current_database())").Scan(&gone.Database); err != nil {
		return gone, fmt.Errorf("ask for the database: %w", err)
	}
	if version > 0 || len(gone.Steps) < len(steps) {
		return gone, nil // tables may be missing
	}
	err = conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM mailhook.subscriptions AS s WHERE s.deleted_at IS NULL),
			(SELECT count(*) FROM (SELECT FROM mailhook.outbox LIMIT 1000000) AS o),
			(SELECT count(*) FROM (SELECT FROM mailhook.deliveries LIMIT 1000000) AS d)`).Scan(&gone.Subscriptions, &gone.Undispatched, &gone.Deliveries)
	if err != nil {
		err = fmt.Errorf("count what would be gone: %w", err)
	}
	return gone, err
}

// CheckSchema says whether the schema fits this binary: nil, or an error that says what to run.
func CheckSchema(ctx context.Context, conn *pgx.Conn) error {
	newest, err := newestMigration()
	if err != nil {
		return err
	}
	var current int64
	err = conn.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+versionTable+" WHERE is_applied").Scan(&current)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000"):
		return errors.New("mailhook is not installed in this database: run mailhook migrate up")
	case err != nil:
		return fmt.Errorf("read schema version: %w", err)
	case current < newest:
		return fmt.Errorf("the schema is at version %d and this binary needs %d: run mailhook migrate up", current, newest)
	case current > newest:
		return fmt.Errorf("the schema is at version %d and this binary knows only %d: install the newer mailhook", current, newest)
	}
	return nil
}

// withGoose runs f with the session that holds the installers' lock, and connections for the rest.
func withGoose(ctx context.Context, url string, f func(*pgx.Conn, *stdsql.DB, *goose.Provider) error) (err error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("parse database URL: %w", err)
	}
	Role{Name: "mailhook migrate"}.prepare(config)
	lock, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer lock.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the lock goes with the session
	if err := refusePooler(ctx, lock); err != nil {
		return err
	}
	if err := checkServer(ctx, lock); err != nil {
		return err
	}
	if _, err := lock.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(installLock)); err != nil {
		return fmt.Errorf("wait for other installers: %w", err)
	}

	config.RuntimeParams["search_path"] = "pg_catalog"
	config.RuntimeParams["client_min_messages"] = "warning"
	config.RuntimeParams["standard_conforming_strings"] = "on"
	config.RuntimeParams["lock_timeout"] = fmt.Sprint(migrationLockTimeout.Milliseconds())
	conn := stdlib.OpenDB(*config)
	defer conn.Close() //nolint:errcheck // nothing to do about it
	migrations, err := fs.Sub(sql.Migrations, "migrations")
	if err != nil {
		return err
	}
	store, err := database.NewStore(database.DialectPostgres, versionTable)
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider("", conn, migrations, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	return f(lock, conn, provider)
}

// refusePooler fails behind a pooler: the lock would stay in a session that anybody gets.
func refusePooler(ctx context.Context, conn *pgx.Conn) error {
	var pid uint32
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_backend_pid()::bigint", pgx.QueryExecModeSimpleProtocol).Scan(&pid); err != nil {
		return fmt.Errorf("ask for the session: %w", err)
	}
	if pid != conn.PgConn().PID() {
		return fmt.Errorf("%w: give the schema's commands the address of PostgreSQL itself", ErrPooler)
	}
	return nil
}

func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var number int
	var name string
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('server_version')").Scan(&number, &name)
	if err != nil {
		return fmt.Errorf("read server version: %w", err)
	}
	if number/10000 < OldestPostgres {
		return fmt.Errorf("this is PostgreSQL %s: mailhook needs %d or newer", name, OldestPostgres)
	}
	return nil
}

func newestMigration() (int64, error) {
	files, err := fs.Glob(sql.Migrations, "migrations/*.sql")
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("list migrations: %w", err)
	}
	return goose.NumericComponent(files[len(files)-1])
}

func versionTableExists(ctx context.Context, conn *stdsql.DB) (exists bool, err error) {
	err = conn.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", versionTable).Scan(&exists)
	return exists, err
}

// refuseWithAdapters fails while a trigger outside our schema runs a function of ours.
func refuseWithAdapters(ctx context.Context, conn *stdsql.DB) error {
	var tables stdsql.NullString
	err := conn.QueryRowContext(ctx, `
		SELECT string_agg(DISTINCT t.tgrelid::regclass::text, ', ')
		FROM pg_catalog.pg_trigger AS t
		JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
		JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
		WHERE p.pronamespace = 'mailhook'::regnamespace AND c.relnamespace <> 'mailhook'::regnamespace`).Scan(&tables)
	if err != nil {
		return fmt.Errorf("look for adapters: %w", err)
	}
	if tables.Valid {
		return fmt.Errorf("adapter triggers still sit on %s: remove them first (mailhook adapter HOST --uninstall prints the SQL)", tables.String)
	}
	return nil
}
