package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What the host pays is measured on three tables of the same columns, defaults, primary key and storage options: the outbox as
// it is, with its index of urgent events, while the workers are awake (the wakeup sequence is 0; none runs, so that none takes CPU time from the host), the
// same without a trigger and that index, and this with a trigger that notifies in every commit, which one session listens to.
const (
	outbox      = "mailhook.outbox"
	bareOutbox  = "public.bare_outbox"
	notifyTable = "public.notify_outbox"
)

func (b *bench) hostTables(ctx context.Context) (*database, error) {
	d, err := b.cluster.installed(ctx, "accounts_1000", b.accepting(accounts, 1))
	if err != nil {
		return nil, err
	}
	for _, table := range []string{bareOutbox, notifyTable} {
		if err := d.exec(ctx, "CREATE TABLE "+table+" (LIKE mailhook.outbox INCLUDING ALL EXCLUDING INDEXES, PRIMARY KEY (id))"); err != nil {
			return nil, err
		}
		// LIKE leaves out the storage options.
		var options string
		if err := d.pool.QueryRow(ctx, "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = $1::regclass", outbox).Scan(&options); err != nil {
			return nil, err
		}
		if err := d.exec(ctx, "ALTER TABLE "+table+" SET ("+options+")"); err != nil {
			return nil, err
		}
	}
	return d, errors.Join(
		d.exec(ctx, "SELECT setval('mailhook.wakeup', 0)"),
		d.exec(ctx, `CREATE FUNCTION public.notify_always() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN PERFORM pg_notify('always', ''); RETURN NULL; END $$`),
		d.exec(ctx, "CREATE TRIGGER notify_always AFTER INSERT ON "+notifyTable+" FOR EACH STATEMENT EXECUTE FUNCTION public.notify_always()"))
}

// turn is how long a table has the host to itself.
const turn = 500 * time.Millisecond

// commits is what some clients did in a time.
type commits struct {
	n    int64
	took time.Duration
	each []time.Duration
}

func (c *commits) join(d commits) {
	c.n += d.n
	c.took += d.took
	c.each = append(c.each, d.each...)
}

func (c *commits) rate() float64 { return float64(c.n) / c.took.Seconds() }

// host is 16 and 32 clients that commit one row at a time. The tables take turns every half second, so that what else
// happens to the disk happens to all of them.
func (b *bench) host(ctx context.Context) error {
	d, err := b.hostTables(ctx)
	if err != nil {
		return err
	}
	defer d.drop(ctx)
	stop, err := d.listenAlways(ctx)
	if err != nil {
		return err
	}
	defer stop()
	for _, clients := range []int{16, 32} {
		if err := b.hostOf(ctx, d, clients); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) hostOf(ctx context.Context, d *database, clients int) error {
	tables := []string{bareOutbox, outbox, notifyTable}
	hosts, err := d.connect(ctx, clients, tables)
	if err != nil {
		return err
	}
	defer hosts.release()
	rates, late := map[string][]float64{}, map[string][]float64{}
	for range rounds {
		found := map[string]*commits{bareOutbox: {}, outbox: {}, notifyTable: {}}
		for range int(b.seconds(5) / turn) {
			for _, table := range tables {
				c, err := hosts.commitFor(ctx, table, turn)
				if err != nil {
					return err
				}
				found[table].join(c)
			}
			// None always comes after the same one.
			rand.Shuffle(len(tables), func(i, j int) { tables[i], tables[j] = tables[j], tables[i] }) //nolint:gosec // not a secret
		}
		for table, c := range found {
			rates[table] = append(rates[table], c.rate())
			late[table] = append(late[table], milliseconds(quantile(c.each, 0.99)))
		}
		if err := d.exec(ctx, "TRUNCATE "+outbox+", "+bareOutbox+", "+notifyTable); err != nil {
			return err
		}
	}
	label := fmt.Sprintf("%d clients: ", clients)
	b.report.add("host", label+"table without trigger", "commits/s", rates[bareOutbox]...)
	b.report.add("host", label+"outbox", "commits/s", rates[outbox]...)
	b.report.add("host", label+"NOTIFY in every commit", "commits/s", rates[notifyTable]...)
	b.report.atLeast(0.90, "host", label+"outbox : without trigger", ratios(rates[outbox], rates[bareOutbox])...)
	b.report.atLeast(2.5, "host", label+"outbox : NOTIFY in every commit", ratios(rates[outbox], rates[notifyTable])...)
	b.report.add("host", label+"p99 of a commit without trigger", "ms", late[bareOutbox]...)
	b.report.add("host", label+"p99 of a commit, outbox", "ms", late[outbox]...)
	b.report.atMost(1.25, "host", label+"p99, outbox : without trigger", "×", ratios(late[outbox], late[bareOutbox])...)
	return nil
}

// hosts are sessions that have inserted before: plans are prepared, and the trigger's function is compiled.
type hosts []*pgxpool.Conn

func (d *database) connect(ctx context.Context, clients int, tables []string) (hosts, error) {
	var h hosts
	for range clients {
		conn, err := d.pool.Acquire(ctx)
		if err != nil {
			h.release()
			return nil, err
		}
		h = append(h, conn)
	}
	for _, table := range tables {
		if _, err := h.commitFor(ctx, table, 200*time.Millisecond); err != nil {
			h.release()
			return nil, err
		}
	}
	return h, nil
}

func (h hosts) release() {
	for _, conn := range h {
		conn.Release()
	}
}

// commitFor lets all of them insert, a row in each commit, for a while.
func (h hosts) commitFor(ctx context.Context, table string, while time.Duration) (commits, error) {
	sql := "INSERT INTO " + table + ` (account_id, event_type, recipient, message_id, data) VALUES ($1, 'email.delivered', $2, $3, $4)`
	var group sync.WaitGroup
	var next atomic.Int64
	found, errs := make([]commits, len(h)), make([]error, len(h))
	began := time.Now()
	for client, conn := range h {
		group.Go(func() {
			for last := began; last.Sub(began) < while && errs[client] == nil; {
				n := next.Add(1)
				_, errs[client] = conn.Exec(ctx, sql, fmt.Sprintf("a%d", n%accounts), fmt.Sprintf("user%d@example.com", n), fmt.Sprintf("message-%d", n), "{"+eventDetails+"}")
				now := time.Now()
				found[client].each = append(found[client].each, now.Sub(last))
				last = now
			}
		})
	}
	group.Wait()
	all := commits{n: next.Load(), took: time.Since(began)}
	for _, c := range found {
		all.each = append(all.each, c.each...)
	}
	return all, errors.Join(errs...)
}

// listenAlways takes the notifications of notifyTable, as a worker would.
func (d *database) listenAlways(ctx context.Context) (stop func(), err error) {
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "LISTEN always"); err != nil {
		return nil, err
	}
	listening, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for listening.Err() == nil {
			conn.WaitForNotification(listening) //nolint:errcheck // it ends with the context
		}
	}()
	return func() {
		cancel()
		<-ended
		conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the database is thrown away
	}, nil
}

// hostBulk is one INSERT … SELECT of 20,000 rows, the tables taking turns; the medians are compared.
func (b *bench) hostBulk(ctx context.Context) error {
	d, err := b.hostTables(ctx)
	if err != nil {
		return err
	}
	defer d.drop(ctx)
	const rows, repetitions = 20_000, 15
	tables := []string{bareOutbox, outbox}
	rates := map[string][]float64{}
	for i := range repetitions + 1 {
		for _, table := range tables {
			began := time.Now()
			if err := d.exec(ctx, fmt.Sprintf(bulkSQL, table), 1, rows, accounts); err != nil {
				return err
			}
			if i > 0 { // the first makes the files
				rates[table] = append(rates[table], rows/time.Since(began).Seconds())
			}
		}
		slices.Reverse(tables)
	}
	b.report.add("host-bulk", "table without trigger", "rows/s", rates[bareOutbox]...)
	b.report.add("host-bulk", "outbox", "rows/s", rates[outbox]...)
	b.report.atLeast(0.95, "host-bulk", "outbox : without trigger, of the medians", median(rates[outbox])/median(rates[bareOutbox]))
	return nil
}
