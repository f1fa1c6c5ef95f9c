package worker

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db"
)

// An explainer runs EXPLAIN in place of each query, and keeps the plan.
type explainer struct {
	*pgxpool.Pool
	plan string
}

func (e *explainer) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := e.Pool.Query(ctx, "EXPLAIN (COSTS OFF) "+sql, args...)
	if err != nil {
		return nil, err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	e.plan = strings.Join(lines, "\n")
	if err != nil {
		return nil, err
	}
	return e.Pool.Query(ctx, "SELECT WHERE false")
}

// QueryRow explains as Query does, and answers no row.
func (e *explainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if rows, err := e.Query(ctx, sql, args...); err == nil {
		rows.Close()
	}
	return e.Pool.QueryRow(ctx, "SELECT WHERE false")
}

// A genericExplainer asks for the generic plan: that of a prepared statement.
type genericExplainer struct{ explainer }

func (e *genericExplainer) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	err := e.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		if _, err := c.Exec(ctx, "DEALLOCATE ALL", pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		if _, err := c.Exec(ctx, "PREPARE generic AS "+sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		values := strings.TrimSuffix(strings.Repeat("NULL, ", len(args)), ", ") // a generic plan is the same for all
		rows, err := c.Query(ctx, "EXPLAIN (COSTS OFF) EXECUTE generic ("+values+")", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		e.plan = strings.Join(lines, "\n")
		return err
	})
	if err != nil {
		return nil, err
	}
	return e.Pool.Query(ctx, "SELECT WHERE false", pgx.QueryExecModeSimpleProtocol)
}

func (e *genericExplainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if rows, err := e.Query(ctx, sql, args...); err == nil {
		rows.Close()
	}
	return e.Pool.QueryRow(ctx, "SELECT WHERE false")
}

// The plans of the two hot statements, in the states that have misled planners: never analysed, analysed while empty
// and then filled, and full. A sequential scan of a table of ours grows with the backlog; so does a sort of it.
func TestPlans(t *testing.T) {
	t.Parallel()
	const (
		fillOutbox     = "INSERT INTO mailhook.outbox (event_type, account_id) SELECT 'email.sent', 'a' || n % 1000 FROM generate_series(1, 30000) AS n"
		fillDeliveries = `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
			SELECT id, account_id, now(), n, 'email.sent', now() + n * interval '1 second', now() FROM mailhook.subscriptions, generate_series(-50, 50) AS n`
		fillSubscriptions = `INSERT INTO mailhook.subscriptions (account_id, url, event_types) SELECT 'a' || n % 1000, 'https://example.com/', '{email}' FROM generate_series(1, 2000) AS n`
		analyze           = "ANALYZE mailhook.outbox, mailhook.deliveries, mailhook.subscriptions, mailhook.subscription_event_types, mailhook.events, mailhook.accounts, mailhook.subscription_health"
		noAutovacuum      = "ALTER TABLE mailhook.outbox SET (autovacuum_enabled = off); ALTER TABLE mailhook.deliveries SET (autovacuum_enabled = off)"
	)
	for state, statements := range map[string][]string{
		"never analysed":                 {fillSubscriptions, fillOutbox, fillDeliveries},
		"analysed empty and then filled": {analyze, fillSubscriptions, fillOutbox, fillDeliveries},
		"subscriptions analysed only":    {fillSubscriptions, analyze, fillOutbox, fillDeliveries},
		"full and analysed":              {fillSubscriptions, fillOutbox, fillDeliveries, analyze},
		"vacuumed empty, then a backlog": {fillSubscriptions, "VACUUM ANALYZE mailhook.outbox", "VACUUM ANALYZE mailhook.deliveries", analyze, fillOutbox, fillDeliveries},
		// A generic plan is kept when the tables fill.
		"vacuumed while empty":            {"VACUUM ANALYZE"},
		"analysed while empty":            {analyze},
		"filled, emptied and vacuumed":    {fillSubscriptions, fillOutbox, fillDeliveries, "DELETE FROM mailhook.outbox", "DELETE FROM mailhook.deliveries", "VACUUM ANALYZE"},
		"a handful, analysed":             {fillSubscriptions, fillDeliveries, "DELETE FROM mailhook.deliveries WHERE event_id <> 1", "VACUUM FULL ANALYZE mailhook.deliveries"},
		"one subscription has all of due": {fillSubscriptions, fillDeliveries, "UPDATE mailhook.deliveries SET subscription_id = (SELECT min(id::text)::uuid FROM mailhook.subscriptions)", analyze, fillOutbox},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			for _, s := range append(strings.Split(noAutovacuum, ";"), statements...) {
				b.Exec(t, s)
			}
			pool, err := db.Open(t.Context(), b.URL, db.Role{Name: "plans", IndexOnly: true, StatementTimeout: callTimeout, MaxConns: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			generic, err := db.Open(t.Context(), b.URL, db.Role{Name: "plans", IndexOnly: true, GenericPlans: true, StatementTimeout: callTimeout, MaxConns: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer generic.Close()
			g := &genericExplainer{explainer{Pool: generic.Pool}}
			inFlight := []byte(`{"00000000-0000-0000-0000-000000000001": 1}`)

			if _, err := db.New(g).Dispatch(t.Context(), db.DispatchParams{
				Holes: []int64{1, 2, 3}, AfterID: 10, MaxRows: 1000, MaxBytes: batchBytes, FreeSlots: 1000, IsNew: true, InFlight: inFlight, UrgentInFlight: inFlight, Limits: inFlight,
			}); err != nil {
				t.Fatal(err)
			}
			forbid(t, "dispatch", g.plan, "outbox", "deliveries", "subscriptions", "subscription_event_types", "accounts", "subscription_health")
			probes(t, "dispatch", g.plan)
			hashes(t, "dispatch", g.plan)
			if !strings.Contains(g.plan, "$1") {
				t.Errorf("this is not a generic plan:\n%s", g.plan)
			}
			if !strings.Contains(g.plan, "((event_type = ANY (types.nodes)) AND (account_id = ") {
				t.Errorf("subscriptions are not matched by event type and account:\n%s", g.plan)
			}

			if _, err := db.New(g).Record(t.Context(), recordParams([]outcome{{delivery: &delivery{}, word: outcomeOK}})); err != nil {
				t.Fatal(err)
			}
			forbid(t, "record", g.plan, "deliveries", "subscriptions", "subscription_health")
			probes(t, "record", g.plan)
			hashes(t, "record", g.plan)
			if _, err := db.New(g).RecordAlike(t.Context(), db.RecordAlikeParams{}); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				t.Fatal(err)
			}
			forbid(t, "record of what is alike", g.plan, "deliveries", "subscription_health")
			probes(t, "record of what is alike", g.plan)

			if _, err := db.New(g).ListChangedSubscriptions(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			probes(t, "pulse", g.plan)
			forbid(t, "pulse", g.plan, "subscriptions", "accounts")
			if _, err := db.New(g).LoadSubscriptions(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			probes(t, "load", g.plan)
			forbid(t, "load", g.plan, "subscriptions", "accounts", "subscription_secrets", "subscription_credentials")

			if _, err := db.New(g).Claim(t.Context(), db.ClaimParams{}); err != nil {
				t.Fatal(err)
			}
			forbid(t, "claim", g.plan, "deliveries", "subscriptions", "accounts", "subscription_health", "events")
			probes(t, "claim", g.plan)
			if strings.Count(g.plan, "deliveries_next_attempt_at_idx") != 1 { // by the one step that asks what has come due since
				t.Errorf("a walk reads by time what is due of one subscription:\n%s", g.plan)
			}
			if strings.Contains(g.plan, "Sort Key: d.") || strings.Contains(g.plan, "Sort Key: deliveries") {
				t.Errorf("the claim sorts deliveries:\n%s", g.plan)
			}
			if _, err := db.New(urgentClaims{g}).Claim(t.Context(), db.ClaimParams{}); err != nil {
				t.Fatal(err)
			}
			forbid(t, "urgent claim", g.plan, "deliveries", "subscriptions", "accounts", "subscription_health", "events")
			probes(t, "urgent claim", g.plan)
			if strings.Contains(g.plan, "deliveries_next_attempt_at_idx") || strings.Contains(g.plan, "deliveries_subscription_id_next_attempt_at_idx") {
				t.Errorf("an urgent claim reads past ordinary deliveries:\n%s", g.plan)
			}
			if strings.Contains(g.plan, "Sort Key: d.") || strings.Contains(g.plan, "Sort Key: deliveries") {
				t.Errorf("the claim sorts deliveries:\n%s", g.plan)
			}

			e := &explainer{Pool: pool.Pool}
			if _, err := db.New(e).AdvanceReplay(t.Context(), db.AdvanceReplayParams{MaxScanned: replayScan}); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				t.Fatal(err)
			}
			if !strings.Contains(e.plan, "events_account_id_inserted_at") && !strings.Contains(e.plan, "account_id_inserted_at_id_idx") {
				t.Errorf("the replay does not read by account:\n%s", e.plan)
			}
			forbid(t, "replay", e.plan, "events", "deliveries", "subscriptions", "dead_letters")
			if regexp.MustCompile(`Sort Key: l(_\d+)?\.inserted_at`).MatchString(e.plan) && !strings.Contains(e.plan, "Merge Append") {
				t.Errorf("the replay sorts what is left of an account's events:\n%s", e.plan)
			}
		})
	}
}

// probes makes sure that no index is read from end to end: with sequential scans switched off that is what a planner does
// who wants a hash of a whole table.
func probes(t *testing.T, what, plan string) {
	t.Helper()
	// A row for each live worker, all of which are asked for; and a table of one row.
	small := regexp.MustCompile(` on (workers w|installation i)(_\d+)?(  |$)`)
	lines := strings.Split(plan, "\n")
	for i, line := range lines {
		if small.MatchString(line) {
			continue
		}
		if strings.Contains(line, "Index Scan using") || strings.Contains(line, "Index Only Scan using") {
			if i+1 == len(lines) || !strings.Contains(lines[i+1], "Index Cond:") {
				t.Errorf("the %s reads a whole index: %s\n%s", what, strings.TrimSpace(line), plan)
			}
		}
	}
}

// hashes makes sure that what is joined with itself, row for row, is hashed: sorted by text, it would take ten times as long.
func hashes(t *testing.T, what, plan string) {
	t.Helper()
	if strings.Count(plan, "Full Join") != 1 || strings.Count(plan, "Hash Full Join") != 1 {
		t.Errorf("the %s does not hash its batch:\n%s", what, plan)
	}
}

func forbid(t *testing.T, what, plan string, tables ...string) {
	t.Helper()
	for _, table := range tables {
		if regexp.MustCompile(`Seq Scan on ` + table + `(_\d+|_default)?( |$)`).MatchString(plan) {
			t.Errorf("the %s scans all of %s:\n%s", what, table, plan)
		}
	}
}
