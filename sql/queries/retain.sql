-- LeaseTask takes a maintenance task for @seconds, or answers no row: another worker does it.
-- name: LeaseTask :one
INSERT INTO mailhook.task_leases AS t (task, leased_by, expires_at)
VALUES (@task::text, @worker_id::uuid, clock_timestamp() + make_interval(secs => @seconds::double precision))
ON CONFLICT (task) DO UPDATE
SET leased_by = excluded.leased_by, expires_at = excluded.expires_at
WHERE t.expires_at < clock_timestamp() OR t.leased_by = excluded.leased_by
RETURNING t.task;

-- CreatePartition makes the partition of a day; false where it exists.
-- name: CreatePartition :one
SELECT mailhook.create_partition(@parent::text, @day::date)::boolean;

-- ListPartitions names the day partitions of a parent, oldest first. The DEFAULT partition is not one of them.
-- name: ListPartitions :many
SELECT c.relname::text AS name
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = ('mailhook.' || @parent::text)::regclass
  AND c.relname ~ '_[0-9]{8}$'
ORDER BY c.relname;

-- OldestNeededEvent is the inserted_at of the oldest event that an unfinished delivery, a kept dead letter or a row of the
-- outbox needs; now where none does.
-- name: OldestNeededEvent :one
SELECT least(
  coalesce((SELECT min(d.event_inserted_at) FROM mailhook.deliveries AS d), 'infinity'),
  coalesce((SELECT min(l.event_inserted_at) FROM mailhook.dead_letters AS l), 'infinity'),
  coalesce((SELECT o.inserted_at FROM mailhook.outbox AS o ORDER BY o.id LIMIT 1), 'infinity'),
  clock_timestamp())::timestamptz AS oldest;

-- CountDefaultRows says how many rows lie in the DEFAULT partitions, up to 1,000 each: more than none is an alarm.
-- name: CountDefaultRows :one
SELECT (SELECT count(*) FROM (SELECT FROM mailhook.events_default LIMIT 1000) AS e)::bigint AS events,
  (SELECT count(*) FROM (SELECT FROM mailhook.attempts_default LIMIT 1000) AS a)::bigint AS attempts;

-- DropDefaultEvents removes events before a time that lie in the DEFAULT partition, at most @max_rows a call.
-- name: DropDefaultEvents :execrows
DELETE FROM mailhook.events_default AS e
WHERE (e.inserted_at, e.id) IN (
  SELECT x.inserted_at, x.id FROM mailhook.events_default AS x
  WHERE x.inserted_at < @before::timestamptz
  ORDER BY x.inserted_at
  LIMIT @max_rows::int);

-- DropDefaultAttempts removes attempts before a time that lie in the DEFAULT partition, at most @max_rows a call.
-- name: DropDefaultAttempts :execrows
DELETE FROM mailhook.attempts_default AS a
WHERE (a.started_at, a.id) IN (
  SELECT x.started_at, x.id FROM mailhook.attempts_default AS x
  WHERE x.started_at < @before::timestamptz
  ORDER BY x.started_at
  LIMIT @max_rows::int);

-- DropDeadLetters removes dead letters older than @max_age, at most @max_rows a call.
-- name: DropDeadLetters :execrows
DELETE FROM mailhook.dead_letters AS l
WHERE l.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.dead_letters AS x
  WHERE x.ended_at < clock_timestamp() - @max_age::interval
  ORDER BY x.ended_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- DropQuarantine removes quarantined events older than @max_age, at most @max_rows a call.
-- name: DropQuarantine :execrows
DELETE FROM mailhook.quarantine AS q
WHERE (q.inserted_at, q.id) IN (
  SELECT x.inserted_at, x.id FROM mailhook.quarantine AS x
  WHERE x.quarantined_at < clock_timestamp() - @max_age::interval
  ORDER BY x.quarantined_at
  LIMIT @max_rows::int);

-- DropDedupeKeys removes keys older than the window, at most @max_rows a call.
-- name: DropDedupeKeys :execrows
DELETE FROM mailhook.dedupe_keys AS k
WHERE (k.account_id, k.dedupe_key) IN (
  SELECT x.account_id, x.dedupe_key FROM mailhook.dedupe_keys AS x
  WHERE x.seen_at < clock_timestamp() - (SELECT i.dedupe_window FROM mailhook.installation AS i)
  ORDER BY x.seen_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED);

-- DropTestDeliveries removes test sends of more than an hour ago.
-- name: DropTestDeliveries :execrows
DELETE FROM mailhook.test_deliveries WHERE created_at < clock_timestamp() - interval '1 hour';

-- DropExpiredSecrets removes secrets whose grace has ended.
-- name: DropExpiredSecrets :execrows
DELETE FROM mailhook.subscription_secrets WHERE expires_at < clock_timestamp();

-- DropDeletedSubscriptions removes the last trace of subscriptions deleted longer ago than @max_age: by then their
-- attempts have been dropped too.
-- name: DropDeletedSubscriptions :execrows
DELETE FROM mailhook.subscriptions WHERE deleted_at < clock_timestamp() - @max_age::interval;
