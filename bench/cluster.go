package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db"
	"mailhook/db/localpg"
)

// secret signs every request of every contestant.
const secret = "a secret of sixteen or more"

// A cluster is the private PostgreSQL of a run, with fsync on and the settings that docs/operations.md recommends.
// Every measurement has a database of its own, cloned from a template.
type cluster struct {
	server *localpg.Server
	pool   *pgxpool.Pool // of database postgres
	pid    int           // of the postmaster
	key    string        // master key, base64
	ring   *db.Keyring
	made   int

	settings map[string]string
	log      *os.File // of PostgreSQL; stays where a row failed
}

func startCluster(ctx context.Context) (*cluster, error) {
	settings := map[string]string{"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "15min", "max_connections": "300"}
	if os.Getenv("PROFILE") != "" {
		settings["shared_preload_libraries"] = "pg_stat_statements"
	}
	log, err := os.CreateTemp("", "mailhook-bench-postgres-*.log")
	if err != nil {
		return nil, err
	}
	server, err := localpg.Start(ctx, localpg.Options{Settings: settings, Log: log})
	if err != nil {
		return nil, err
	}
	c := &cluster{server: server, key: db.NewMasterKey(), settings: settings, log: log}
	if c.ring, err = db.NewKeyring(c.key); err != nil {
		return nil, err
	}
	if c.pool, err = pgxpool.New(ctx, server.URL("postgres")); err != nil {
		return nil, err
	}
	var pidFile string
	if err := c.pool.QueryRow(ctx, "SELECT pg_read_file('postmaster.pid')").Scan(&pidFile); err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(pidFile, "\n")
	c.pid, err = strconv.Atoi(first)
	return c, err
}

func (c *cluster) stop() {
	c.pool.Close()
	c.server.Stop() //nolint:errcheck // it was ours alone
}

// A database is one clone, with a pool for the bench's own statements.
type database struct {
	cluster *cluster
	name    string
	url     string
	pool    *pgxpool.Pool
}

// template makes a database that clones are made of, unless it exists: migrated, and filled by fill.
func (c *cluster) template(ctx context.Context, name string, fill func(context.Context, *pgxpool.Pool) error) error {
	var exists bool
	if err := c.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil || exists {
		return err
	}
	if _, err := c.pool.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, c.server.URL(name))
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := fill(ctx, pool); err != nil {
		return fmt.Errorf("fill %s: %w", name, err)
	}
	_, err = pool.Exec(ctx, "VACUUM (ANALYZE, FREEZE)")
	return err
}

// clone makes a database of a template.
func (c *cluster) clone(ctx context.Context, template string) (*database, error) {
	c.made++
	d := &database{cluster: c, name: fmt.Sprintf("bench_%d", c.made)}
	d.url = c.server.URL(d.name)
	if _, err := c.pool.Exec(ctx, "CREATE DATABASE "+d.name+" TEMPLATE "+template); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(d.url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 64
	d.pool, err = pgxpool.NewWithConfig(ctx, config)
	return d, err
}

func (d *database) drop(ctx context.Context) {
	d.pool.Close()
	d.cluster.pool.Exec(ctx, "DROP DATABASE "+d.name+" WITH (FORCE)") //nolint:errcheck // the server is thrown away
}

func (d *database) exec(ctx context.Context, sql string, args ...any) error {
	_, err := d.pool.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("%.60s: %w", sql, err)
	}
	return nil
}

// settle brings a filled database to rest, so that no contestant pays for the filling.
func (d *database) settle(ctx context.Context, tables ...string) error {
	for _, table := range tables {
		if err := d.exec(ctx, "VACUUM (ANALYZE) "+table); err != nil {
			return err
		}
	}
	return d.exec(ctx, "CHECKPOINT")
}

// A market is accounts with subscriptions.
type market struct {
	prefix         string // of the accounts' ids; events go to those with "a"
	accounts, each int    // subscriptions of each account
	eventType      string
	url            func(i int) string
	maxInFlight    int // of a subscription; 0 is the default
	ordering       string
	maxEvents      int // in a request; 0: no batches
}

// accepting is a market whose subscriptions get all delivered mail, each at a path of its own that answers at once.
func (b *bench) accepting(accounts, each int) market {
	return market{prefix: "a", accounts: accounts, each: each, eventType: "email.delivered", url: func(i int) string { return fmt.Sprintf("%s/ok/%d", b.receiver.url, i) }}
}

// installed answers a new database with mailhook and subscriptions. Those of one name are the same.
func (c *cluster) installed(ctx context.Context, name string, markets ...market) (*database, error) {
	err := c.template(ctx, name, func(ctx context.Context, pool *pgxpool.Pool) error {
		if _, err := db.MigrateUp(ctx, pool.Config().ConnString()); err != nil {
			return err
		}
		for _, m := range markets {
			if err := c.subscribe(ctx, pool, m); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.clone(ctx, name)
}

// subscribe inserts the subscriptions of a market, with a sealed secret each, as if an hour ago: workers read again twice
// a second what has changed within a minute.
func (c *cluster) subscribe(ctx context.Context, pool *pgxpool.Pool, m market) error {
	n, then := m.accounts*m.each, time.Now().Add(-time.Hour)
	subscriptions := make([][]any, n)
	secrets := make([][]any, n)
	for i := range n {
		id := uuid.Must(uuid.NewV7())
		var batch, wait any
		if m.maxEvents > 0 {
			batch, wait = m.maxEvents, time.Second
		}
		subscriptions[i] = []any{id, m.prefix + strconv.Itoa(i%m.accounts), m.url(i), []string{m.eventType}, cmp.Or(m.maxInFlight, 32), cmp.Or(m.ordering, "none"), batch, wait, then, then}
		secrets[i] = []any{id, c.ring.First().ID, c.ring.First().Seal(db.SealedSecret, id, []byte(secret))}
	}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"mailhook", "subscriptions"},
		[]string{"id", "account_id", "url", "event_types", "max_in_flight", "ordering", "batch_max_events", "batch_max_wait", "created_at", "updated_at"}, pgx.CopyFromRows(subscriptions)); err != nil {
		return err
	}
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"mailhook", "subscription_secrets"}, []string{"subscription_id", "key_id", "sealed"}, pgx.CopyFromRows(secrets))
	return err
}

// insertEvents commits n events, numbered from 1, spread over the accounts, in transactions of at most 100,000, and
// brings the table to rest.
func (d *database) insertEvents(ctx context.Context, n, accounts int) error {
	const step = 100_000
	for from := 1; from <= n; from += step {
		if err := d.exec(ctx, fmt.Sprintf(bulkSQL, outbox), from, min(n, from+step-1), accounts); err != nil {
			return err
		}
	}
	return d.settle(ctx, "mailhook.outbox")
}

// bulkSQL inserts events with the numbers $1 to $2 into a table.
const bulkSQL = `INSERT INTO %s (account_id, event_type, recipient, message_id, data)
	SELECT 'a' || n %% $3::int, 'email.delivered', 'user' || n || '@example.com', 'message-' || n, ('{"n":' || n || ',` + eventDetails + `}')::json
	FROM generate_series($1::int, $2::int) AS n`

// bulkOpensSQL is the same with opens.
var bulkOpensSQL = strings.ReplaceAll(bulkSQL, "email.delivered", "email.opened")

// A usage is what the processes and the database have used up to now.
type usage struct {
	postgresCPU, contestantCPU time.Duration
	wal                        int64
	xids                       int64
	disk                       int64 // of the database
	transactions               int64 // that ended, with or without a transaction id
}

func (u usage) less(before usage) usage {
	return usage{u.postgresCPU - before.postgresCPU, u.contestantCPU - before.contestantCPU, u.wal - before.wal, u.xids - before.xids, u.disk - before.disk, u.transactions - before.transactions}
}

func (d *database) usage(ctx context.Context) (u usage, err error) {
	u.postgresCPU = treeCPU(d.cluster.pid)
	err = d.pool.QueryRow(ctx, `SELECT (pg_current_wal_lsn() - '0/0')::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_database_size(current_database()),
		(SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database())`).
		Scan(&u.wal, &u.xids, &u.disk, &u.transactions)
	return u, err
}

// tick is the unit of /proc/PID/stat: 1/100 s on Linux.
const tick = 10 * time.Millisecond

// treeCPU is the CPU time of a process, its children, and those of them that have ended.
func treeCPU(pid int) time.Duration {
	total := processCPU(pid, true)
	tasks, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for child := range strings.FieldsSeq(string(tasks)) {
		if n, err := strconv.Atoi(child); err == nil {
			total += processCPU(n, false)
		}
	}
	return total
}

func processCPU(pid int, withEnded bool) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from field 3, state
	last := 13
	if withEnded {
		last = 15
	}
	var ticks int64
	for _, field := range fields[11:last] {
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * tick
}

// peakMemory is the most resident memory of a process so far, in bytes.
func peakMemory(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64)
	return n << 10
}
