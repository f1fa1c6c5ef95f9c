// Package localpg runs a private PostgreSQL from the binaries on this machine,
// for `mailhook demo` and for the tests. Nothing outside its data directory is
// read or changed, and no installed server is needed or touched.
//
// The server listens on 127.0.0.1 only, on a random high port, and trusts
// every local connection: keep nothing in it that other users of the machine
// may not see.
//
// What can go wrong around a server is here as well, to be made to happen: a
// Proxy for the network, a standby for failover, a Bouncer for a pooler, a Clock
// for steps of the wall clock.
package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Options says what Start builds. The zero value is a throwaway server.
type Options struct {
	// Dir is the data directory. An empty or missing one is initialised, one
	// from an earlier Start is used as it is, and Stop keeps it. "" means a
	// new temporary directory that Stop removes.
	Dir string
	// Settings are postgresql.conf settings by name, for example fsync: off.
	// They hold across Restart. The address and the port are not theirs to set.
	Settings map[string]string
	// Log receives the server's log. A writer that blocks stalls the server.
	Log io.Writer
	// Clock is the clock that the server lives by, nil for the machine's.
	Clock *Clock
}

// Server is a running (or stopped) private PostgreSQL. Its methods may be
// called from several goroutines.
type Server struct {
	bin      string
	account  *account
	dir      string
	temp     bool
	settings map[string]string
	log      *logTail
	clock    *Clock
	port     int
	name     string                      // cluster_name: tells our server from another on the same port
	fill     func(context.Context) error // makes the empty dir a data directory

	mu   sync.Mutex
	proc *process // nil while stopped
}

// Start initialises the data directory if it has to, starts the server and
// returns once it answers queries. The superuser is "postgres". ctx bounds the
// start only; the server runs until Stop. On Linux it also ends when this
// process dies, even by SIGKILL, which leaves a temporary directory behind.
//
// As root, which PostgreSQL refuses to run as, the server runs as the user
// "postgres", else "nobody".
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := newServer(o)
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return s.begin(ctx)
}

func (s *Server) begin(ctx context.Context) (*Server, error) {
	if err := s.firstStart(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start postgres: %w", err), s.discard())
	}
	return s, nil
}

// URL returns the connection string of a database, for pgx and psql alike. The
// databases of a new server are postgres, template0 and template1.
func (s *Server) URL(database string) string { return urlAt(s.Addr(), database) }

// URLVia is URL through a proxy whose target is this server's Addr.
func (s *Server) URLVia(p *Proxy, database string) string { return urlAt(p.Addr(), database) }

// Addr is the host:port that the server listens on. Restart keeps it.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Name is the server's cluster_name. A standby replicates under this
// application_name: write it, in double quotes, into synchronous_standby_names.
func (s *Server) Name() string { return s.name }

// Pid is the process id of the postmaster, which is another after Restart; 0
// while the server is stopped.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

func urlAt(addr, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.User("postgres"),
		Host:     addr,
		Path:     database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Stop ends the server in order (a fast shutdown: open transactions are rolled
// back), waits until the process is gone and removes a temporary directory. A
// second Stop does nothing. It fails when the server had ended by itself.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.halt(syscall.SIGINT)
	if err = errors.Join(err, s.discard()); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return nil
}

// StopImmediate ends the server as a crash would (no checkpoint, nothing
// flushed, recovery at the next start) and waits until the process is gone.
// The data directory stays: call Restart, or Stop to remove it.
func (s *Server) StopImmediate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.halt(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return nil
}

// Restart starts the server again on the same port and data directory, after
// StopImmediate, after a crash, or after a fast shutdown if it is running. It
// fails once Stop has removed the directory.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil && s.proc.hasExited() {
		s.proc = nil
	}
	err := s.halt(syscall.SIGINT)
	if err == nil {
		err = s.launch(ctx)
	}
	if err != nil {
		return fmt.Errorf("restart postgres: %w", err)
	}
	return nil
}

func newServer(o Options) (*Server, error) {
	bin, err := FindBinaries()
	if err != nil {
		return nil, err
	}
	who, err := serverAccount()
	if err != nil {
		return nil, err
	}
	if err := who.mayRun(filepath.Join(bin, "initdb")); err != nil {
		return nil, err
	}
	if err := o.Clock.check(who); err != nil {
		return nil, err
	}
	s := &Server{
		bin: bin, account: who, settings: o.Settings, log: &logTail{next: o.Log}, clock: o.Clock,
		name: "localpg-" + rand.Text(),
	}
	s.fill = s.initdb
	if s.temp = o.Dir == ""; s.temp {
		s.dir, err = who.tempDir()
	} else {
		s.dir, err = filepath.Abs(o.Dir)
	}
	return s, err
}

// firstStart prepares the data directory and launches on a free port, which
// another process may take between our look and PostgreSQL's bind.
func (s *Server) firstStart(ctx context.Context) error {
	if err := s.initDir(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		var err error
		if s.port, err = freePort(ctx); err != nil {
			return err
		}
		err = s.launch(ctx)
		if err == nil || attempt == 5 || !strings.Contains(s.log.String(), "could not bind") {
			return err
		}
	}
}

// launch starts the postmaster and waits until it answers. If it does not, the
// process is ended and the error carries the end of its log.
func (s *Server) launch(ctx context.Context) error {
	s.log.reset()
	// Not ctx: it bounds the start, and the server outlives it.
	cmd := s.account.command(context.Background(), s.dir, filepath.Join(s.bin, "postgres"), s.arguments()...)
	cmd.Env = append(cmd.Env, s.clock.environment()...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	proc, err := startProcess(cmd)
	if err != nil {
		return err
	}
	if err := awaitReady(ctx, proc, s.ping); err != nil {
		endErr := proc.end(syscall.SIGQUIT)
		return errors.Join(s.log.describe(err), endErr)
	}
	s.proc = proc
	return nil
}

func (s *Server) arguments() []string {
	args := []string{"-D", s.dir}
	for name, value := range s.settings {
		args = append(args, "-c", name+"="+value)
	}
	return append(args, // last, because the last one wins
		"-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=",
		"-c", "logging_collector=off", // the log comes to us
		"-c", "cluster_name="+s.name)
}

// ping succeeds when our server answers, and not another one that won the port.
func (s *Server) ping(ctx context.Context) error {
	var name string
	err := s.query(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SHOW cluster_name").Scan(&name)
	})
	if err != nil {
		return err
	}
	if name != s.name {
		return fmt.Errorf("port %d belongs to another server", s.port)
	}
	return nil
}

// halt ends the process if there is one. The caller holds mu.
func (s *Server) halt(sig syscall.Signal) error {
	proc := s.proc
	if proc == nil {
		return nil
	}
	s.proc = nil
	if proc.hasExited() {
		return s.log.describe(fmt.Errorf("server had ended by itself: %v", proc.cmd.ProcessState))
	}
	return proc.end(sig)
}

// discard removes the data directory if it is a temporary one.
func (s *Server) discard() error {
	if !s.temp {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// freePort returns a port nobody listens on. It lies below the ranges from
// which Linux (32768 up) and macOS (49152 up) number outgoing connections, so
// that none of those takes it between a stop and a restart.
func freePort(ctx context.Context) (int, error) {
	var failed error
	for range 20 {
		port := 20000 + mathrand.IntN(12768) //nolint:gosec // against collisions, not a secret
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		failed = err
	}
	return 0, fmt.Errorf("find a free port: %w", failed)
}
