-- CancelDeliveries ends waiting deliveries of inactive and deleted subscriptions, at most @max_rows a call, and appends
-- a row without a request for each. Those in flight finish.
-- name: CancelDeliveries :execrows
WITH gone AS (
  SELECT s.id, CASE WHEN s.deleted_at IS NOT NULL THEN 'deleted' ELSE 'deactivated' END AS reason
  FROM mailhook.subscriptions AS s
  WHERE (s.status = 'inactive' OR s.deleted_at IS NOT NULL)
    AND s.updated_at >= @changed_since::timestamptz
),
locked AS MATERIALIZED (
  SELECT w.id, g.reason
  FROM gone AS g
  CROSS JOIN LATERAL (
    SELECT d.id FROM mailhook.deliveries AS d
    WHERE d.subscription_id = g.id AND d.lease_id IS NULL
    LIMIT @max_rows::int
    FOR UPDATE SKIP LOCKED
  ) AS w
  LIMIT @max_rows::int
),
ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
  RETURNING d.*
)
INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
  number, ended_as, ended_reason, delivery_created_at)
SELECT statement_timestamp(), mailhook.uuid7(statement_timestamp()), e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type,
  e.attempt, 'cancelled', l.reason, e.created_at
FROM ended AS e
JOIN locked AS l ON l.id = e.id;

-- CancelDeadLetters removes the dead letters of deleted subscriptions: they can no longer be replayed. Their end in
-- attempts becomes cancelled: the one change that an appended row ever sees, so that a delivery still ends once.
-- name: CancelDeadLetters :execrows
WITH removed AS (
  DELETE FROM mailhook.dead_letters AS l
  WHERE l.id = ANY (ARRAY(
    SELECT x.id
    FROM mailhook.subscriptions AS s
    JOIN mailhook.dead_letters AS x ON x.subscription_id = s.id
    WHERE s.deleted_at IS NOT NULL
      AND s.updated_at >= @changed_since::timestamptz
    LIMIT @max_rows::int
    FOR UPDATE OF x SKIP LOCKED))
  RETURNING l.id
)
UPDATE mailhook.attempts AS a
SET ended_as = 'cancelled', ended_reason = 'deleted'
FROM removed AS r
WHERE a.delivery_id = r.id AND a.ended_as = 'exhausted';
