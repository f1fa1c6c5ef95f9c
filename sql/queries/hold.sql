-- Rows of deliveries are compared by both columns of their index throughout: with an equality the planner may take the index
-- by time alone, which leads past the rows of all other subscriptions.

-- ReleaseHeld lets what waits of a subscription go out at the bounded rate from now on: it is held no longer.
-- name: ReleaseHeld :exec
INSERT INTO mailhook.subscription_health AS h (subscription_id, release_before, released_at)
SELECT s.id, clock_timestamp(), clock_timestamp()
FROM mailhook.subscriptions AS s
WHERE s.id = @subscription_id
  AND (
    SELECT d.id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND (d.subscription_id, d.next_attempt_at) > (s.id, '-infinity')
      AND (d.subscription_id, d.next_attempt_at) <= (s.id, 'infinity')
    ORDER BY d.subscription_id, d.next_attempt_at
    LIMIT 1) IS NOT NULL
ON CONFLICT (subscription_id) DO UPDATE
SET release_before = excluded.release_before, released_at = excluded.released_at;

-- ReleaseHeldOfAccount is ReleaseHeld for all subscriptions of an account.
-- name: ReleaseHeldOfAccount :exec
INSERT INTO mailhook.subscription_health AS h (subscription_id, release_before, released_at)
SELECT s.id, clock_timestamp(), clock_timestamp()
FROM mailhook.subscriptions AS s
WHERE s.account_id = @account_id
  AND s.deleted_at IS NULL
  AND (
    SELECT d.id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND (d.subscription_id, d.next_attempt_at) > (s.id, '-infinity')
      AND (d.subscription_id, d.next_attempt_at) <= (s.id, 'infinity')
    ORDER BY d.subscription_id, d.next_attempt_at
    LIMIT 1) IS NOT NULL
ORDER BY s.id
ON CONFLICT (subscription_id) DO UPDATE
SET release_before = excluded.release_before, released_at = excluded.released_at;

-- ExpireHeld ends deliveries that were held too long (@max_age), and the oldest where more than @max_held are: dead letters
-- with the reason expired or overflow, at most @max_rows a call.
-- name: ExpireHeld :execrows
WITH held AS (
  SELECT s.id FROM mailhook.subscriptions AS s
  WHERE s.deleted_at IS NULL
    AND (s.status IN ('paused', 'suspended')
      OR EXISTS (SELECT FROM mailhook.accounts AS a WHERE a.id = s.account_id AND a.status = 'suspended'))
  UNION
  SELECT h.subscription_id FROM mailhook.subscription_health AS h WHERE h.opened_at IS NOT NULL
),
-- What was due before the newest @max_held overflows: by number, as what one statement dispatched is due at one time.
bounded AS (
  SELECT h.id, overflow.due_by, greatest(overflow.n, (
    SELECT count(*) FROM (
      SELECT FROM mailhook.deliveries AS d
      WHERE d.lease_id IS NULL
        AND (d.subscription_id, d.next_attempt_at) > (h.id, '-infinity')
        AND (d.subscription_id, d.next_attempt_at) <= (h.id, statement_timestamp() - @max_age::interval)
      LIMIT @max_rows::int
    ) AS aged)) AS n
  FROM held AS h
  CROSS JOIN LATERAL (
    SELECT max(x.next_attempt_at) AS due_by, count(*) AS n
    FROM (
      SELECT d.next_attempt_at
      FROM mailhook.deliveries AS d
      WHERE d.lease_id IS NULL
        AND (d.subscription_id, d.next_attempt_at) > (h.id, '-infinity')
        AND (d.subscription_id, d.next_attempt_at) <= (h.id, 'infinity')
      ORDER BY d.subscription_id DESC, d.next_attempt_at DESC
      OFFSET @max_held::int
      LIMIT @max_rows::int
    ) AS x
  ) AS overflow
),
locked AS MATERIALIZED (
  SELECT w.id, w.next_attempt_at
  FROM bounded AS b
  CROSS JOIN LATERAL (
    SELECT d.id, d.next_attempt_at FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND (d.subscription_id, d.next_attempt_at) > (b.id, '-infinity')
      AND (d.subscription_id, d.next_attempt_at) <= (b.id, greatest(statement_timestamp() - @max_age::interval, b.due_by))
    ORDER BY d.subscription_id, d.next_attempt_at
    LIMIT b.n
    FOR UPDATE SKIP LOCKED
  ) AS w
  LIMIT @max_rows::int
),
ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
  RETURNING d.*
),
buried AS MATERIALIZED (
  SELECT e.*, CASE WHEN l.next_attempt_at <= statement_timestamp() - @max_age::interval THEN 'expired' ELSE 'overflow' END AS reason
  FROM ended AS e
  JOIN locked AS l ON l.id = e.id
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, ended_as, ended_reason, delivery_created_at)
  SELECT statement_timestamp(), mailhook.uuid7(statement_timestamp()), b.id, b.subscription_id, b.account_id, b.event_inserted_at, b.event_id, b.event_type,
    b.attempt, 'exhausted', b.reason, b.created_at
  FROM buried AS b
)
INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, last_outcome, reason, created_at, ended_at)
SELECT b.id, b.subscription_id, b.account_id, b.event_inserted_at, b.event_id, b.event_type, b.attempt, b.last_outcome, b.reason, b.created_at, statement_timestamp()
FROM buried AS b;

-- EndReleases forgets the releases through which nothing is left to go, blocked ones counted.
-- name: EndReleases :execrows
UPDATE mailhook.subscription_health AS h
SET release_before = NULL, released_at = NULL
WHERE h.subscription_id = ANY (ARRAY(
  SELECT r.subscription_id
  FROM mailhook.subscription_health AS r
  WHERE r.release_before IS NOT NULL
    AND (
      SELECT d.id
      FROM mailhook.deliveries AS d
      WHERE d.lease_id IS NULL
        AND (d.subscription_id, d.next_attempt_at) > (r.subscription_id, '-infinity')
        AND (d.subscription_id, d.next_attempt_at) <= (r.subscription_id, r.release_before)
      ORDER BY d.subscription_id, d.next_attempt_at
      LIMIT 1) IS NULL
    AND (
      SELECT d.id
      FROM mailhook.deliveries AS d
      WHERE d.attempt >= 0 AND d.next_attempt_at = 'infinity'
        AND (d.subscription_id, d.created_at) > (r.subscription_id, '-infinity')
        AND (d.subscription_id, d.created_at) <= (r.subscription_id, r.release_before)
      ORDER BY d.subscription_id, d.created_at
      LIMIT 1) IS NULL
  ORDER BY r.subscription_id
  FOR UPDATE SKIP LOCKED));
