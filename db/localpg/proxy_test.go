package localpg

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// silence is how long a swallowed query is given to be answered all the same.
const silence = 300 * time.Millisecond

func TestProxy(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	for name, test := range map[string]func(*testing.T, *Server, *Proxy){
		"passes on":               testProxyPassesOn,
		"blackholes all":          testProxyBlackholesAll,
		"blackholes some":         testProxyBlackholesSome,
		"blackholes what comes":   testProxyBlackholesWhatComes,
		"swallows the end":        testProxySwallowsTheEnd,
		"cuts":                    testProxyCuts,
		"refuses":                 testProxyRefuses,
		"resets without a server": testProxyWithoutServer,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s, startProxy(t, s.Addr()))
		})
	}
}

func testProxyPassesOn(t *testing.T, s *Server, p *Proxy) {
	conn := connectVia(t, s, p, "")
	var length int
	if err := conn.QueryRow(t.Context(), "SELECT length($1 || repeat('x', 1000000))", strings.Repeat("y", 1_000_000)).Scan(&length); err != nil || length != 2_000_000 {
		t.Errorf("length = %d, %v", length, err)
	}
	pid := conn.PgConn().PID()
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitSessionEnd(t, s, pid)
	awaitNoConns(t, p)
}

// The connection that is there gets nothing, nor does a new one; after Restore
// the old one stays dead and a new one works.
func testProxyBlackholesAll(t *testing.T, s *Server, p *Proxy) {
	old := connectVia(t, s, p, "")
	if hit := p.Blackhole(); hit != 1 {
		t.Errorf("hit %d connections, want 1", hit)
	}
	wantSilence(t, old)
	if hit := p.Blackhole(); hit != 0 {
		t.Errorf("hit %d connections again", hit)
	}
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if _, err := pgx.Connect(ctx, s.URLVia(p, "postgres")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("new connection: %v, want it to hang", err)
	}
	p.Restore()
	wantSilence(t, old)
	wantAlive(t, connectVia(t, s, p, ""))
}

// A rule that is taken back at once hits only the connection that has listened.
func testProxyBlackholesSome(t *testing.T, s *Server, p *Proxy) {
	working, listening := connectVia(t, s, p, "worker"), connectVia(t, s, p, "worker")
	if _, err := listening.Exec(t.Context(), "LISTEN news"); err != nil {
		t.Fatal(err)
	}
	hit := p.BlackholeWhere(func(c *Conn) bool { return c.Sent("LISTEN ") })
	p.Restore()
	if hit != 1 {
		t.Errorf("hit %d connections, want 1", hit)
	}
	wantSilence(t, listening)
	wantAlive(t, working)
	again := connectVia(t, s, p, "worker")
	if _, err := again.Exec(t.Context(), "LISTEN news"); err != nil {
		t.Errorf("new connection: %v", err)
	}
}

// The bytes by which a later connection matches do not reach the server.
func testProxyBlackholesWhatComes(t *testing.T, s *Server, p *Proxy) {
	if hit := p.BlackholeWhere(func(c *Conn) bool { return c.Sent("CREATE TABLE marked") }); hit != 0 {
		t.Errorf("hit %d connections", hit)
	}
	marked := connectVia(t, s, p, "")
	wantAlive(t, marked)
	if _, err := marked.PgConn().Conn().Write(simpleQuery("CREATE TABLE marked ()")); err != nil {
		t.Fatal(err)
	}
	wantSilence(t, marked)
	if got := queryString(t, s, "SELECT coalesce(to_regclass('marked')::text, 'none')"); got != "none" {
		t.Error("the statement ran")
	}
}

// Neither end learns that the other has closed.
func testProxySwallowsTheEnd(t *testing.T, s *Server, p *Proxy) {
	left, right := connectVia(t, s, p, ""), connectVia(t, s, p, "")
	leftPID, rightPID := left.PgConn().PID(), right.PgConn().PID()
	p.Blackhole()
	if err := left.PgConn().Conn().Close(); err != nil {
		t.Fatal(err)
	}
	terminate(t, s, rightPID)
	awaitSessionEnd(t, s, rightPID)
	wantSilence(t, right) // an end would be an io.EOF
	if !hasSession(t, s, leftPID) {
		t.Error("the server knows that its client has closed")
	}
	if hit := p.Cut(); hit != 2 {
		t.Errorf("cut %d connections, want 2", hit)
	}
	awaitSessionEnd(t, s, leftPID)
}

func testProxyCuts(t *testing.T, s *Server, p *Proxy) {
	conn := connectVia(t, s, p, "")
	if cut := p.Cut(); cut != 1 {
		t.Errorf("cut %d connections, want 1", cut)
	}
	if _, err := conn.PgConn().Conn().Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v, want a reset", err)
	}
	awaitSessionEnd(t, s, conn.PgConn().PID())
	wantAlive(t, connectVia(t, s, p, ""))
}

func testProxyRefuses(t *testing.T, s *Server, p *Proxy) {
	old := connectVia(t, s, p, "")
	p.Refuse()
	p.Refuse()
	if _, err := pgx.Connect(t.Context(), s.URLVia(p, "postgres")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("new connection: %v, want it refused", err)
	}
	wantAlive(t, old)
	for range 2 {
		if err := p.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	wantAlive(t, connectVia(t, s, p, ""))
	p.Close()
	if err := p.Accept(); err == nil {
		t.Error("a closed proxy accepts")
	}
}

func testProxyWithoutServer(t *testing.T, s *Server, _ *Proxy) {
	gone := startProxy(t, "127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := pgx.Connect(ctx, s.URLVia(gone, "postgres")); err == nil || ctx.Err() != nil {
		t.Errorf("connection: %v, want a reset", err)
	}
	gone.Blackhole() // then nobody asks for the server
	hangs, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if _, err := pgx.Connect(hangs, s.URLVia(gone, "postgres")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("blackholed connection: %v, want it to hang", err)
	}
}

func startProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := StartProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func connectVia(t *testing.T, s *Server, p *Proxy, name string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URLVia(p, "postgres")+"&application_name="+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // a blackholed connection does not answer
		_ = conn.Close(ctx)
	})
	return conn
}

// simpleQuery is a Query message of PostgreSQL's protocol.
func simpleQuery(statement string) []byte {
	n := len(statement) + 5
	return append(append([]byte{'Q', byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, statement...), 0)
}

func wantAlive(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("connection is dead: %v", err)
	}
}

// wantSilence sends a query and expects neither an answer nor an end. The wire
// itself: pgx would close the connection when its query times out.
func wantSilence(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	wire := conn.PgConn().Conn()
	if _, err := wire.Write(simpleQuery("SELECT 1")); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := wire.SetReadDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	if n, err := wire.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v: want nothing until the deadline", n, err)
	}
}

func terminate(t *testing.T, s *Server, pid uint32) {
	t.Helper()
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend($1)", int32(pid)); err != nil {
		t.Fatal(err)
	}
}

func hasSession(t *testing.T, s *Server, pid uint32) (has bool) {
	t.Helper()
	conn := connect(t, s)
	defer func() { _ = conn.Close(t.Context()) }()
	if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", int32(pid)).Scan(&has); err != nil {
		t.Fatal(err)
	}
	return has
}

func awaitSessionEnd(t *testing.T, s *Server, pid uint32) {
	t.Helper()
	eventually(t, "the session ends", func() bool { return !hasSession(t, s, pid) })
}

func awaitNoConns(t *testing.T, p *Proxy) {
	t.Helper()
	eventually(t, "the proxy forgets its connections", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.conns) == 0
	})
}

// eventually is dbtest.Eventually, which this package cannot import.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 2 minutes: %s", what)
		}
	}
}
