-- ScanReplay counts, among the newest @max_rows events of an account before the key given, or among those of a subscription's dead
-- letters, those that a replay would deliver once more: what it matches today, but for the pairs that are still unfinished. The
-- conditions are those of AdvanceReplay. It answers the key of the last event looked at.
-- name: ScanReplay :one
WITH scanned AS MATERIALIZED (
  SELECT e.inserted_at, e.id,
    e.dispatched_at >= @since::timestamptz AND e.dispatched_at < @until::timestamptz
      AND e.duplicate_of IS NULL
      AND e.erased_at IS NULL
      AND mailhook.event_type_ancestors(e.event_type) && s.event_types
      AND (sqlc.narg('event_types')::text[] IS NULL OR mailhook.event_type_ancestors(e.event_type) && sqlc.narg('event_types')::text[])
      AND mailhook.passes_filters(e.sending_domain, e.sending_node, e.bridge, mailhook.address_of(e.dedicated_ip),
        mailhook.fields_of(e.event_type, e.recipient, e.message_id, e.campaign_id, e.sending_domain, e.sending_node, e.bridge, e.dedicated_ip, e.data),
        s.filter_sending_domain, s.filter_sending_node, s.filter_bridge, s.filter_dedicated_ip, s.filter)
      AND NOT mailhook.is_about(e.event_type, e.data, s.id)
      AND (SELECT d.id FROM mailhook.deliveries AS d
        WHERE d.event_inserted_at = e.inserted_at AND d.event_id = e.id AND d.subscription_id = s.id LIMIT 1) IS NULL AS is_match
  FROM mailhook.subscriptions AS s
  CROSS JOIN LATERAL (
    (
      SELECT x.inserted_at, x.id, x.account_id, x.event_type, x.recipient, x.message_id, x.campaign_id, x.sending_domain, x.sending_node,
        x.bridge, x.dedicated_ip, x.data, x.duplicate_of, x.dispatched_at, x.erased_at
      FROM mailhook.events AS x
      WHERE @source::text = 'all'
        AND x.account_id = s.account_id
        AND x.inserted_at < @until::timestamptz
        AND (x.inserted_at, x.id) < (@before_at::timestamptz, @before_id::bigint)
      ORDER BY x.inserted_at DESC, x.id DESC
      LIMIT @max_rows::int
    )
    UNION ALL
    (
      SELECT pair.event_inserted_at, pair.event_id, x.account_id, x.event_type, x.recipient, x.message_id, x.campaign_id, x.sending_domain, x.sending_node,
        x.bridge, x.dedicated_ip, x.data, x.duplicate_of, x.dispatched_at, x.erased_at
      FROM (
        SELECT DISTINCT l.event_inserted_at, l.event_id
        FROM mailhook.dead_letters AS l
        WHERE @source::text = 'exhausted'
          AND l.subscription_id = s.id
          AND l.event_inserted_at < @until::timestamptz
          AND (l.event_inserted_at, l.event_id) < (@before_at::timestamptz, @before_id::bigint)
        ORDER BY l.event_inserted_at DESC, l.event_id DESC
        LIMIT @max_rows::int
      ) AS pair
      LEFT JOIN LATERAL (
        SELECT y.* FROM mailhook.events AS y WHERE y.inserted_at = pair.event_inserted_at AND y.id = pair.event_id OFFSET 0
      ) AS x ON true
    )
  ) AS e
  WHERE s.id = @subscription_id::uuid
)
SELECT count(*) FILTER (WHERE c.is_match)::bigint AS matched, count(*)::bigint AS scanned,
  coalesce(min(c.inserted_at), @before_at::timestamptz)::timestamptz AS before_at,
  coalesce((array_agg(c.id ORDER BY c.inserted_at, c.id))[1], 0)::bigint AS before_id
FROM scanned AS c;

-- GetEventsKeptSince answers the first day (UTC) of which events are kept.
-- name: GetEventsKeptSince :one
SELECT coalesce(min(to_date(right(c.relname, 8), 'YYYYMMDD')), current_date)::timestamptz AS kept_since
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'mailhook.events'::regclass
  AND c.relname ~ '_[0-9]{8}$';

-- GetReplayEnd answers where a replay ends: at the time given, but never in the future.
-- name: GetReplayEnd :one
SELECT least(sqlc.narg('until')::timestamptz, statement_timestamp())::timestamptz AS until;

-- CreateReplay starts a replay, which the workers do, or notes one that is done.
-- name: CreateReplay :one
INSERT INTO mailhook.replays AS r (subscription_id, account_id, since, until, event_types, source, rate_per_second, state, matched, matched_at_least, done)
VALUES (@subscription_id, @account_id, @since, @until, sqlc.narg('event_types')::text[], @source, @rate_per_second, @state, @matched, @matched_at_least, @done)
RETURNING r.id, r.subscription_id, r.state, r.matched, r.matched_at_least, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id;

-- GetReplay finds a replay of one account or, without @account_id, of any.
-- name: GetReplay :one
SELECT r.id, r.subscription_id, r.state, r.matched, r.matched_at_least, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id
FROM mailhook.replays AS r
WHERE r.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text);

-- CancelReplay stops a replay that runs, and leaves another as it is. What it has released is delivered.
-- name: CancelReplay :one
UPDATE mailhook.replays AS r
SET state = CASE WHEN r.state = 'running' THEN 'cancelled' ELSE r.state END
WHERE r.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text)
RETURNING r.id, r.subscription_id, r.state, r.matched, r.matched_at_least, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id;

-- ListReplays answers the replays of one account, or of all, of one subscription, or of all, before @before_id, newest first.
-- name: ListReplays :many
SELECT r.id, r.subscription_id, r.state, r.matched, r.matched_at_least, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id
FROM mailhook.replays AS r
WHERE r.id < @before_id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text)
  AND (sqlc.narg('subscription_id')::uuid IS NULL OR r.subscription_id = sqlc.narg('subscription_id')::uuid)
ORDER BY r.id DESC
LIMIT @max_rows;

-- CountRunningReplays counts those of an account that have not ended.
-- name: CountRunningReplays :one
SELECT count(*) FROM mailhook.replays AS r WHERE r.state = 'running' AND r.account_id = @account_id::text;

-- LockRepeats makes the replays and retries of a subscription wait for each other until commit: each looks whether the pair of event and
-- subscription is unfinished, and makes a delivery where it is not.
-- name: LockRepeats :exec
SELECT pg_advisory_xact_lock(hashtextextended((@subscription_id::uuid)::text, 3));

-- ReplayEvent makes a delivery of a logged event for a replay, in the place of the dead letters of the pair: due now, or blocked, where it
-- goes in order: Unblock it after the commit. order_key 0: in no order. No row where a delivery of it is unfinished. The caller has
-- locked the event (keep_event), and before it the subscription's repeats (LockRepeats).
-- name: ReplayEvent :one
WITH inserted AS (
  INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, replay_id, order_key)
  SELECT @subscription_id::uuid, @account_id::text, @event_inserted_at::timestamptz, @event_id::bigint, @event_type::text,
    CASE WHEN k.order_key IS NULL THEN statement_timestamp() ELSE 'infinity' END, statement_timestamp(), @replay_id::uuid, k.order_key
  FROM (
    SELECT mailhook.order_key(
      (SELECT s.ordering FROM mailhook.subscriptions AS s WHERE s.id = @subscription_id::uuid), sqlc.narg('message_id')::text, sqlc.narg('recipient')::text) AS order_key
  ) AS k
  WHERE (SELECT d.id FROM mailhook.deliveries AS d
    WHERE d.event_inserted_at = @event_inserted_at::timestamptz AND d.event_id = @event_id::bigint AND d.subscription_id = @subscription_id::uuid
    LIMIT 1) IS NULL
  RETURNING id, order_key
),
removed AS (
  DELETE FROM mailhook.dead_letters AS l
  WHERE l.event_inserted_at = @event_inserted_at::timestamptz AND l.event_id = @event_id::bigint AND l.subscription_id = @subscription_id::uuid
    AND (SELECT count(*) FROM inserted) > 0
)
SELECT coalesce(i.order_key, 0)::bigint AS order_key FROM inserted AS i;

-- KeepEvent is mailhook.keep_event.
-- name: KeepEvent :one
SELECT mailhook.keep_event(@inserted_at::timestamptz, @id::bigint)::boolean;
