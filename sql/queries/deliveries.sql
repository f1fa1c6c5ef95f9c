-- ScanUnfinishedDeliveries answers the unfinished deliveries before @before_id that pass the filters, newest first, out
-- of the newest @scan_rows there. When that bound was reached, the last row scanned comes too, marked is_horizon: what
-- lies below has not been looked at.
-- name: ScanUnfinishedDeliveries :many
WITH scanned AS MATERIALIZED (
  SELECT d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type
  FROM mailhook.deliveries AS d
  WHERE d.id < @before_id::uuid AND d.id >= @from_id::uuid
  ORDER BY d.id DESC
  LIMIT @scan_rows::int
),
marked AS (
  SELECT x.id,
    (row_number() OVER (ORDER BY x.id DESC) = @scan_rows::int)::boolean AS is_horizon,
    ((sqlc.narg('account_id')::text IS NULL OR x.account_id = sqlc.narg('account_id')::text)
      AND (sqlc.narg('subscription_id')::uuid IS NULL OR x.subscription_id = sqlc.narg('subscription_id')::uuid)
      AND (sqlc.narg('event_type')::text IS NULL OR sqlc.narg('event_type')::text = ANY (mailhook.event_type_ancestors(x.event_type)))
      AND (sqlc.narg('recipient')::text IS NULL OR EXISTS (
        SELECT FROM mailhook.events AS e
        WHERE e.inserted_at = x.event_inserted_at AND e.id = x.event_id AND e.recipient = sqlc.narg('recipient')::text))
      AND (sqlc.narg('status')::text IS NULL OR EXISTS (
        SELECT FROM mailhook.unfinished_deliveries AS v WHERE v.id = x.id AND v.status = sqlc.narg('status')::text))
    )::boolean AS matches
  FROM scanned AS x
),
page AS (
  SELECT m.id, m.is_horizon, m.matches
  FROM marked AS m
  WHERE m.matches OR m.is_horizon
  ORDER BY m.id DESC
  LIMIT @page_rows::int
)
SELECT sqlc.embed(u), p.is_horizon, p.matches
FROM page AS p
JOIN mailhook.unfinished_deliveries AS u ON u.id = p.id
ORDER BY u.id DESC;

-- ScanEndedDeliveries answers the attempts that ended a delivery, before the key given and passing the filters, newest
-- first, out of the newest @scan_rows attempts there, with is_horizon as in ScanUnfinishedDeliveries. Those of a
-- subscription or of an account are in the order of their ids, so in that of their ends; without either there is only
-- the primary key, so the order is that of started_at. The plans are custom: but one branch is left of the three.
-- name: ScanEndedDeliveries :many
WITH scanned AS MATERIALIZED (
  (
    SELECT timestamptz 'epoch' AS key_at, a.started_at, a.id, a.account_id, a.event_inserted_at, a.event_id, a.event_type, a.ended_as
    FROM mailhook.attempts AS a
    WHERE a.subscription_id = sqlc.narg('subscription_id')::uuid
      AND (sqlc.narg('account_id')::text IS NULL OR a.account_id = sqlc.narg('account_id')::text)
      AND a.id < @before_id::uuid AND a.id >= @from_id::uuid
      AND a.started_at >= @from_at::timestamptz AND a.started_at < @until_at::timestamptz
    ORDER BY a.id DESC
    LIMIT @scan_rows::int
  )
  UNION ALL
  (
    SELECT timestamptz 'epoch', a.started_at, a.id, a.account_id, a.event_inserted_at, a.event_id, a.event_type, a.ended_as
    FROM mailhook.attempts AS a
    WHERE sqlc.narg('subscription_id')::uuid IS NULL
      AND a.account_id = sqlc.narg('account_id')::text
      AND a.id < @before_id::uuid AND a.id >= @from_id::uuid
      AND a.started_at >= @from_at::timestamptz AND a.started_at < @until_at::timestamptz
    ORDER BY a.id DESC
    LIMIT @scan_rows::int
  )
  UNION ALL
  (
    SELECT a.started_at, a.started_at, a.id, a.account_id, a.event_inserted_at, a.event_id, a.event_type, a.ended_as
    FROM mailhook.attempts AS a
    WHERE sqlc.narg('subscription_id')::uuid IS NULL
      AND sqlc.narg('account_id')::text IS NULL
      AND (a.started_at, a.id) < (@before_at::timestamptz, @before_id::uuid)
      AND a.started_at >= @from_at::timestamptz AND a.started_at < @until_at::timestamptz
    ORDER BY a.started_at DESC, a.id DESC
    LIMIT @scan_rows::int
  )
),
marked AS (
  SELECT x.key_at, x.started_at, x.id,
    (row_number() OVER (ORDER BY x.key_at DESC, x.id DESC) = @scan_rows::int)::boolean AS is_horizon,
    (x.ended_as IS NOT NULL
      AND (sqlc.narg('status')::text IS NULL OR x.ended_as = sqlc.narg('status')::text)
      AND (sqlc.narg('event_type')::text IS NULL OR sqlc.narg('event_type')::text = ANY (mailhook.event_type_ancestors(x.event_type)))
      AND (sqlc.narg('recipient')::text IS NULL OR EXISTS (
        SELECT FROM mailhook.events AS e
        WHERE e.inserted_at = x.event_inserted_at AND e.id = x.event_id AND e.recipient = sqlc.narg('recipient')::text))
    )::boolean AS matches
  FROM scanned AS x
),
page AS (
  SELECT m.key_at, m.started_at, m.id, m.is_horizon, m.matches
  FROM marked AS m
  WHERE m.matches OR m.is_horizon
  ORDER BY m.key_at DESC, m.id DESC
  LIMIT @page_rows::int
)
SELECT sqlc.embed(a), p.is_horizon, p.matches
FROM page AS p
JOIN mailhook.attempts AS a ON a.started_at = p.started_at AND a.id = p.id
ORDER BY p.key_at DESC, p.id DESC;

-- GetUnfinishedDelivery finds an unfinished delivery of one account or, without @account_id, of any.
-- name: GetUnfinishedDelivery :one
SELECT u.*
FROM mailhook.unfinished_deliveries AS u
WHERE u.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR u.account_id = sqlc.narg('account_id')::text);

-- ListAttempts answers the rows of a delivery in attempts, oldest first; those without outcome were no request.
-- name: ListAttempts :many
SELECT a.*
FROM mailhook.attempts AS a
WHERE a.delivery_id = @delivery_id
  AND (sqlc.narg('account_id')::text IS NULL OR a.account_id = sqlc.narg('account_id')::text)
ORDER BY a.id
LIMIT @max_rows;

-- ListUnfinishedOfEvent answers the unfinished deliveries of an event, to one subscription or to all.
-- name: ListUnfinishedOfEvent :many
SELECT u.*
FROM mailhook.unfinished_deliveries AS u
WHERE u.event_inserted_at = @event_inserted_at
  AND u.event_id = @event_id
  AND (sqlc.narg('subscription_id')::uuid IS NULL OR u.subscription_id = sqlc.narg('subscription_id')::uuid)
ORDER BY u.id DESC
LIMIT @max_rows;

-- ListEndsOfEvent answers the attempts that ended deliveries of an event, to one subscription or to all. attempts has no
-- index by event: the exhausted are found by their dead letters, the others among the first @scan_rows attempts of the
-- subscription or account from @from_id on. When that bound was reached, the last row scanned comes too, marked
-- is_horizon.
-- name: ListEndsOfEvent :many
WITH scanned AS MATERIALIZED (
  (
    SELECT a.started_at, a.id, a.event_inserted_at, a.event_id, a.ended_as
    FROM mailhook.attempts AS a
    WHERE a.subscription_id = sqlc.narg('subscription_id')::uuid AND a.id >= @from_id::uuid
    ORDER BY a.id
    LIMIT @scan_rows::int
  )
  UNION ALL
  (
    SELECT a.started_at, a.id, a.event_inserted_at, a.event_id, a.ended_as
    FROM mailhook.attempts AS a
    WHERE sqlc.narg('subscription_id')::uuid IS NULL AND a.account_id = @account_id::text AND a.id >= @from_id::uuid
    ORDER BY a.id
    LIMIT @scan_rows::int
  )
),
marked AS (
  SELECT x.started_at, x.id,
    row_number() OVER (ORDER BY x.id) = @scan_rows::int AS is_horizon,
    x.ended_as IS NOT NULL AND x.event_inserted_at = @event_inserted_at::timestamptz AND x.event_id = @event_id::bigint AS matches
  FROM scanned AS x
),
found AS (
  SELECT m.started_at, m.id, m.is_horizon, m.matches
  FROM marked AS m
  WHERE m.matches OR m.is_horizon
  UNION ALL
  SELECT a.started_at, a.id, false, true
  FROM mailhook.dead_letters AS l
  JOIN mailhook.attempts AS a ON a.delivery_id = l.id AND a.ended_as IS NOT NULL
  WHERE l.event_inserted_at = @event_inserted_at::timestamptz
    AND l.event_id = @event_id::bigint
    AND (sqlc.narg('subscription_id')::uuid IS NULL OR l.subscription_id = sqlc.narg('subscription_id')::uuid)
    AND NOT EXISTS (SELECT FROM marked AS m WHERE m.matches AND m.id = a.id)
)
SELECT sqlc.embed(a), f.is_horizon::boolean AS is_horizon, f.matches::boolean AS matches
FROM found AS f
JOIN mailhook.attempts AS a ON a.started_at = f.started_at AND a.id = f.id
ORDER BY a.id DESC;

-- LockDelivery makes retries of one delivery wait for each other until commit. An advisory lock, as an ended delivery
-- has no row to lock.
-- name: LockDelivery :exec
SELECT pg_advisory_xact_lock(hashtextextended((@id::uuid)::text, 1));

-- HurryDelivery makes a waiting delivery due now, without the others of its batch; nothing for one that is under way,
-- has ended, or is blocked.
-- name: HurryDelivery :execrows
UPDATE mailhook.deliveries AS d
SET next_attempt_at = statement_timestamp(), batch_id = CASE WHEN d.batch_id IS NOT NULL THEN d.id END
WHERE d.id = @id AND d.lease_id IS NULL AND d.next_attempt_at < 'infinity';

-- IsPairUnfinished says whether an event has an unfinished delivery to a subscription.
-- name: IsPairUnfinished :one
SELECT EXISTS (
  SELECT FROM mailhook.deliveries AS d
  WHERE d.event_inserted_at = @event_inserted_at AND d.event_id = @event_id AND d.subscription_id = @subscription_id
)::boolean;

-- GetRetryTarget answers whether a delivery could be made for an event and a subscription: the state of the
-- subscription, empty when it is gone, and whether the event is still there, which it then is until commit.
-- name: GetRetryTarget :one
SELECT
  coalesce((SELECT s.status FROM mailhook.subscriptions AS s WHERE s.id = @subscription_id AND s.deleted_at IS NULL), '')::text AS subscription_status,
  mailhook.keep_event(@event_inserted_at::timestamptz, @event_id::bigint)::boolean AS event_exists;

-- InsertRetry makes a new delivery of an event, due now, or one that is blocked, where it goes in order: Unblock it after
-- the commit. order_key 0: in no order.
-- name: InsertRetry :one
INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, order_key)
SELECT @subscription_id, @account_id, @event_inserted_at, @event_id, @event_type,
  CASE WHEN k.order_key IS NULL THEN statement_timestamp() ELSE 'infinity' END, statement_timestamp(), k.order_key
FROM (
  SELECT mailhook.order_key(
    (SELECT s.ordering FROM mailhook.subscriptions AS s WHERE s.id = @subscription_id),
    (SELECT e.message_id FROM mailhook.events AS e WHERE e.inserted_at = @event_inserted_at AND e.id = @event_id),
    (SELECT e.recipient FROM mailhook.events AS e WHERE e.inserted_at = @event_inserted_at AND e.id = @event_id)) AS order_key
) AS k
RETURNING id, coalesce(order_key, 0)::bigint AS order_key;

-- DeleteDeadLetter removes a dead letter: a new delivery stands for it.
-- name: DeleteDeadLetter :exec
DELETE FROM mailhook.dead_letters WHERE id = @id;
