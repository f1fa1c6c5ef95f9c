package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The checker reads what was logged and tried from two views of the host's schema, so that a scenario may have history go
// through retention and still know it.
const historySQL = `
	CREATE VIEW host.logged AS SELECT (e.data ->> 'k')::bigint AS k FROM mailhook.events AS e;
	CREATE VIEW host.tried AS
	SELECT a.subscription_id, (e.data ->> 'k')::bigint AS k, a.delivery_id, a.number, a.outcome, a.ended_as, a.started_at, a.duration_ms
	FROM mailhook.attempts AS a JOIN mailhook.events AS e ON e.inserted_at = a.event_inserted_at AND e.id = a.event_id;`

// keepAgedSQL adds to the views what has been moved back in time, as it was before.
const keepAgedSQL = `
	CREATE TABLE host.aged_events AS SELECT * FROM host.logged;
	CREATE TABLE host.aged_attempts AS SELECT * FROM host.tried;
	CREATE OR REPLACE VIEW host.logged AS
	SELECT (e.data ->> 'k')::bigint AS k FROM mailhook.events AS e WHERE e.inserted_at > now() - interval '2 days'
	UNION ALL SELECT g.k FROM host.aged_events AS g;
	CREATE OR REPLACE VIEW host.tried AS
	SELECT a.subscription_id, (e.data ->> 'k')::bigint AS k, a.delivery_id, a.number, a.outcome, a.ended_as, a.started_at, a.duration_ms
	FROM mailhook.attempts AS a JOIN mailhook.events AS e ON e.inserted_at = a.event_inserted_at AND e.id = a.event_id
	WHERE a.started_at > now() - interval '2 days'
	UNION ALL SELECT g.* FROM host.aged_attempts AS g;`

// ageSQL moves the events of today that have ended, with their attempts, $1 days back.
const ageSQL = `
	WITH moved AS (
		DELETE FROM mailhook.events AS e
		WHERE e.inserted_at > now() - interval '2 days' AND e.inserted_at < now() - interval '10 seconds'
			AND NOT EXISTS (SELECT FROM mailhook.deliveries AS d WHERE d.event_inserted_at = e.inserted_at AND d.event_id = e.id)
		RETURNING e.*
	),
	tried AS (
		DELETE FROM mailhook.attempts AS a USING moved AS m
		WHERE a.event_inserted_at = m.inserted_at AND a.event_id = m.id AND a.started_at > now() - interval '2 days'
		RETURNING a.*, (m.data ->> 'k')::bigint AS k
	),
	kept_events AS (INSERT INTO host.aged_events SELECT (m.data ->> 'k')::bigint FROM moved AS m),
	kept_attempts AS (
		INSERT INTO host.aged_attempts
		SELECT t.subscription_id, t.k, t.delivery_id, t.number, t.outcome, t.ended_as, t.started_at, t.duration_ms FROM tried AS t
	),
	old_attempts AS (
		INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
			number, duration_ms, status_code, outcome, response_excerpt, ended_as, ended_reason, delivery_created_at)
		SELECT t.started_at - s.by, t.id, t.delivery_id, t.subscription_id, t.account_id, t.event_inserted_at - s.by, t.event_id, t.event_type,
			t.number, t.duration_ms, t.status_code, t.outcome, t.response_excerpt, t.ended_as, t.ended_reason, t.delivery_created_at - s.by
		FROM tried AS t CROSS JOIN (VALUES (make_interval(days => $1::int))) AS s (by)
	)
	INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, message_id, campaign_id,
		sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, duplicate_of, data)
	SELECT m.inserted_at - s.by, m.id, m.account_id, m.event_type, m.occurred_at - s.by, m.dispatched_at - s.by, m.recipient, m.message_id, m.campaign_id,
		m.sending_domain, m.sending_node, m.bridge, m.dedicated_ip, m.dedupe_key, m.duplicate_of, m.data
	FROM moved AS m CROSS JOIN (VALUES (make_interval(days => $1::int))) AS s (by)`

// age lets what has ended become so many days old: more than the retention (14 days), so that the next run of it, which is
// within ten minutes, counts and drops it. It may have begun yesterday.
func (f *field) age(ctx context.Context, days int) error {
	for _, parent := range []string{"events", "attempts"} {
		for _, ago := range []int{days, days + 1} {
			if err := f.exec(ctx, "SELECT mailhook.create_partition($1, (statement_timestamp() AT TIME ZONE 'UTC')::date - $2::int)", parent, ago); err != nil {
				return err
			}
		}
	}
	return f.exec(ctx, ageSQL, days)
}

// checkAged asks that all days but the last few are gone, and that each event is counted once or still there.
func (f *field) checkAged(ctx context.Context, mustDrop bool) error {
	err := eventually(ctx, time.Minute, "detached days are counted", func() (bool, error) {
		n, err := f.count(ctx, "SELECT count(*) FROM mailhook.detached_days")
		return n == 0, err
	})
	aged, agedErr := f.count(ctx, "SELECT count(*) FROM host.aged_events")
	counted, countedErr := f.count(ctx, "SELECT coalesce(sum(n), 0)::bigint FROM mailhook.event_counts")
	left, leftErr := f.count(ctx, "SELECT count(*) FROM mailhook.events WHERE inserted_at < now() - interval '2 days'")
	attempts, attemptsErr := f.count(ctx, "SELECT count(*) FROM mailhook.attempts WHERE started_at < now() - interval '2 days'")
	if err := errors.Join(err, agedErr, countedErr, leftErr, attemptsErr); err != nil {
		return fmt.Errorf("what became of aged events: %w", err)
	}
	f.note("%d events became old: %d counted and dropped, %d are still there, with %d attempts", aged, counted, left, attempts)
	if counted+left != aged {
		f.problem("%d events became old, %d are counted and %d are still there", aged, counted, left)
	}
	if mustDrop && counted < aged/2 {
		f.problem("retention has counted and dropped %d of %d events", counted, aged)
	}
	return nil
}
