package worker

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// What is past its time goes, at most so many rows a call, and what is not stays.
func TestExpiryIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	for n := range 5 {
		at := fmt.Sprintf("now() - interval '%d days'", []int{40, 30, 20, 1, 0}[n])
		id := uuid.New()
		for _, s := range []string{
			"INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at) VALUES ($1, $1, 'a', now(), 1, 'email.sent', 1, 'expired', now(), %s)",
			"INSERT INTO mailhook.quarantine (inserted_at, id, event_type, reason, error_code, quarantined_at, account_id) VALUES (clock_timestamp(), 1, 'x', 'x', 'x', %s, ($1::uuid)::text)",
			"INSERT INTO mailhook.audit_log (id, actor, action, changed_at) VALUES ($1, 'command', 'delivery.off', %s)",
			"INSERT INTO mailhook.dedupe_keys (account_id, dedupe_key, event_inserted_at, event_id, seen_at) VALUES ('a', ($1::uuid)::text, now(), 1, %s - interval '12 hours')",
			"INSERT INTO mailhook.test_deliveries (id, subscription_id, account_id, event_type, created_at, leased_by) VALUES ($1, $1, 'acme', 'email.sent', %s - interval '30 minutes', $1)",
			"INSERT INTO mailhook.replays (id, subscription_id, account_id, since, until, source, rate_per_second, matched, state, advanced_at) VALUES ($1, $1, 'a', now(), now(), 'all', 1, 1, 'done', %s)",
			"INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed, expires_at) VALUES ($1, 'k', '', %s + interval '2 hours')",
			"INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, deleted_at) VALUES ($1, 'a', 'https://example.com/', '{email}', %s)",
			"INSERT INTO mailhook.subscription_health (subscription_id, last_failed_at) VALUES ($1, %s)",
		} {
			b.Exec(t, fmt.Sprintf(s, at), id)
		}
	}
	b.Exec(t, "INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at) VALUES (gen_random_uuid(), 'a', now(), now(), 'exhausted', 1, 1, now() - interval '40 days')")
	age := 14 * day
	for _, x := range []struct {
		table       string
		before, end int64
		drop        func(context.Context) (int64, error)
	}{
		{"dead_letters", 5, 2, func(ctx context.Context) (int64, error) {
			return w.q.DropDeadLetters(ctx, db.DropDeadLettersParams{MaxAge: age, MaxRows: 2})
		}},
		{"quarantine", 5, 2, func(ctx context.Context) (int64, error) {
			return w.q.DropQuarantine(ctx, db.DropQuarantineParams{MaxAge: age, MaxRows: 2})
		}},
		{"audit_log", 5, 2, func(ctx context.Context) (int64, error) {
			return w.q.DropAuditLog(ctx, db.DropAuditLogParams{MaxAge: age, MaxRows: 2})
		}},
		{"dedupe_keys", 5, 1, func(ctx context.Context) (int64, error) { return w.q.DropDedupeKeys(ctx, 2) }},
		{"test_deliveries", 5, 1, func(ctx context.Context) (int64, error) { return w.q.DropTestDeliveries(ctx, 2) }},
		{"replays", 6, 3, func(ctx context.Context) (int64, error) {
			return w.q.DropReplays(ctx, db.DropReplaysParams{MaxAge: age, MaxRows: 2})
		}},
		{"subscription_secrets", 5, 1, func(ctx context.Context) (int64, error) { return w.q.DropExpiredSecrets(ctx, 2) }},
		{"subscriptions", 5, 2, func(ctx context.Context) (int64, error) {
			return w.q.DropDeletedSubscriptions(ctx, db.DropDeletedSubscriptionsParams{MaxAge: age, MaxRows: 2})
		}},
	} {
		for left := x.before; left > x.end; {
			n, err := x.drop(t.Context())
			if want := min(2, left-x.end); err != nil || n != want {
				t.Fatalf("%s: %d rows went of %d to go, %v", x.table, n, left-x.end, err)
			}
			left -= n
			if got := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook."+x.table); got != left {
				t.Fatalf("%s: %d rows left, not %d", x.table, got, left)
			}
		}
		if n, err := x.drop(t.Context()); err != nil || n != 0 {
			t.Errorf("%s: %d rows went that are not past their time, %v", x.table, n, err)
		}
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.subscription_health"); n != 2 {
		t.Errorf("health of %d subscriptions; 2 are left", n)
	}
}

// An execExplainer is an explainer for statements that answer a count or one row.
type execExplainer struct{ explainer }

func (e *execExplainer) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	rows, err := e.Query(ctx, sql, args...)
	if err == nil {
		rows.Close()
	}
	return pgconn.CommandTag{}, err
}

func (e *execExplainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	_, err := e.Exec(ctx, sql, args...)
	return noRow{err}
}

type noRow struct{ err error }

func (r noRow) Scan(...any) error { return r.err }

// What retention looks at and removes it finds by an index, and reads none from end to end.
func TestPlansOfRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pool, err := db.Open(t.Context(), b.URL, db.Role{Name: "plans", IndexOnly: true, StatementTimeout: callTimeout, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	e := &execExplainer{explainer{Pool: pool.Pool}}
	q := db.New(e)
	now := time.Now()
	few := regexp.MustCompile(`(Seq|Index|Index Only) Scan (using (replays_id_idx|detached_days_day_pkey|pg_\w+) )?on (replays|detached_days|pg_\w+)`)
	for name, run := range map[string]func(context.Context) error{
		"drop dead letters": func(ctx context.Context) error {
			_, err := q.DropDeadLetters(ctx, db.DropDeadLettersParams{MaxAge: day, MaxRows: smallBatch})
			return err
		},
		"drop quarantine": func(ctx context.Context) error {
			_, err := q.DropQuarantine(ctx, db.DropQuarantineParams{MaxAge: day, MaxRows: smallBatch})
			return err
		},
		"drop audit log": func(ctx context.Context) error {
			_, err := q.DropAuditLog(ctx, db.DropAuditLogParams{MaxAge: day, MaxRows: smallBatch})
			return err
		},
		"drop dedupe keys":     func(ctx context.Context) error { _, err := q.DropDedupeKeys(ctx, smallBatch); return err },
		"drop test deliveries": func(ctx context.Context) error { _, err := q.DropTestDeliveries(ctx, smallBatch); return err },
		"drop replays": func(ctx context.Context) error {
			_, err := q.DropReplays(ctx, db.DropReplaysParams{MaxAge: day, MaxRows: smallBatch})
			return err
		},
		"drop expired secrets": func(ctx context.Context) error { _, err := q.DropExpiredSecrets(ctx, smallBatch); return err },
		"drop deleted subscriptions": func(ctx context.Context) error {
			_, err := q.DropDeletedSubscriptions(ctx, db.DropDeletedSubscriptionsParams{MaxAge: day, MaxRows: smallBatch})
			return err
		},
		"drop default attempts": func(ctx context.Context) error {
			_, err := q.DropDefaultAttempts(ctx, db.DropDefaultAttemptsParams{Before: now, MaxRows: smallBatch})
			return err
		},
		"drop default events": func(ctx context.Context) error {
			_, err := q.DropDefaultEvents(ctx, db.DropDefaultEventsParams{Before: now, MaxRows: smallBatch})
			return err
		},
		"look for old rows in default": func(ctx context.Context) error {
			_, err := q.HasOldDefaultRows(ctx, db.HasOldDefaultRowsParams{EventsBefore: now, AttemptsBefore: now})
			return err
		},
		"list default days": func(ctx context.Context) error {
			_, err := q.ListDefaultDays(ctx, db.ListDefaultDaysParams{Parent: "events", Since: now, Until: now})
			return err
		},
		"list overdue days": func(ctx context.Context) error {
			_, err := q.ListOverdueDays(ctx, db.ListOverdueDaysParams{KeepEvents: day, KeepAttempts: day})
			return err
		},
	} {
		for _, state := range []string{"never analysed", "analysed"} {
			if state == "analysed" {
				b.Exec(t, "ANALYZE")
			}
			e.plan = ""
			if err := run(t.Context()); err != nil && !strings.Contains(err.Error(), "no rows") {
				t.Fatal(name, err)
			}
			// The running replays and the days being counted are few, and so is what is in the catalog.
			plan := few.ReplaceAllString(e.plan, "Scan of few")
			if plan == "" || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s, %s:\n%s", name, state, e.plan)
			}
			probes(t, name, plan)
		}
	}
}

// LIKE takes no storage parameters along: each partition has to be given them.
func TestPartitionsHaveTheirVacuumSettings(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if n := dbtest.QueryOne[int64](t, b.DB, `SELECT count(*) FROM pg_class
		WHERE relnamespace = 'mailhook'::regnamespace AND relkind = 'r' AND relname ~ '^(events|attempts)_[0-9]{8}$' AND NOT coalesce('autovacuum_freeze_min_age=0' = ANY (reloptions), false)`); n != 0 {
		t.Errorf("%d partitions have no settings for vacuum", n)
	}
}
