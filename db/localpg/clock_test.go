package localpg

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestClockSteps(t *testing.T) {
	t.Parallel()
	clock := newClock(t, publicDir(t))
	s := start(t, Options{Clock: clock})
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()

	wantOffset(t, conn, 0)
	for _, step := range []time.Duration{90 * time.Second, -180 * time.Second, 90*time.Second + 500*time.Millisecond, -800 * time.Millisecond} {
		if err := clock.Step(step); err != nil {
			t.Fatal(err)
		}
		wantOffset(t, conn, clock.Offset()) // the same session
	}
	if clock.Offset() != -300*time.Millisecond {
		t.Errorf("Offset = %v, want -300ms", clock.Offset())
	}
}

// Timers start and end by the same clock, also in a session that waits when
// its timer goes off: there the time is read by a signal handler.
func TestTimeoutsAreRightByAClockThatIsAhead(t *testing.T) {
	t.Parallel()
	clock := newClock(t, publicDir(t))
	s := start(t, Options{Clock: clock})
	if err := clock.Step(90 * time.Second); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"SELECT pg_sleep(100)", "DO $$ BEGIN LOOP END LOOP; END $$"} {
		conn := connect(t, s)
		began := time.Now()
		_, err := conn.Exec(t.Context(), "SET statement_timeout = '200ms'; "+statement)
		if err == nil || !strings.Contains(err.Error(), "statement timeout") {
			t.Errorf("%s: %v, want the statement timeout", statement, err)
		}
		if took := time.Since(began); took < 200*time.Millisecond || took > 30*time.Second {
			t.Errorf("%s: a timeout of 200 ms took %v", statement, took)
		}
		_ = conn.Close(t.Context())
	}
}

// What PostgreSQL measures goes on through a step.
func TestClockStepLeavesTheMonotonicClockAlone(t *testing.T) {
	t.Parallel()
	clock := newClock(t, publicDir(t))
	s := start(t, Options{Clock: clock})
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	type plan struct {
		Time float64 `json:"Execution Time"` // ms
	}
	var plans []plan
	explained := make(chan error)
	go func() {
		explained <- conn.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) SELECT pg_sleep(5)").Scan(&plans)
	}()
	eventually(t, "the statement runs", func() bool {
		return queryString(t, s, "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
	})
	if err := clock.Step(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := <-explained; err != nil {
		t.Fatal(err)
	}
	if took := plans[0].Time; took < 5000 || took > 60_000 {
		t.Errorf("a sleep of 5 s took %v ms", took)
	}
}

// The offset belongs to the clock and not to the process.
func TestClockOverARestart(t *testing.T) {
	t.Parallel()
	clock := newClock(t, publicDir(t))
	s := start(t, Options{Clock: clock})
	if err := clock.Step(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	wantOffset(t, conn, time.Hour)
}

func TestClockIsTheServersAlone(t *testing.T) {
	t.Parallel()
	clock := newClock(t, publicDir(t))
	other := start(t, Options{})
	if err := clock.Step(time.Hour); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, other)
	defer func() { _ = conn.Close(t.Context()) }()
	wantOffset(t, conn, 0)
}

func TestClockThatTheServerCannotRead(t *testing.T) {
	t.Parallel()
	who, err := serverAccount()
	if err != nil {
		t.Fatal(err)
	}
	if who == nil {
		return // what we can write, our server can read
	}
	private := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Clock: newClock(t, private)}); err == nil || !strings.Contains(err.Error(), private) {
		t.Errorf("Start = %v", err)
	}
}

func TestMissingCompilerSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := NewClock(t.TempDir())
	if errors.Is(err, errors.ErrUnsupported) {
		skip(t, err)
	}
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "apt-get install gcc") {
		t.Errorf("NewClock = %v", err)
	}
}

func newClock(t *testing.T, dir string) *Clock {
	t.Helper()
	clock, err := NewClock(dir)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, errors.ErrUnsupported) {
		skip(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return clock
}

// wantOffset compares the session's clock with ours.
func wantOffset(t *testing.T, conn *pgx.Conn, want time.Duration) {
	t.Helper()
	before := time.Now()
	var shown time.Time
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&shown); err != nil {
		t.Fatal(err)
	}
	after := time.Now()
	const rounding = time.Millisecond
	if shown.Before(before.Add(want-rounding)) || shown.After(after.Add(want+rounding)) {
		t.Errorf("the clock is %v ahead, want %v", shown.Sub(before), want)
	}
}
