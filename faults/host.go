package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
)

// A host is the mail platform: connections that commit events, each with a ledger line on disk before its COMMIT.
type host struct {
	field  *field
	ledger *ledger
	keys   atomic.Int64
	number atomic.Int64 // of transactions

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	trouble []trouble
}

// A load is how much a host writes.
type load struct {
	connections int
	rate        float64 // events a second, over all connections
	most        int     // events in one transaction
}

// A transaction is a line of the host's ledger: first the intent, then what became of it.
type transaction struct {
	At      int64    `json:"at"` // µs
	Number  int64    `json:"number"`
	State   string   `json:"state"`
	XID     string   `json:"xid,omitempty"`
	First   int64    `json:"first,omitempty"` // key; the others follow
	Events  int64    `json:"events,omitempty"`
	Account string   `json:"account,omitempty"` // of all of them; else by key
	IDs     []string `json:"ids,omitempty"`     // the public ids, as emit answered them or as the identity makes them
}

// The states of a transaction.
const (
	intended   = "intent"
	committed  = "committed"
	rolledBack = "rolled back"
	unknown    = "unknown" // the answer to COMMIT was lost
	gone       = "gone"    // committed by a primary that is gone, and its successor never had it
)

// A trouble is a statement of the host that failed or took too long.
type trouble struct {
	from, to time.Time
	what     string
	slow     bool // it succeeded
}

// tooLong is what no statement of a host takes for a reason of ours.
const tooLong = time.Second

func newHost(f *field) (*host, error) {
	l, err := newLedger(filepath.Join(f.dir, "host.jsonl"))
	return &host{field: f, ledger: l}, err
}

// start begins to write, until stop.
func (h *host) start(ctx context.Context, l load) {
	ctx, h.cancel = context.WithCancel(ctx)
	for i := range l.connections {
		h.wg.Go(func() { h.write(ctx, h.field.random(fmt.Sprint("host ", i)), l) })
	}
}

// stop ends in between transactions, and finds out about those whose answer was lost.
func (h *host) stop(ctx context.Context) error {
	if h.cancel != nil {
		h.cancel()
	}
	h.wg.Wait()
	return h.resolve(ctx)
}

// write is one connection, paced so that all of them together keep the rate.
func (h *host) write(ctx context.Context, random *rand.Rand, l load) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // at the end
		}
	}()
	for next := time.Now(); ctx.Err() == nil; {
		n := 1 + random.IntN(l.most)
		next = next.Add(time.Duration(float64(n*l.connections) / l.rate * float64(time.Second)))
		if now := time.Now(); next.Before(now) {
			next = now // no burst after an outage
		}
		h.sleep(ctx, time.Until(next))
		if ctx.Err() != nil {
			return
		}
		if conn == nil || conn.IsClosed() {
			began := time.Now()
			// Not ctx: it ends in between transactions.
			connecting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			var err error
			conn, err = pgx.Connect(connecting, h.field.hostURL)
			cancel()
			if err != nil {
				h.failed(began, "connect", err)
				h.sleep(ctx, 50*time.Millisecond)
				continue
			}
		}
		h.transact(context.WithoutCancel(ctx), conn, random, int64(n))
	}
}

func (h *host) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// insertSQL and emitSQL write the same events by the two interfaces.
const (
	insertSQL = `INSERT INTO mailhook.outbox (account_id, event_type, recipient, data)
		SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::json[]) RETURNING id, inserted_at`
	emitSQL = `SELECT mailhook.emit(x.event_type, account_id => x.account_id, recipient => x.recipient, data => x.data)
		FROM unnest($1::text[], $2::text[], $3::text[], $4::json[]) AS x (account_id, event_type, recipient, data)`
)

// transact writes n events in one transaction; one in twenty is rolled back on purpose.
func (h *host) transact(ctx context.Context, conn *pgx.Conn, random *rand.Rand, n int64) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	entry := transaction{Number: h.number.Add(1), First: h.keys.Add(n) - n + 1, Events: n}
	commit := random.IntN(20) != 0
	began := time.Now()
	tx, err := conn.Begin(ctx)
	if err != nil {
		h.failed(began, "begin", err)
		return
	}
	batch := &pgx.Batch{}
	batch.Queue("INSERT INTO host.transactions VALUES ($1)", entry.Number)
	sql, read := insertSQL, h.identities(&entry)
	if random.IntN(2) == 0 {
		sql, read = emitSQL, emitted(&entry)
	}
	batch.Queue(sql, events(entry)...).Query(read)
	batch.Queue("SELECT pg_current_xact_id()::text").QueryRow(func(r pgx.Row) error { return r.Scan(&entry.XID) })
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		h.failed(began, "insert", err)
		tx.Rollback(ctx) //nolint:errcheck // or the connection is gone, and the transaction with it
		return
	}
	h.lasted(began, "insert")
	h.end(ctx, tx, entry, commit)
}

// end writes the intent, commits or rolls back, and writes what came of it.
func (h *host) end(ctx context.Context, tx pgx.Tx, entry transaction, commit bool) {
	entry.State, entry.At = intended, h.field.at(time.Now())
	if err := h.ledger.appendDurably(entry); err != nil {
		h.field.problem("the ledger of the host: %v", err)
		tx.Rollback(ctx) //nolint:errcheck // nothing can be proved any more
		return
	}
	began := time.Now()
	state := rolledBack
	var err error
	if commit {
		state = committed
		err = tx.Commit(ctx)
	} else if tx.Rollback(ctx) != nil {
		state = rolledBack // whether the answer came or not
	}
	if err != nil {
		state = unknown
		h.failed(began, "commit", err)
	}
	h.lasted(began, "commit")
	h.field.complain("the ledger of the host", h.ledger.append(transaction{At: h.field.at(time.Now()), Number: entry.Number, State: state}))
}

// keys are those of its events.
func (t transaction) keys() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for key := t.First; key < t.First+t.Events && yield(key); key++ {
		}
	}
}

func events(t transaction) []any {
	var accounts, types, recipients, data []string
	for k := t.First; k < t.First+t.Events; k++ {
		accounts, types = append(accounts, accountOf(k)), append(types, typeOf(k))
		recipients, data = append(recipients, fmt.Sprintf("user%d@example.com", k)), append(data, fmt.Sprintf(`{"k": %d}`, k))
	}
	return []any{accounts, types, recipients, data}
}

func (h *host) identities(t *transaction) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var id db.EventID
		id.Installation = h.field.installation
		_, err := pgx.ForEachRow(rows, []any{&id.ID, &id.InsertedAt}, func() error {
			t.IDs = append(t.IDs, id.String())
			return nil
		})
		return err
	}
}

func emitted(t *transaction) func(pgx.Rows) error {
	return func(rows pgx.Rows) (err error) {
		t.IDs, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	}
}

// bulk commits n events of one account in one transaction.
func (h *host) bulk(ctx context.Context, account string, n int64) error {
	entry := transaction{Number: h.number.Add(1), First: h.keys.Add(n) - n + 1, Events: n, Account: account}
	tx, err := h.field.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // after the commit there is nothing to roll back
	if _, err := tx.Exec(ctx, "INSERT INTO host.transactions VALUES ($1)", entry.Number); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO mailhook.outbox (account_id, event_type, data)
		SELECT $1, 'email.delivered', json_build_object('k', k) FROM generate_series($2::bigint, $3::bigint) AS k`, account, entry.First, entry.First+n-1); err != nil {
		return err
	}
	h.end(ctx, tx, entry, true)
	return nil
}

// failed notes a statement that failed.
func (h *host) failed(began time.Time, what string, err error) {
	var refused *pgconn.PgError
	text := err.Error()
	if errors.As(err, &refused) {
		text = refused.Code + " " + refused.Message
	}
	h.note(trouble{began, time.Now(), what + " failed: " + text, false})
}

func (h *host) lasted(began time.Time, what string) {
	if took := time.Since(began); took > tooLong {
		h.note(trouble{began, time.Now(), fmt.Sprintf("%s took %v", what, took.Round(time.Millisecond)), true})
	}
}

func (h *host) note(t trouble) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trouble = append(h.trouble, t)
}

// troubles is what the host suffered for which no outage is an excuse, and no machine that stood still for others as well.
func (h *host) troubles() (inexcusable []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.trouble {
		if !h.field.excused(t.from, t.to) && (!t.slow || h.field.stalled(t.from, t.to) == 0) {
			inexcusable = append(inexcusable, fmt.Sprintf("at %.1f s: %s", t.from.Sub(h.field.began).Seconds(), t.what))
		}
	}
	return inexcusable
}

// resolve asks for the transactions whose COMMIT was not answered. The host's own table decides: a crash may give a
// transaction id that never reached the disk to another transaction. pg_xact_status is asked beside it and compared
// where the database has not crashed.
func (h *host) resolve(ctx context.Context) error {
	open := map[int64]transaction{}
	err := readLedger(h.ledger, func(t transaction) {
		switch t.State {
		case intended:
			open[t.Number] = t
		case unknown:
		default:
			delete(open, t.Number)
		}
	})
	if err != nil {
		return err
	}
	for number, t := range open {
		var there bool
		var status *string
		err := h.field.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM host.transactions WHERE number = $1), pg_xact_status($2::text::xid8)", number, t.XID).Scan(&there, &status)
		if err != nil {
			return fmt.Errorf("resolve a transaction: %w", err)
		}
		state := rolledBack
		if there {
			state = committed
		}
		if there && status != nil && *status != "committed" {
			h.field.problem("transaction %d is in the host's table, and pg_xact_status says %s", number, *status)
		}
		h.field.complain("the ledger of the host", h.ledger.append(transaction{At: t.At, Number: number, State: state}))
	}
	if len(open) > 0 {
		h.field.note("%d commits of unknown end resolved", len(open))
	}
	return nil
}

// complain notes an error of the harness.
func (f *field) complain(what string, err error) {
	if err != nil {
		f.problem("%s: %v", what, err)
	}
}

// facts reads the ledger: every key that was committed, with its transaction's moment, and those rolled back.
func (h *host) facts() (facts, error) {
	x := facts{committed: map[int64]fact{}, rolledBack: map[int64]bool{}, gone: map[int64]bool{}}
	intents := map[int64]transaction{}
	err := readLedger(h.ledger, func(t transaction) {
		switch t.State {
		case intended:
			intents[t.Number] = t
		case gone:
			for key := range intents[t.Number].keys() {
				delete(x.committed, key)
				delete(x.rolledBack, key)
				x.gone[key] = true
			}
		case committed, rolledBack:
			intent := intents[t.Number]
			for i := range intent.Events {
				key := intent.First + i
				if t.State == rolledBack {
					x.rolledBack[key] = true
					continue
				}
				e := fact{at: t.At, account: intent.Account, eventType: "email.delivered"}
				if e.account == "" {
					e.account, e.eventType = accountOf(key), typeOf(key)
				}
				if len(intent.IDs) > 0 {
					e.id = intent.IDs[i]
				}
				x.committed[key] = e
			}
		}
	})
	return x, err
}

// facts are what the host did, by key.
type facts struct {
	committed  map[int64]fact
	rolledBack map[int64]bool
	gone       map[int64]bool
}

// A fact is one committed event.
type fact struct {
	at                     int64 // µs; when the commit was answered, or intended where it was not
	id, account, eventType string
}
