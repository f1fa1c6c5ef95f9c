package db

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/time/rate"
)

// lockTimeout is how long a statement of ours waits for a lock.
const lockTimeout = "5s"

const (
	// connectTimeout is for URLs that set none themselves, hostTimeout for each host where there are several: one that is
	// gone without a word must not take the time in which the next would have answered.
	connectTimeout = 3 * time.Second
	hostTimeout    = 2 * time.Second
	// pingTimeout is how long a connection that was idle for a second has to answer before it is used.
	pingTimeout = 2 * time.Second
	// closeTimeout is how long a broken connection may keep its place in the pool, while its statement is cancelled and
	// while the last word of its server is awaited. Of a server that is gone pgx would await both for 15 s.
	closeTimeout = time.Second
	// resetInterval is how often a pool drops all of its connections at most.
	resetInterval = time.Second
	// dialsPerSecond is how often a pool that finds no server, or no free place on one, tries.
	dialsPerSecond = 5
	// openTimeout bounds Open.
	openTimeout = 30 * time.Second
)

// ErrPooler says that there is a pooler (PgBouncer and its like) between this process and PostgreSQL: another client may
// get the session after each transaction, with all that was set in it.
var ErrPooler = errors.New("a pooler stands between this process and PostgreSQL")

// A Role says what a process does with its sessions; it decides their settings.
type Role struct {
	// Name shows as application_name.
	Name string
	// IndexOnly keeps the planner from scanning whole tables. For the worker: all of its statements have an index for
	// every step, and the statistics of tables that fill and empty in seconds mislead the planner.
	IndexOnly bool
	// GenericPlans plans a statement once for a session, not for each call. For dispatch, claim, record, heartbeat and pulse: their plans
	// leave no choice (each step has one index), and planning was four fifths of a small dispatch.
	GenericPlans bool
	// AsyncCommit lets a commit return before it is on disk. For the worker: what a crash of the database
	// takes back is done again with the same ids (P3), and nothing is lost, because the host's commit is on disk.
	AsyncCommit bool
	// StatementTimeout bounds every statement: on the server, and a second later here, for callers that set no deadline.
	StatementTimeout time.Duration
	// MaxConns bounds the pool.
	MaxConns int32
	// Produces lets a session do without the right to read which version the schema has, which a host has not.
	Produces bool
}

// Open makes a pool whose sessions have all settings pinned that a host's ALTER ROLE or postgresql.conf could
// bend: isolation, read-write, search_path, TimeZone, timeouts and plan_cache_mode. Behind a pooler each transaction has
// them, and no session. It connects once, to a server that is not a standby unless the URL has a target_session_attrs,
// and checks that the schema fits this binary.
func Open(ctx context.Context, url string, role Role) (*Pool, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	pool, err := open(ctx, url, role, "")
	if errors.Is(err, ErrPooler) {
		return open(ctx, url, role, role.begin())
	}
	return pool, err
}

// open makes a pool: of sessions with pinned settings, or of those of a pooler if begin is what a transaction begins with.
func open(ctx context.Context, url string, role Role, begin string) (*Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	config.MaxConns, config.PingTimeout = role.MaxConns, pingTimeout
	role.prepare(config.ConnConfig)
	if begin != "" {
		// Statements without names: a prepared one stays behind in a session that is not ours.
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	tracer, dials := config.ConnConfig.Tracer.(*tracer), rate.NewLimiter(dialsPerSecond, 1)
	config.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error {
		if !tracer.refused.Load() {
			return nil
		}
		return dials.Wait(ctx)
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		registerUUID(conn.TypeMap())
		if begin != "" {
			return nil
		}
		return role.pin(ctx, conn)
	}
	pool := &Pool{begin: begin}
	config.BeforeClose = pool.closing
	if pool.Pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("set up pool: %w", err)
	}
	err = pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return CheckSchema(ctx, c.Conn()) })
	if isProducer := role.Produces && IsRefusal(err); err != nil && !isProducer {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// Connect makes one session outside a pool, with the same settings: for LISTEN. It fails with ErrPooler behind one.
func Connect(ctx context.Context, url string, role Role) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	role.prepare(config)
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

// prepare is what every connection has before it is made: its name, its deadlines, and which server will do.
func (r Role) prepare(config *pgx.ConnConfig) {
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
		if slices.ContainsFunc(config.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != config.Host || f.Port != config.Port }) {
			config.ConnectTimeout = hostTimeout
		}
	}
	config.RuntimeParams["application_name"] = r.Name
	if config.ValidateConnect == nil {
		config.ValidateConnect = refuseStandby
	}
	config.Tracer = &tracer{statementTimeout: r.StatementTimeout}
	// A server that has become read-only is no longer the primary: dial again, and find the one that is.
	config.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		return err.Severity != "FATAL" && err.SeverityUnlocalized != "FATAL" && err.Code != "25006"
	}
	// Whatever is dialled has an end, and pgx dials to cancel a statement, too; what has become a session has none.
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		timeout := closeTimeout
		if ctx.Value(connectingKey{}) != nil {
			timeout = config.ConnectTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn, conn.SetDeadline(time.Now().Add(timeout))
	}
	config.AfterConnect = func(_ context.Context, conn *pgconn.PgConn) error { return conn.Conn().SetDeadline(time.Time{}) }
}

// A tracer gives an end to each statement whose caller has set none, and takes note of what ends connections. It is one
// because that is where pgx tells of all calls, and lets them have another context.
type tracer struct {
	statementTimeout time.Duration // 0: none
	refused          atomic.Bool   // the last dial failed
}

type (
	cancelKey     struct{}
	connectingKey struct{}
)

// givenUp marks a connection whose caller ended its context.
const givenUp = "given up"

// TraceConnectStart tells a dial for a session from one for a cancellation.
func (t *tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, connectingKey{}, true)
}

func (t *tracer) TraceConnectEnd(_ context.Context, end pgx.TraceConnectEndData) {
	t.refused.Store(end.Err != nil)
}

func (t *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	if _, ok := ctx.Deadline(); ok || t.statementTimeout == 0 {
		return ctx
	}
	ctx, cancel := context.WithTimeout(ctx, t.statementTimeout+time.Second)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

func (t *tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	if errors.Is(ctx.Err(), context.Canceled) && conn.IsClosed() {
		conn.PgConn().CustomData()[givenUp] = true
	}
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// refuseStandby keeps a URL of several hosts looking for the primary.
func refuseStandby(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, "SELECT pg_catalog.pg_is_in_recovery()").ReadAll()
	if err != nil {
		return fmt.Errorf("ask for the primary: %w", err)
	}
	if len(results) == 1 && len(results[0].Rows) == 1 && string(results[0].Rows[0][0]) == "t" {
		return errors.New("this server is a standby, and mailhook writes: give the primary, or all hosts as in postgres://HOST1,HOST2/NAME")
	}
	return nil
}

// A Pool is a pool of sessions, or of transactions behind a pooler.
type Pool struct {
	*pgxpool.Pool
	// begin is what each transaction begins with behind a pooler; none without one.
	begin   string
	resetAt atomic.Int64 // Unix time in nanoseconds
}

// Pooled says whether a pooler stands between: then there is no LISTEN, and nothing may be left in a session.
func (p *Pool) Pooled() bool { return p.begin != "" }

// closing drops all connections when one has broken: they lead to the same server. The next call dials. One whose
// caller went away proves nothing.
func (p *Pool) closing(conn *pgx.Conn) {
	if !conn.IsClosed() {
		return
	}
	time.AfterFunc(closeTimeout, func() { conn.PgConn().Conn().Close() }) //nolint:errcheck // it is lost
	if conn.PgConn().CustomData()[givenUp] != nil {
		return
	}
	now, last := time.Now().UnixNano(), p.resetAt.Load()
	if now-last >= resetInterval.Nanoseconds() && p.resetAt.CompareAndSwap(last, now) {
		p.Reset()
	}
}

// A setting is a configuration parameter of PostgreSQL and its value.
type setting struct{ name, value string }

// settings are what a role's statements run with. The server gives up a client whose machine is gone after 25 s of
// silence, or 15 s of not taking its answer: its session would keep a place, and the locks of its statement.
// force_custom_plan elsewhere: a generic plan cached while a table was empty made a claim of 360 ms out of 8.
func (r Role) settings() []setting {
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
	return []setting{
		{"application_name", r.Name}, {"search_path", "pg_catalog"}, {"TimeZone", "UTC"}, {"standard_conforming_strings", "on"},
		{"statement_timeout", fmt.Sprint(r.StatementTimeout.Milliseconds())}, {"lock_timeout", lockTimeout}, {"idle_in_transaction_session_timeout", "10s"},
		{"plan_cache_mode", plans}, {"jit", "off"}, {"synchronous_commit", synchronous}, {"enable_seqscan", scans}, {"enable_bitmapscan", scans},
	}
}

// sessionSettings are those that only a session of one's own can have.
func sessionSettings() []setting {
	return []setting{
		{"default_transaction_isolation", "read committed"}, {"default_transaction_read_only", "off"},
		{"tcp_keepalives_idle", "10"}, {"tcp_keepalives_interval", "5"}, {"tcp_keepalives_count", "3"}, {"tcp_user_timeout", "15s"},
	}
}

// pin uses set_config and not startup parameters: poolers refuse those they do not know. It sets nothing, and fails
// with ErrPooler, if the session is not that of the server that greeted us: poolers greet with a number of their own.
func (r Role) pin(ctx context.Context, conn *pgx.Conn) error {
	var names, values []string
	for _, s := range append(r.settings(), sessionSettings()...) {
		names, values = append(names, s.name), append(values, s.value)
	}
	tag, err := conn.Exec(ctx, `
		SELECT set_config(name, value, false)
		FROM unnest($1::text[], $2::text[]) AS settings (name, value)
		WHERE pg_catalog.pg_backend_pid() = $3`,
		pgx.QueryExecModeExec, names, values, int32(conn.PgConn().PID())) //nolint:gosec // that of a server fits
	if err != nil {
		return fmt.Errorf("pin session settings: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrPooler
	}
	return nil
}
