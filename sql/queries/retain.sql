-- LeaseTask takes a maintenance task for @seconds and answers the time of the database, by which the task decides; no row:
-- another worker does it.
-- name: LeaseTask :one
INSERT INTO mailhook.task_leases AS t (task, leased_by, expires_at)
VALUES (@task::text, @worker_id::uuid, clock_timestamp() + make_interval(secs => @seconds::double precision))
ON CONFLICT (task) DO UPDATE
SET leased_by = excluded.leased_by, expires_at = excluded.expires_at
WHERE t.expires_at < clock_timestamp() OR t.leased_by = excluded.leased_by
RETURNING clock_timestamp()::timestamptz AS now;

-- DropDeadLetters removes dead letters older than @max_age, at most @max_rows a call.
-- name: DropDeadLetters :execrows
DELETE FROM mailhook.dead_letters AS l
WHERE l.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.dead_letters AS x
  WHERE x.ended_at < statement_timestamp() - @max_age::interval
  ORDER BY x.ended_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropQuarantine removes quarantined events older than @max_age, at most @max_rows a call. By ctid: see DropDedupeKeys.
-- name: DropQuarantine :execrows
DELETE FROM mailhook.quarantine AS q
WHERE (q).ctid = ANY (ARRAY(
  SELECT (x).ctid FROM mailhook.quarantine AS x
  WHERE x.quarantined_at < statement_timestamp() - @max_age::interval
  ORDER BY x.quarantined_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropDedupeKeys removes keys older than the window, at most @max_rows a call, past those that a dispatch takes over at
-- this moment: it locks by key, this by age. By ctid, which the lock keeps where it is: by key, a planner may read all of
-- the table. In brackets, for sqlc to look away.
-- name: DropDedupeKeys :execrows
DELETE FROM mailhook.dedupe_keys AS k
WHERE (k).ctid = ANY (ARRAY(
  SELECT (x).ctid FROM mailhook.dedupe_keys AS x
  WHERE x.seen_at < statement_timestamp() - (SELECT i.dedupe_window FROM mailhook.installation AS i WHERE i.singleton)
  ORDER BY x.seen_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropTestDeliveries removes test sends of more than an hour ago, at most @max_rows a call.
-- name: DropTestDeliveries :execrows
DELETE FROM mailhook.test_deliveries AS t
WHERE t.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.test_deliveries AS x
  WHERE x.created_at < statement_timestamp() - interval '1 hour'
  ORDER BY x.created_at, x.id
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropAuditLog removes lines of the audit log older than @max_age, at most @max_rows a call.
-- name: DropAuditLog :execrows
DELETE FROM mailhook.audit_log AS l
WHERE l.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.audit_log AS x
  WHERE x.changed_at < statement_timestamp() - @max_age::interval
  ORDER BY x.changed_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropReplays removes replays that ended longer ago than @max_age, at most @max_rows a call.
-- name: DropReplays :execrows
DELETE FROM mailhook.replays AS r
WHERE r.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.replays AS x
  WHERE x.state <> 'running' AND x.advanced_at < statement_timestamp() - @max_age::interval
  ORDER BY x.advanced_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropExpiredSecrets removes secrets whose grace has ended, at most @max_rows a call.
-- name: DropExpiredSecrets :execrows
DELETE FROM mailhook.subscription_secrets AS s
WHERE s.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.subscription_secrets AS x
  WHERE x.expires_at < statement_timestamp()
  ORDER BY x.expires_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropDeletedSubscriptions removes the last trace of subscriptions deleted longer ago than @max_age, at most @max_rows a
-- call: by then their attempts have been dropped too. An attempt that was under way at the deletion has left its health.
-- name: DropDeletedSubscriptions :execrows
WITH picked AS MATERIALIZED (
  SELECT s.id FROM mailhook.subscriptions AS s
  WHERE s.deleted_at < statement_timestamp() - @max_age::interval
  ORDER BY s.deleted_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED
),
forgotten AS (
  DELETE FROM mailhook.subscription_health AS h
  WHERE h.subscription_id = ANY (ARRAY(SELECT p.id FROM picked AS p))
)
DELETE FROM mailhook.subscriptions AS s
WHERE s.id = ANY (ARRAY(SELECT p.id FROM picked AS p));
