package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// parentEnv holds a data directory and makes the test binary a program that
// starts a server there, prints its URL and waits to be killed.
const parentEnv = "LOCALPG_TEST_PARENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentEnv); dir != "" {
		beParent(dir)
	}
	goleak.VerifyTestMain(m)
}

func beParent(dir string) {
	s, err := Start(context.Background(), Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.URL("postgres"))
	select {}
}

func TestStartQueryStop(t *testing.T) {
	t.Parallel()
	var log buffer
	s := start(t, Options{Log: &log, Settings: map[string]string{"max_connections": "17"}})
	pid := s.Pid()

	for query, want := range map[string]string{
		"SELECT current_user":                        "postgres",
		"SHOW max_connections":                       "17",
		"SHOW server_encoding":                       "UTF8",
		"SHOW lc_messages":                           "C",
		"SHOW listen_addresses":                      "127.0.0.1",
		"SHOW unix_socket_directories":               "",
		"SELECT host(inet_server_addr())":            "127.0.0.1",
		"SELECT (inet_server_port() >= 20000)::text": "true",
	} {
		if got := queryString(t, s, query); got != want {
			t.Errorf("%s = %q, want %q", query, got, want)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if got := s.Pid(); got != 0 {
		t.Errorf("Pid of a stopped server = %d", got)
	}
	wantGone(t, pid)
	wantNoDir(t, s)
	if !strings.Contains(log.String(), "database system is shut down") {
		t.Errorf("log holds no shutdown:\n%s", log.String())
	}
}

func TestCrashAndRestartKeepCommittedRow(t *testing.T) {
	t.Parallel()
	var log buffer
	s := start(t, Options{Log: &log})
	url, pid := s.URL("postgres"), s.Pid()
	execute(t, s, "CREATE TABLE kept AS SELECT 'kept' AS word")

	if err := s.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pid)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.URL("postgres") != url {
		t.Errorf("URL changed from %s to %s", url, s.URL("postgres"))
	}
	if got := queryString(t, s, "SELECT word FROM kept"); got != "kept" {
		t.Errorf("row after the crash = %q", got)
	}
	if !strings.Contains(log.String(), "automatic recovery in progress") {
		t.Error("StopImmediate left nothing to recover")
	}
}

func TestRestartOfRunningAndOfCrashedServer(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatalf("running: %v", err)
	}
	crash(t, s)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatalf("crashed: %v", err)
	}
	queryString(t, s, "SELECT 'alive'")
}

func TestStopReportsServerThatEndedByItself(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	crash(t, s)
	if err := s.Stop(); err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Errorf("Stop = %v", err)
	}
	wantNoDir(t, s)
}

func TestRestartAfterStopFails(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Restart = %v", err)
	}
}

// A given directory outlives Stop, and a start given up leaves no process that
// holds it.
func TestGivenDirIsUsedAgain(t *testing.T) {
	t.Parallel()
	o := Options{Dir: filepath.Join(publicDir(t), "data")}
	s := start(t, o)
	execute(t, s, "CREATE TABLE kept AS SELECT 'kept' AS word")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(cancelled, o); !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v, want the context's error", err)
	}
	if got := queryString(t, start(t, o), "SELECT word FROM kept"); got != "kept" {
		t.Errorf("row = %q", got)
	}
}

func TestFailedStartShowsLog(t *testing.T) {
	t.Parallel()
	_, err := Start(t.Context(), Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("Start = %v, want the end of the server's log", err)
	}
}

func TestStartRefusesDirectoryWithOtherFiles(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "initdb") {
		t.Errorf("Start = %v", err)
	}
	who, err := serverAccount()
	if err != nil {
		t.Fatal(err)
	}
	if who != nil && who.can("-O", dir) {
		t.Errorf("Start gave the directory to user %s", who.name)
	}
}

// An ordinary user has proved by the tests above what this one proves to root.
func TestAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	who, err := serverAccount()
	if err != nil {
		t.Fatal(err)
	}
	if who == nil {
		return
	}
	self := filepath.Join(publicDir(t), "localpg.test")
	copyTestBinary(t, self)
	cmd := who.command(t.Context(), "/", self, "-test.v", "-test.run=^(TestStartQueryStop|TestGivenDirIsUsedAgain)$")
	cmd.Env = append(cmd.Env, "MAILHOOK_PG_BIN="+os.Getenv("MAILHOOK_PG_BIN"))
	out, err := runLocked(cmd)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestStartQueryStop")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// Root's TMPDIR may be private, and then the server's is not in it.
func TestTempDirCanBeReached(t *testing.T) {
	t.Parallel()
	who, err := serverAccount()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := who.tempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := who.mayEnter(filepath.Dir(dir)); err != nil {
		t.Error(err)
	}
	private := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := who.mayEnter(private); (err != nil) != (who != nil) {
		t.Errorf("mayEnter a private directory = %v", err)
	}
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() }) // the tests that care look at their own Stop
	return s
}

// crash kills the postmaster and waits until it is gone.
func crash(t *testing.T, s *Server) {
	t.Helper()
	if err := s.proc.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.proc.exited:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

func queryString(t *testing.T, s *Server, query string) (value string) {
	t.Helper()
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	if err := conn.QueryRow(t.Context(), query).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

func execute(t *testing.T, s *Server, statement string) {
	t.Helper()
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func connect(t *testing.T, s *Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func wantGone(t *testing.T, pid int) {
	t.Helper()
	proc, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("process %d: %v, want it gone", pid, err)
	}
}

func wantNoDir(t *testing.T, s *Server) {
	t.Helper()
	if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary directory is still there: %v", err)
	}
}

// publicDir is a t.TempDir that other users may enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyTestBinary(t *testing.T, to string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, code, 0o755); err != nil {
		t.Fatal(err)
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
