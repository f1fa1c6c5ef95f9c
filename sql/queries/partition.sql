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

-- DetachDay takes a day out of events, to be counted and dropped, or answers what needs it: delivery, dead_letter or replay.
-- name: DetachDay :one
SELECT mailhook.detach_day(@day::date)::text;

-- DropAttempts drops the attempts of a day.
-- name: DropAttempts :exec
SELECT mailhook.drop_attempts(@day::date);

-- ListDetachedDays names the days that are to be counted and dropped, oldest first.
-- name: ListDetachedDays :many
SELECT d.day FROM mailhook.detached_days AS d ORDER BY d.day;

-- CountDay counts the next @max_rows events of a detached day. Fewer than @max_rows: it was the last slice, and the day is
-- dropped. -1: another worker counts it, or it is gone.
-- name: CountDay :one
SELECT coalesce(mailhook.count_day(@day::date, @max_rows::int), -1)::bigint;

-- OldestUndispatched is the inserted_at of the first row of the outbox; now where it is empty.
-- name: OldestUndispatched :one
SELECT coalesce((SELECT o.inserted_at FROM mailhook.outbox AS o ORDER BY o.id LIMIT 1), statement_timestamp())::timestamptz AS inserted_at;

-- ListDefaultDays names the days (UTC) from @since to before @until that have rows in the DEFAULT partition of a parent.
-- name: ListDefaultDays :many
WITH RECURSIVE looked AS (
  SELECT @since::timestamptz AS since, NULL::timestamptz AS found
  UNION ALL
  SELECT date_trunc('day', n.found, 'UTC') + interval '24 hours', n.found
  FROM looked AS l
  CROSS JOIN LATERAL (
    SELECT (CASE @parent::text
      WHEN 'events' THEN (
        SELECT e.inserted_at FROM mailhook.events_default AS e
        WHERE e.inserted_at >= l.since AND e.inserted_at < @until::timestamptz
        ORDER BY e.inserted_at
        LIMIT 1)
      ELSE (
        SELECT a.started_at FROM mailhook.attempts_default AS a
        WHERE a.started_at >= l.since AND a.started_at < @until::timestamptz
        ORDER BY a.started_at
        LIMIT 1)
    END) AS found
    OFFSET 0
  ) AS n
  WHERE n.found IS NOT NULL
)
SELECT (l.found AT TIME ZONE 'UTC')::date AS day FROM looked AS l WHERE l.found IS NOT NULL;

-- HasOldDefaultRows says whether the DEFAULT partitions have rows from before the times given.
-- name: HasOldDefaultRows :one
SELECT EXISTS (SELECT FROM mailhook.events_default AS e WHERE e.inserted_at < @events_before::timestamptz)::boolean AS events,
  EXISTS (SELECT FROM mailhook.attempts_default AS a WHERE a.started_at < @attempts_before::timestamptz)::boolean AS attempts;

-- CountDefaultRows says how many rows lie in the DEFAULT partitions, up to 1,000 each: more than none is an alarm.
-- name: CountDefaultRows :one
SELECT (SELECT count(*) FROM (SELECT FROM mailhook.events_default LIMIT 1000) AS e)::bigint AS events,
  (SELECT count(*) FROM (SELECT FROM mailhook.attempts_default LIMIT 1000) AS a)::bigint AS attempts;

-- DropDefaultEvents counts and removes events before a time that lie in the DEFAULT partition, at most @max_rows a call,
-- from the oldest on to the first one that an unfinished delivery, a kept dead letter or a running replay needs. Call it
-- with the partition locked: who makes a delivery of a logged event reads it in the same transaction. By ctid: see
-- DropDedupeKeys.
-- name: DropDefaultEvents :one
WITH needed AS MATERIALIZED (
  SELECT least(
    coalesce((SELECT d.event_inserted_at FROM mailhook.deliveries AS d WHERE d.event_inserted_at < @before::timestamptz ORDER BY d.event_inserted_at LIMIT 1), 'infinity'),
    coalesce((SELECT l.event_inserted_at FROM mailhook.dead_letters AS l WHERE l.event_inserted_at < @before::timestamptz ORDER BY l.event_inserted_at LIMIT 1), 'infinity'),
    coalesce((SELECT min(r.after_inserted_at) FROM mailhook.replays AS r WHERE r.state = 'running' AND r.source = 'all'), 'infinity'),
    @before::timestamptz) AS oldest_at
),
dropped AS (
  DELETE FROM mailhook.events_default AS e
  WHERE (e).ctid = ANY (ARRAY(
    SELECT (x).ctid FROM mailhook.events_default AS x
    WHERE x.inserted_at < (SELECT n.oldest_at FROM needed AS n)
    ORDER BY x.inserted_at, x.id
    LIMIT @max_rows::int))
  RETURNING e.inserted_at, e.account_id, e.event_type, e.campaign_id, e.sending_domain, e.recipient, e.duplicate_of
),
-- The same as in mailhook.count_day.
counted AS (
  INSERT INTO mailhook.event_counts AS c (account_id, day, event_type, campaign_id, sending_domain, recipient_domain, n)
  SELECT d.account_id, (d.inserted_at AT TIME ZONE 'UTC')::date, d.event_type, mailhook.count_key(d.campaign_id), mailhook.count_key(lower(d.sending_domain)),
    mailhook.count_key(mailhook.recipient_domain(d.recipient)), count(*)
  FROM dropped AS d
  WHERE d.duplicate_of IS NULL
  GROUP BY 1, 2, 3, 4, 5, 6
  ORDER BY 1, 2, 3, 4, 5, 6
  ON CONFLICT (account_id, day, event_type, campaign_id, sending_domain, recipient_domain) DO UPDATE SET n = c.n + excluded.n
)
SELECT count(*) FROM dropped;

-- DropDefaultAttempts removes attempts before a time that lie in the DEFAULT partition, at most @max_rows a call.
-- name: DropDefaultAttempts :one
WITH dropped AS (
  DELETE FROM mailhook.attempts_default AS a
  WHERE (a).ctid = ANY (ARRAY(
    SELECT (x).ctid FROM mailhook.attempts_default AS x
    WHERE x.started_at < @before::timestamptz
    ORDER BY x.started_at, x.id
    LIMIT @max_rows::int))
  RETURNING a.id
)
SELECT count(*) FROM dropped;

-- ListPartitionsAhead says for events and attempts how many whole days after today have partitions, up to the first day
-- without one, at most 30; -1 where today has none.
-- name: ListPartitionsAhead :many
SELECT parents.name::text AS parent, (
  SELECT coalesce(min(ahead.days), 31) - 1
  FROM generate_series(0, 30) AS ahead (days)
  WHERE to_regclass('mailhook.' || parents.name || to_char((statement_timestamp() AT TIME ZONE 'UTC')::date + ahead.days, '_YYYYMMDD')) IS NULL
)::int AS days
FROM unnest(ARRAY['events', 'attempts']) AS parents (name);

-- ListOverdueDays lists the days that are kept beyond their retention, by what keeps them: delivery, dead_letter or
-- replay (day_needed_by), counting (detached, not yet dropped), or waiting (nothing: the next run of retention drops them).
-- name: ListOverdueDays :many
WITH partitions AS MATERIALIZED (
  SELECT p.relname::text AS parent, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
  FROM pg_catalog.pg_inherits AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_class AS p ON p.oid = i.inhparent
  WHERE i.inhparent IN ('mailhook.events'::regclass, 'mailhook.attempts'::regclass)
    AND c.relname ~ '_[0-9]{8}$'
),
overdue AS (
  SELECT x.parent, x.day,
    CASE WHEN x.parent = 'events' THEN coalesce(nullif(mailhook.day_needed_by(x.day), ''), 'waiting') ELSE 'waiting' END AS reason
  FROM partitions AS x
  WHERE (x.day + 1)::timestamp AT TIME ZONE 'UTC' <= statement_timestamp() - CASE x.parent WHEN 'events' THEN @keep_events::interval ELSE @keep_attempts::interval END
  UNION ALL
  SELECT 'events', d.day, 'counting' FROM mailhook.detached_days AS d
)
SELECT o.parent::text AS parent, o.reason::text AS reason, count(*)::bigint AS days, min(o.day)::date AS oldest_day
FROM overdue AS o
GROUP BY o.parent, o.reason
ORDER BY o.parent, o.reason;
