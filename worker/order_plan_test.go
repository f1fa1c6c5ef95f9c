package worker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// The statements of order read by their indexes, in the states that have misled planners. See TestPlans.
func TestPlansOfOrder(t *testing.T) {
	t.Parallel()
	const (
		subscribe = "INSERT INTO mailhook.subscriptions (account_id, url, event_types, ordering) SELECT 'a' || n, 'https://example.com/', '{email}', 'recipient' FROM generate_series(1, 200) AS n"
		fill      = `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
			SELECT id, account_id, now(), n, 'email.sent', CASE WHEN n < 10 THEN now() + n * interval '1 minute' ELSE 'infinity' END, now(), CASE WHEN n < 10 THEN n ELSE n % 10 END
			FROM mailhook.subscriptions, generate_series(1, 100) AS n`
		unordered = `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
			SELECT id, account_id, now(), n, 'email.sent', now() + n * interval '1 minute', now() FROM mailhook.subscriptions, generate_series(1, 100) AS n`
		analyze = "ANALYZE mailhook.deliveries, mailhook.subscriptions, mailhook.subscription_health"
	)
	for state, statements := range map[string][]string{
		"never analysed":                 {subscribe, fill},
		"analysed empty and then filled": {analyze, subscribe, fill},
		"full and analysed":              {subscribe, fill, unordered, analyze},
		"few of many are blocked":        {subscribe, unordered, analyze, fill},
		"one has all that is blocked":    {subscribe, fill, "DELETE FROM mailhook.deliveries WHERE subscription_id <> (SELECT min(id::text)::uuid FROM mailhook.subscriptions)", unordered, "VACUUM ANALYZE mailhook.deliveries"},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.Exec(t, "ALTER TABLE mailhook.deliveries SET (autovacuum_enabled = off)")
			for _, s := range statements {
				b.Exec(t, s)
			}
			pool, err := db.Open(t.Context(), b.URL, db.Role{Name: "plans", IndexOnly: true, StatementTimeout: callTimeout, MaxConns: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			e := &execExplainer{explainer{Pool: pool.Pool}}
			q := db.New(e)
			const heads, blocked, aged = "deliveries_head_key", "deliveries_blocked_order_key_idx", "deliveries_blocked_created_at_idx"
			for _, statement := range []struct {
				name    string
				run     func(context.Context) error
				indexes []string
			}{
				{"unblock", func(ctx context.Context) error {
					_, err := q.Unblock(ctx, db.UnblockParams{SubscriptionIDs: []uuid.UUID{uuid.New()}, OrderKeys: []int64{1}})
					return err
				}, []string{heads, blocked}},
				{"sweep", func(ctx context.Context) error {
					_, err := q.ListBlockedKeys(ctx, db.ListBlockedKeysParams{MaxKeys: sweepKeys})
					return err
				}, []string{heads, blocked}},
				{"freeing", func(ctx context.Context) error { _, err := q.FreeUnordered(ctx, smallBatch); return err }, []string{blocked, aged}},
				{"expiry", func(ctx context.Context) error {
					_, err := q.ExpireBlocked(ctx, db.ExpireBlockedParams{MaxAge: time.Hour, MaxRows: smallBatch})
					return err
				}, []string{blocked, aged}},
				{"end of releases", func(ctx context.Context) error { _, err := q.EndReleases(ctx); return err }, []string{aged}},
			} {
				if err := statement.run(t.Context()); err != nil && !errors.Is(err, pgx.ErrNoRows) {
					t.Fatalf("%s: %v", statement.name, err)
				}
				forbid(t, statement.name, e.plan, "deliveries", "subscriptions")
				// Releases under way are few, and have an index of their own.
				probes(t, statement.name, strings.ReplaceAll(e.plan, "Index Scan using subscription_health_release_before_idx", ""))
				for _, index := range statement.indexes {
					if !strings.Contains(e.plan, index) {
						t.Errorf("the %s does not use %s:\n%s", statement.name, index, e.plan)
					}
				}
			}
		})
	}
}

// However much is blocked behind a key that fails, nothing reads past it.
func TestAFailingKeyCostsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'")
	b.Exec(t, `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
		SELECT $1, 'default', now(), n, 'email.sent', CASE WHEN n = 1 THEN now() + interval '1 hour' ELSE 'infinity' END, now(), mailhook.order_key('recipient', '', 'a@example.com')
		FROM generate_series(1, 30000) AS n`, id)
	b.Exec(t, "ANALYZE mailhook.deliveries")
	w := b.idleWorker(t, b.config())
	w.state.set(func(s *pulseState) { s.inOrder = true })
	key := dbtest.QueryOne[int64](t, b.DB, "SELECT mailhook.order_key('recipient', '', 'a@example.com')")
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, recipient) SELECT 'email.sent', 'A@example.com' FROM generate_series(1, 10)")
	const entries = "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE relid = t.relid)::bigint + t.seq_tup_read FROM pg_stat_all_tables AS t WHERE t.relid = 'mailhook.deliveries'::regclass"
	before := b.read(t, w, entries)
	d := &dispatcher{w: w, requests: t.Context(), limit: 100, fanOut: -1}
	if n, err := d.look(t.Context(), 100, batchBytes); err != nil || n != 10 {
		t.Fatal(n, err)
	}
	w.unblockAll(t.Context())
	w.unblock(t.Context(), db.UnblockParams{SubscriptionIDs: []uuid.UUID{id}, OrderKeys: []int64{key}})
	sweep := keySweep{}
	if _, err := sweep.slice(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	c := &claimer{w: w, requests: t.Context()}
	if result, err := c.once(t.Context()); err != nil || result.deliveries != 0 {
		t.Fatal(result, err)
	}
	if _, err := w.q.ExpireBlocked(t.Context(), db.ExpireBlockedParams{MaxAge: time.Hour, MaxRows: smallBatch}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.q.FreeUnordered(t.Context(), smallBatch); err != nil {
		t.Fatal(err)
	}
	if read := b.read(t, w, entries) - before; read > 200 {
		t.Errorf("%d entries of deliveries and its indexes were read", read)
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE next_attempt_at = 'infinity'"); n != 30009 {
		t.Errorf("%d are blocked", n)
	}
}
