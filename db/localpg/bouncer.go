package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Bouncer is a running PgBouncer in front of a Server. Its methods may be called
// from several goroutines.
type Bouncer struct {
	server   *Server
	path     string
	prepares bool
	dir      string // of its configuration
	log      *logTail
	addr     string

	mu   sync.Mutex
	proc *process // nil once stopped
}

// BouncerOptions says how PgBouncer runs. The zero value pools transactions.
type BouncerOptions struct {
	// Settings go into the section [pgbouncer] of its configuration, for
	// example default_pool_size: 5.
	Settings map[string]string
	// Log receives PgBouncer's log. A writer that blocks stalls it.
	Log io.Writer
}

// StartBouncer starts PgBouncer in front of the server, in transaction mode and
// without passwords, and returns once it answers queries. All clients become
// the superuser "postgres". ctx bounds the start only. The error is
// exec.ErrNotFound, and says what to install, when this machine has none.
func StartBouncer(ctx context.Context, s *Server, o BouncerOptions) (*Bouncer, error) {
	b, err := newBouncer(ctx, s, o.Log)
	if err != nil {
		return nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	if err := b.firstStart(ctx, o.Settings); err != nil {
		return nil, errors.Join(fmt.Errorf("start pgbouncer: %w", err), os.RemoveAll(b.dir))
	}
	return b, nil
}

// URL returns the connection string of a database through PgBouncer. Where it
// keeps no prepared statements, pgx needs default_query_exec_mode=exec as well.
func (b *Bouncer) URL(database string) string { return urlAt(b.addr, database) }

// PreparesStatements says whether this PgBouncer keeps prepared statements in
// transaction mode: 1.21 and later do.
func (b *Bouncer) PreparesStatements() bool { return b.prepares }

// Stop ends PgBouncer at once, with all of its connections. A second Stop does
// nothing. It fails when PgBouncer had ended by itself.
func (b *Bouncer) Stop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	proc := b.proc
	if proc == nil {
		return nil
	}
	b.proc = nil
	var err error
	if proc.hasExited() {
		err = b.log.describe(fmt.Errorf("it had ended by itself: %v", proc.cmd.ProcessState))
	} else {
		err = proc.end(syscall.SIGQUIT) // SIGTERM lets clients finish since 1.23
	}
	if err = errors.Join(err, os.RemoveAll(b.dir)); err != nil {
		return fmt.Errorf("stop pgbouncer: %w", err)
	}
	return nil
}

func newBouncer(ctx context.Context, s *Server, log io.Writer) (*Bouncer, error) {
	b := &Bouncer{server: s, log: &logTail{next: log}}
	var err error
	if b.path, err = findBouncer(); err != nil {
		return nil, err
	}
	if err = s.account.mayRun(b.path); err != nil {
		return nil, err
	}
	version, err := runLocked(s.account.command(ctx, "/", b.path, "--version"))
	if err != nil {
		return nil, fmt.Errorf("pgbouncer --version: %w: %s", err, version)
	}
	if b.prepares, err = preparesStatements(string(version)); err != nil {
		return nil, err
	}
	if b.dir, err = s.account.tempDir(); err != nil {
		return nil, err
	}
	return b, nil
}

func findBouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	const debian = "/usr/sbin/pgbouncer" // not in every user's PATH
	if executable(debian) {
		return debian, nil
	}
	return "", fmt.Errorf("%w: run `apt-get install pgbouncer` (Debian, Ubuntu) or `brew install pgbouncer` (macOS)", exec.ErrNotFound)
}

// preparesStatements reads the answer to --version, such as "PgBouncer 1.18.0".
func preparesStatements(version string) (bool, error) {
	m := regexp.MustCompile(`PgBouncer (\d+)\.(\d+)`).FindStringSubmatch(version)
	if m == nil {
		return false, fmt.Errorf("pgbouncer tells no version: %q", version)
	}
	major, majorErr := strconv.Atoi(m[1])
	minor, minorErr := strconv.Atoi(m[2])
	return major > 1 || major == 1 && minor >= 21, errors.Join(majorErr, minorErr)
}

// firstStart launches on a free port, which another process may take between
// our look and PgBouncer's bind.
func (b *Bouncer) firstStart(ctx context.Context, settings map[string]string) error {
	if err := b.server.account.take(b.dir); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		port, err := freePort(ctx)
		if err != nil {
			return err
		}
		b.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		err = b.launch(ctx, b.configuration(port, settings))
		if err == nil || attempt == 5 || !strings.Contains(b.log.String(), "Address already in use") {
			return err
		}
	}
}

func (b *Bouncer) launch(ctx context.Context, configuration string) error {
	b.log.reset()
	path := filepath.Join(b.dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
		return err
	}
	if err := b.server.account.take(path); err != nil {
		return err
	}
	// Not ctx: it bounds the start, and PgBouncer outlives it.
	cmd := b.server.account.command(context.Background(), b.dir, b.path, path)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	proc, err := startProcess(cmd)
	if err != nil {
		return err
	}
	if err := awaitReady(ctx, proc, b.ping); err != nil {
		endErr := proc.end(syscall.SIGQUIT)
		return errors.Join(b.log.describe(err), endErr)
	}
	b.proc = proc
	return nil
}

func (b *Bouncer) configuration(port int, settings map[string]string) string {
	all := map[string]string{
		"listen_addr": "127.0.0.1",
		"listen_port": strconv.Itoa(port),
		// Its socket would be at a place all processes share.
		"unix_socket_dir":           "",
		"auth_type":                 "any",
		"pool_mode":                 "transaction",
		"max_client_conn":           "500",
		"ignore_startup_parameters": "extra_float_digits,options,search_path,client_min_messages,statement_timeout,lock_timeout",
	}
	if b.prepares {
		all["max_prepared_statements"] = "200"
	}
	maps.Copy(all, settings)
	var ini strings.Builder
	fmt.Fprintf(&ini, "[databases]\n* = host=127.0.0.1 port=%d user=postgres\n[pgbouncer]\n", b.server.port)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&ini, "%s = %s\n", name, all[name])
	}
	return ini.String()
}

// ping succeeds when our server answers through whoever listens there.
func (b *Bouncer) ping(ctx context.Context) error {
	config, err := pgx.ParseConfig(b.URL("postgres"))
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // nothing to do about it
	var name string
	if err := conn.QueryRow(ctx, "SHOW cluster_name").Scan(&name); err != nil {
		return err
	}
	if name != b.server.name {
		return fmt.Errorf("%s leads to another server", b.addr)
	}
	return nil
}
