-- Deliveries of one order_key go one after another: the head is due, put off or under way, the others are blocked (at infinity). The
-- unique index on heads makes sure that there is one, whoever makes it; the statements here, that there is one again when it
-- has ended. By age they are asked for with attempt >= 0, for the index.

-- Unblock makes the first blocked delivery of each key its head, where the key has none. It belongs after the commit of what ended
-- a head, and of what inserted a blocked delivery: of two such that run side by side the one that commits later sees the
-- other's rows here. Side by side with others of its kind it picks the same delivery, and only one of them changes it; a unique violation says that
-- another one became the head in between: run it again. A delivery due since long, which claims find by a walk, is counted
-- as old: it keeps the time of its dispatch, so that it ages and is released as what it is.
-- name: Unblock :one
WITH asked AS MATERIALIZED (
  SELECT DISTINCT k.subscription_id, k.order_key
  FROM (SELECT unnest(@subscription_ids::uuid[]) AS subscription_id, unnest(@order_keys::bigint[]) AS order_key) AS k
),
first AS MATERIALIZED (
  SELECT a.subscription_id, a.order_key, n.id
  FROM asked AS a
  CROSS JOIN LATERAL (
    SELECT d.id
    FROM mailhook.deliveries AS d
    WHERE d.subscription_id = a.subscription_id AND d.order_key = a.order_key AND d.next_attempt_at = 'infinity'
    ORDER BY d.event_id
    LIMIT 1
  ) AS n
),
unblocked AS (
  UPDATE mailhook.deliveries AS d
  SET next_attempt_at = CASE WHEN d.created_at > statement_timestamp() - interval '1 minute' THEN statement_timestamp() ELSE d.created_at END
  WHERE d.id = ANY (ARRAY(
      SELECT f.id
      FROM first AS f
      WHERE (
        SELECT h.id
        FROM mailhook.deliveries AS h
        WHERE h.subscription_id = f.subscription_id AND h.order_key = f.order_key AND h.next_attempt_at < 'infinity'
        LIMIT 1) IS NULL))
    AND d.next_attempt_at = 'infinity'
  RETURNING d.next_attempt_at
)
SELECT count(*) AS unblocked, count(*) FILTER (WHERE u.next_attempt_at < statement_timestamp()) AS old
FROM unblocked AS u;

-- ListBlockedKeys walks the keys that have blocked deliveries, at most @max_keys of them after the one given, and says of each whether
-- it has a head. For the sweep: a worker may die between a commit and its Unblock, and what ends deliveries
-- beside the flow leaves their keys to it.
-- name: ListBlockedKeys :many
WITH RECURSIVE walked AS (
  SELECT n.subscription_id, n.order_key, 1 AS step
  FROM (
    SELECT d.subscription_id, d.order_key
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity'
      AND (d.subscription_id, d.order_key) > (@after_subscription_id::uuid, @after_order_key::bigint)
    ORDER BY d.subscription_id, d.order_key
    LIMIT 1
  ) AS n
  UNION ALL
  SELECT n.subscription_id, n.order_key, w.step + 1
  FROM walked AS w
  CROSS JOIN LATERAL (
    SELECT d.subscription_id, d.order_key
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity'
      AND (d.subscription_id, d.order_key) > (w.subscription_id, w.order_key)
    ORDER BY d.subscription_id, d.order_key
    LIMIT 1
  ) AS n
  WHERE w.step < @max_keys::int
)
SELECT w.subscription_id::uuid AS subscription_id, w.order_key::bigint AS order_key,
  ((
    SELECT h.id
    FROM mailhook.deliveries AS h
    WHERE h.subscription_id = w.subscription_id AND h.order_key = w.order_key AND h.next_attempt_at < 'infinity'
    LIMIT 1) IS NOT NULL)::boolean AS has_head
FROM walked AS w
ORDER BY w.subscription_id, w.order_key;

-- FreeUnordered takes the key from blocked deliveries of subscriptions that have no order any more, at most @max_rows a
-- call: they are due.
-- name: FreeUnordered :execrows
WITH RECURSIVE walked AS (
  SELECT n.subscription_id
  FROM (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity' AND d.subscription_id > '00000000-0000-0000-0000-000000000000'
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS n
  UNION ALL
  SELECT n.subscription_id
  FROM walked AS w
  CROSS JOIN LATERAL (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity' AND d.subscription_id > w.subscription_id
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS n
),
locked AS MATERIALIZED (
  SELECT b.id
  FROM walked AS w
  CROSS JOIN LATERAL (
    SELECT d.id
    FROM mailhook.deliveries AS d
    WHERE d.attempt >= 0 AND d.next_attempt_at = 'infinity'
      AND (d.subscription_id, d.created_at) > (w.subscription_id, '-infinity')
      AND (d.subscription_id, d.created_at) <= (w.subscription_id, 'infinity')
    ORDER BY d.subscription_id, d.created_at
    LIMIT @max_rows::int
    FOR UPDATE SKIP LOCKED
  ) AS b
  WHERE (SELECT s.ordering FROM mailhook.subscriptions AS s WHERE s.id = w.subscription_id) = 'none'
  LIMIT @max_rows::int
)
UPDATE mailhook.deliveries AS d
SET order_key = NULL, next_attempt_at = d.created_at
WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked AS l));

-- ExpireBlocked ends deliveries that were blocked for @max_age since their dispatch, as ExpireHeld does what was held: dead letters with the
-- reason expired, at most @max_rows a call. Those behind them are for the sweep.
-- name: ExpireBlocked :execrows
WITH RECURSIVE walked AS (
  SELECT n.subscription_id
  FROM (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity' AND d.subscription_id > '00000000-0000-0000-0000-000000000000'
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS n
  UNION ALL
  SELECT n.subscription_id
  FROM walked AS w
  CROSS JOIN LATERAL (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.order_key IS NOT NULL AND d.next_attempt_at = 'infinity' AND d.subscription_id > w.subscription_id
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS n
),
locked AS MATERIALIZED (
  SELECT b.id
  FROM walked AS w
  CROSS JOIN LATERAL (
    SELECT d.id
    FROM mailhook.deliveries AS d
    WHERE d.attempt >= 0 AND d.next_attempt_at = 'infinity'
      AND (d.subscription_id, d.created_at) > (w.subscription_id, '-infinity')
      AND (d.subscription_id, d.created_at) <= (w.subscription_id, statement_timestamp() - @max_age::interval)
    ORDER BY d.subscription_id, d.created_at
    LIMIT @max_rows::int
    FOR UPDATE SKIP LOCKED
  ) AS b
  LIMIT @max_rows::int
),
ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
  RETURNING d.*
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, ended_as, ended_reason, delivery_created_at)
  SELECT statement_timestamp(), mailhook.uuid7(statement_timestamp()), e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type,
    e.attempt, 'exhausted', 'expired', e.created_at
  FROM ended AS e
)
INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, last_outcome, reason, created_at, ended_at)
SELECT e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type, e.attempt, e.last_outcome, 'expired', e.created_at, statement_timestamp()
FROM ended AS e;
