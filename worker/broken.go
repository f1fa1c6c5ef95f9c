//go:build broken

package worker

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
)

// A broken pool leaves out the safeguard that MAILHOOK_BREAK names: fence (outcomes are recorded whatever lease they
// carry), rescue (nobody takes over the leases of dead workers) or record (the deletion of deliveries commits on its own,
// a moment before the attempts are written). make faults SCENARIO=proof shows that the campaign notices each.
type broken struct {
	*db.Pool
	safeguard string
}

func sessions(pool *db.Pool) db.DBTX { return broken{pool, os.Getenv("MAILHOOK_BREAK")} }

// gap is how long the broken record leaves between its two transactions.
const gap = 200 * time.Millisecond

func (b broken) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if strings.HasPrefix(sql, "-- name: Record ") { // RecordAlike is for batches, which no scenario of the proof has
		switch b.safeguard {
		case "fence":
			sql = edited(sql, ` AND x\.lease_id IS NOT DISTINCT FROM \w\.lease_id`, "")
			sql = edited(sql, `AND coalesce\(\(d\.id, d\.lease_id\) IN [^\n]*, false\)`, "")
			sql = edited(sql, ` AND o\.lease_id = r\.lease_id`, "")
		case "record":
			if err := b.deleteFirst(ctx, args[0], args[2]); err != nil {
				return nil, err
			}
		}
	}
	return b.Pool.Query(ctx, sql, args...)
}

func (b broken) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if b.safeguard == "rescue" && strings.HasPrefix(sql, "-- name: RescueWorker ") {
		sql = edited(sql, `WHERE w\.id = `, "WHERE false AND w.id = ")
	}
	return b.Pool.QueryRow(ctx, sql, args...)
}

func (b broken) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	if b.safeguard == "rescue" && strings.HasPrefix(sql, "-- name: FreeOrphans ") {
		sql = edited(sql, `WHERE d\.lease_id`, "WHERE false AND d.lease_id")
	}
	return b.Pool.Exec(ctx, sql, args...)
}

// deleteFirst commits the deletion, and puts the rows back after the gap for the statement to find: who is killed in
// between has lost them.
func (b broken) deleteFirst(ctx context.Context, deliveryIDs, leaseIDs any) error {
	rows, err := b.Pool.Query(ctx, `
		WITH deleted AS (
			DELETE FROM mailhook.deliveries AS d
			USING (SELECT unnest($1::uuid[]) AS id, unnest($2::uuid[]) AS lease_id) AS o
			WHERE d.id = o.id AND d.lease_id = o.lease_id
			RETURNING d.*
		)
		SELECT to_jsonb(x)::text FROM deleted AS x`, deliveryIDs, leaseIDs)
	if err != nil {
		return err
	}
	deleted, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	time.Sleep(gap)
	_, err = b.Pool.Exec(ctx, `
		INSERT INTO mailhook.deliveries
		SELECT (jsonb_populate_record(NULL::mailhook.deliveries, x::jsonb)).* FROM unnest($1::text[]) AS x`, deleted)
	return err
}

// edited replaces a pattern in a statement, which must have it: a safeguard that is not there cannot be left out.
func edited(sql, pattern, replacement string) string {
	text := regexp.MustCompile(pattern).ReplaceAllLiteralString(sql, replacement)
	if text == sql {
		panic(fmt.Sprintf("the statement has no %s any more", pattern))
	}
	return text
}
