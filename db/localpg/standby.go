package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartStandby copies this server while it runs and starts the copy as a
// standby that streams from it and answers queries. It inherits the settings,
// which o.Settings changes; o.Dir must be missing or empty. ctx bounds the
// start.
//
// The primary needs wal_level replica (the default), and keeps a replication
// slot for the standby, so what the standby has not fetched stays on its disk.
// For synchronous replication set synchronous_standby_names to * or to the
// standby's Name, after StartStandby: the copy takes ALTER SYSTEM along, and a
// promoted copy would wait for a standby of its own.
func (s *Server) StartStandby(ctx context.Context, o Options) (*Server, error) {
	slot := "standby_" + strings.ToLower(rand.Text())
	host, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		return nil, fmt.Errorf("start standby: %w", err)
	}
	settings := map[string]string{
		"primary_conninfo":  fmt.Sprintf("host=%s port=%s user=postgres sslmode=disable", host, port),
		"primary_slot_name": slot,
	}
	maps.Copy(settings, s.settings)
	delete(settings, "synchronous_standby_names")
	maps.Copy(settings, o.Settings)
	o.Settings = settings
	standby, err := newServer(o)
	if err == nil {
		err = mustBeEmpty(standby.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("start standby: %w", err)
	}
	standby.fill = func(ctx context.Context) error { return standby.copyFrom(ctx, s, slot) }
	return standby.begin(ctx)
}

// Promote makes a standby a primary of its own and returns once it takes
// writes. It fails on a server that is no standby.
func (s *Server) Promote(ctx context.Context) error {
	err := s.query(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT pg_promote(wait => false)")
		return err
	})
	if err == nil {
		err = s.await(ctx, "SELECT NOT pg_is_in_recovery()")
	}
	if err != nil {
		return fmt.Errorf("promote postgres: %w", err)
	}
	return nil
}

// CatchUp waits until this standby has replayed all that the primary had
// written when CatchUp was called. It waits as long as ctx does.
func (s *Server) CatchUp(ctx context.Context, primary *Server) error {
	var written string
	err := primary.query(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&written)
	})
	if err == nil {
		err = s.await(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() >= '"+written+"', false)")
	}
	if err != nil {
		return fmt.Errorf("catch up: %w", err)
	}
	return nil
}

// copyFrom takes a base backup through SQL and the file system, for not every
// build of PostgreSQL brings pg_basebackup.
func (s *Server) copyFrom(ctx context.Context, primary *Server, slot string) error {
	return primary.query(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", slot); err != nil {
			return fmt.Errorf("create replication slot: %w", err)
		}
		label, err := backUp(ctx, conn, func() error { return s.copyTree(primary.dir, ".", notInBackup) })
		if err != nil {
			return fmt.Errorf("back up: %w", err)
		}
		return errors.Join(
			s.copyTree(primary.dir, "pg_wal", func(string) bool { return false }), // now up to the end of the backup
			s.writeFile("backup_label", strings.NewReader(label)),
			s.writeFile("standby.signal", strings.NewReader("")))
	})
}

func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	return errors.Join(err, fmt.Errorf("directory %s is not empty", dir))
}

// backUp runs copyFiles between the start and the end of a backup, and returns
// the label that belongs into the copy.
func backUp(ctx context.Context, conn *pgx.Conn, copyFiles func() error) (label string, err error) {
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		return "", err
	}
	begin, end := "pg_backup_start('standby', true)", "pg_backup_stop(false)"
	if version < 150000 {
		begin, end = "pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, "SELECT "+begin); err != nil {
		return "", err
	}
	if err := copyFiles(); err != nil {
		return "", err // the end of the session ends the backup
	}
	err = conn.QueryRow(ctx, "SELECT labelfile FROM "+end).Scan(&label)
	return label, err
}

// notInBackup names what PostgreSQL's manual says a base backup leaves out: the
// content of some directories, and files that belong to the running server.
func notInBackup(path string) bool {
	switch filepath.Dir(path) {
	case "pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans":
		return true
	}
	name := filepath.Base(path)
	return name == "postmaster.pid" || name == "postmaster.opts" ||
		strings.HasPrefix(name, "pg_internal.init") || strings.HasPrefix(name, "pgsql_tmp")
}

// copyTree copies what lies at path below the directory from to the same path
// below s.dir. Files that the running server removes meanwhile are left out.
func (s *Server) copyTree(from, path string, leaveOut func(path string) bool) error {
	return filepath.WalkDir(filepath.Join(from, path), func(source string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		path, err := filepath.Rel(from, source)
		switch {
		case err != nil:
			return err
		case leaveOut(path) && entry.IsDir():
			return fs.SkipDir
		case leaveOut(path) || !entry.IsDir() && !entry.Type().IsRegular():
			return nil
		case entry.IsDir():
			return s.makeDir(path)
		}
		return s.copyFile(source, path)
	})
}

func (s *Server) makeDir(path string) error {
	target := filepath.Join(s.dir, path)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	return s.account.take(target)
}

func (s *Server) copyFile(source, path string) error {
	in, err := os.Open(source) //nolint:gosec // below a data directory of ours
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	return s.writeFile(path, in)
}

// writeFile writes a file of the data directory that was not there.
func (s *Server) writeFile(path string, content io.Reader) error {
	target := filepath.Join(s.dir, path)
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // below a data directory of ours
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	return errors.Join(err, out.Close(), s.account.take(target))
}

// query runs do on a connection to the database postgres.
func (s *Server) query(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // nothing to do about it
	return do(conn)
}

// await asks a question until the answer is true or ctx ends.
func (s *Server) await(ctx context.Context, question string) error {
	return s.query(ctx, func(conn *pgx.Conn) error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var done bool
			if err := conn.QueryRow(ctx, question).Scan(&done); err != nil || done {
				return err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}
