-- CreateErasure asks to forget a person; a worker does it, or mailhook erase. Accounts take turns: each erasure of an account
-- comes one turn after the one before it, and the first one now, so that many of one account hold up another's by one.
-- name: CreateErasure :one
INSERT INTO mailhook.erasures AS r (account_id, pattern, is_dry_run, turn)
SELECT sqlc.narg('account_id')::text, @pattern::text, @is_dry_run,
  coalesce(greatest(min(x.turn), 1 + max(x.turn) FILTER (WHERE x.account_id IS NOT DISTINCT FROM sqlc.narg('account_id')::text)), 0)
FROM mailhook.erasures AS x
WHERE x.state = 'running'
RETURNING r.id;

-- GetErasure finds an erasure of one account or, without @account_id, of any. It does not answer of whom it is.
-- name: GetErasure :one
SELECT r.id, r.account_id, r.is_dry_run, r.state, r.phase, r.scanned_count, r.outbox_count, r.event_count, r.delivery_count, r.attempt_count,
  r.dead_letter_count, r.quarantine_count, r.dedupe_key_count, r.test_delivery_count, r.created_at, r.ended_at
FROM mailhook.erasures AS r
WHERE r.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text);

-- CountRunningErasures counts those of an account, or of admins, that have not ended.
-- name: CountRunningErasures :one
SELECT count(*) FROM mailhook.erasures AS r
WHERE r.state = 'running' AND r.account_id IS NOT DISTINCT FROM sqlc.narg('account_id')::text;

-- IsErasing says whether an erasure runs that may concern an account.
-- name: IsErasing :one
SELECT EXISTS (
  SELECT FROM mailhook.erasures AS r
  WHERE r.state = 'running' AND (r.account_id IS NULL OR r.account_id = @account_id::text)
)::boolean;

-- ErasureBacklog says how many erasures run or wait, and since when the oldest.
-- name: ErasureBacklog :one
SELECT count(*) AS running, coalesce(extract(epoch FROM statement_timestamp() - min(r.created_at)), 0)::double precision AS oldest_seconds
FROM mailhook.erasures AS r
WHERE r.state = 'running';

-- LockErasure takes the running erasure whose turn it is until commit; no row when there is none or another session is at it
-- or has just ended it. One at a time: each reads whole tables. What has begun keeps its place: those that come later have
-- no earlier turn.
-- name: LockErasure :one
SELECT r.id, r.account_id, r.is_dry_run, r.phase, r.writers, r.until, r.after_at, r.after_number, r.after_id
FROM mailhook.erasures AS r
WHERE r.id = (SELECT x.id FROM mailhook.erasures AS x WHERE x.state = 'running' ORDER BY x.turn, x.id LIMIT 1)
  AND r.state = 'running'
FOR UPDATE SKIP LOCKED;

-- ErasureWaits says for how many transactions an erasure waits, and which of them is the oldest. When one began others see
-- only with the rights of pg_read_all_stats.
-- name: ErasureWaits :one
WITH open AS MATERIALIZED (
  SELECT DISTINCT ON (l.virtualtransaction) l.virtualtransaction, coalesce(l.pid, 0) AS pid, coalesce(a.xact_start, p.prepared) AS began_at, coalesce(p.gid, '') AS gid
  FROM mailhook.erasures AS r
  JOIN pg_catalog.pg_locks AS l ON l.virtualtransaction = ANY (r.writers)
  LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
  -- A prepared transaction has no process; its own lock tells which it is.
  LEFT JOIN pg_catalog.pg_locks AS x ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid' AND x.granted
  LEFT JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = x.transactionid
  WHERE r.state = 'running' AND r.phase = 'waiting' AND l.locktype = 'relation' AND l.relation = 'mailhook.outbox'::regclass AND l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
  ORDER BY l.virtualtransaction
)
SELECT (SELECT count(*) FROM open)::bigint AS transactions, o.pid::int AS pid, o.gid::text AS gid,
  coalesce(to_char(o.began_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '')::text AS since
FROM open AS o
ORDER BY o.began_at NULLS LAST, o.virtualtransaction
LIMIT 1;

-- LockPartitions keeps rows from moving out of DEFAULT until commit. A statement that meets such a move waits for it with the
-- partitions already looked up, sees neither the rows' old place nor their new one, and an erasure or a replay would go on past
-- them. The parents first, as mailhook.detach_day has it.
-- name: LockPartitions :exec
LOCK TABLE ONLY mailhook.events, ONLY mailhook.events_default, ONLY mailhook.attempts, ONLY mailhook.attempts_default IN ACCESS SHARE MODE;

-- AdvanceErasure notes what a step has done, and where it has come to.
-- name: AdvanceErasure :exec
UPDATE mailhook.erasures AS r
SET phase = @phase, writers = @writers, until = @until, after_at = @after_at, after_number = @after_number, after_id = @after_id,
  scanned_count = r.scanned_count + @scanned::bigint,
  outbox_count = r.outbox_count + @outbox::bigint,
  event_count = r.event_count + @events::bigint,
  delivery_count = r.delivery_count + @deliveries::bigint,
  attempt_count = r.attempt_count + @attempts::bigint,
  dead_letter_count = r.dead_letter_count + @dead_letters::bigint,
  quarantine_count = r.quarantine_count + @quarantine::bigint,
  dedupe_key_count = r.dedupe_key_count + @dedupe_keys::bigint,
  test_delivery_count = r.test_delivery_count + @test_deliveries::bigint
WHERE r.id = @id;

-- EndErasure forgets the address as well.
-- name: EndErasure :exec
UPDATE mailhook.erasures AS r
SET state = 'done', phase = 'done', pattern = NULL, writers = '{}', ended_at = clock_timestamp()
WHERE r.id = @id;

-- DropErasures removes the notes of erasures that ended longer ago than @max_age, at most @max_rows a call.
-- name: DropErasures :execrows
DELETE FROM mailhook.erasures AS r
WHERE r.id = ANY (ARRAY(
  SELECT x.id FROM mailhook.erasures AS x
  WHERE x.state <> 'running' AND x.ended_at < statement_timestamp() - @max_age::interval
  ORDER BY x.ended_at
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED));

-- ErasureBounds is up to which times events and attempts have rows. Later than now where the clock was set back.
-- name: ErasureBounds :one
SELECT greatest(statement_timestamp(), (
    SELECT e.inserted_at FROM mailhook.events AS e WHERE e.inserted_at > statement_timestamp() ORDER BY e.inserted_at DESC LIMIT 1))::timestamptz AS events,
  greatest(statement_timestamp(), (
    SELECT a.started_at FROM mailhook.attempts AS a WHERE a.started_at > statement_timestamp() ORDER BY a.started_at DESC LIMIT 1))::timestamptz AS attempts;

-- FindInOutbox looks at the next rows of the outbox, whoever has locked them, and names those that mention the person. The
-- pattern is read here and below, and is no parameter: those appear in the log of a server that logs slow statements.
-- name: FindInOutbox :one
WITH slice AS MATERIALIZED (
  SELECT o.id,
    (sqlc.narg('account_id')::text IS NULL OR coalesce(nullif(o.account_id, ''), 'default') = sqlc.narg('account_id')::text)
      -- Nothing has been checked yet: a type or an IP address may be anything.
      AND (mailhook.mentions(p.pattern, o.recipient, o.message_id, o.campaign_id, o.dedupe_key, o.data)
        OR concat_ws(chr(10), o.event_type, o.dedicated_ip) ~ p.pattern) AS matches
  FROM mailhook.outbox AS o
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
  WHERE o.id > @after_id::bigint
  ORDER BY o.id
  LIMIT @max_rows::int
)
SELECT count(*) AS scanned, coalesce(max(s.id), @after_id::bigint)::bigint AS last_id,
  coalesce(array_agg(s.id) FILTER (WHERE s.matches), '{}')::bigint[] AS ids
FROM slice AS s;

-- EraseFromOutbox takes rows out of the outbox, and logs of each that something happened. One that a dispatch holds is waited
-- for: it is gone then, and an event, or back. What could not be an event as it is becomes one of an unknown type.
-- name: EraseFromOutbox :one
WITH taken AS (
  DELETE FROM mailhook.outbox AS o
  WHERE o.id = ANY (@ids::bigint[])
  RETURNING o.id, o.inserted_at, o.account_id, o.event_type, o.campaign_id, o.sending_domain
),
logged AS (
  INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, campaign_id, sending_domain, erased_at)
  SELECT coalesce(t.inserted_at, statement_timestamp()), t.id,
    left(coalesce(nullif(t.account_id, ''), 'default'), 200),
    CASE WHEN octet_length(t.event_type) <= 100 AND t.event_type ~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$' THEN t.event_type ELSE 'unknown' END,
    coalesce(t.inserted_at, statement_timestamp()), statement_timestamp(),
    CASE WHEN octet_length(t.campaign_id) <= 1000 AND t.campaign_id !~ p.pattern THEN nullif(t.campaign_id, '') END,
    CASE WHEN octet_length(t.sending_domain) <= 1000 AND t.sending_domain !~ p.pattern THEN nullif(t.sending_domain, '') END,
    statement_timestamp()
  FROM taken AS t
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
)
SELECT count(*) FROM taken;

-- FindInQuarantine looks at the next events in quarantine, and names those that mention the person.
-- name: FindInQuarantine :one
WITH slice AS MATERIALIZED (
  SELECT q.inserted_at, q.id,
    (sqlc.narg('account_id')::text IS NULL OR coalesce(nullif(q.account_id, ''), 'default') = sqlc.narg('account_id')::text)
      AND (mailhook.mentions(p.pattern, q.recipient, q.message_id, q.campaign_id, q.dedupe_key, q.data)
        OR concat_ws(chr(10), q.event_type, q.dedicated_ip, q.reason) ~ p.pattern) AS matches
  FROM mailhook.quarantine AS q
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
  WHERE (q.inserted_at, q.id) > (@after_at::timestamptz, @after_id::bigint)
  ORDER BY q.inserted_at, q.id
  LIMIT @max_rows::int
)
SELECT count(*) AS scanned,
  coalesce((array_agg(s.inserted_at ORDER BY s.inserted_at DESC, s.id DESC))[1], @after_at::timestamptz)::timestamptz AS last_at,
  coalesce((array_agg(s.id ORDER BY s.inserted_at DESC, s.id DESC))[1], @after_id::bigint)::bigint AS last_id,
  coalesce(array_agg(s.inserted_at ORDER BY s.inserted_at, s.id) FILTER (WHERE s.matches), '{}')::timestamptz[] AS inserted_ats,
  coalesce(array_agg(s.id ORDER BY s.inserted_at, s.id) FILTER (WHERE s.matches), '{}')::bigint[] AS ids
FROM slice AS s;

-- EraseFromQuarantine removes events that never were dispatched: no count has them.
-- name: EraseFromQuarantine :execrows
DELETE FROM mailhook.quarantine AS q
WHERE (q).ctid = ANY (ARRAY(
  SELECT x.place
  FROM (SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id) AS k
  CROSS JOIN LATERAL (
    SELECT (y).ctid AS place FROM mailhook.quarantine AS y WHERE y.inserted_at = k.inserted_at AND y.id = k.id FOR UPDATE
  ) AS x));

-- EraseDedupeKeys removes keys that mention the person, among the next ones by time. With all of the last time: it is the
-- place where the next look begins.
-- name: EraseDedupeKeys :one
WITH slice AS MATERIALIZED (
  SELECT k.account_id, k.dedupe_key, k.seen_at,
    (sqlc.narg('account_id')::text IS NULL OR k.account_id = sqlc.narg('account_id')::text) AND k.dedupe_key ~ p.pattern AS matches
  FROM mailhook.dedupe_keys AS k
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
  WHERE k.seen_at > @after_at::timestamptz AND k.seen_at <= @until::timestamptz
  ORDER BY k.seen_at
  FETCH FIRST (@max_rows::int) ROWS WITH TIES
),
erased AS (
  DELETE FROM mailhook.dedupe_keys AS k
  WHERE NOT @is_dry_run::boolean AND (k).ctid = ANY (ARRAY(
    SELECT x.place
    FROM (SELECT s.account_id, s.dedupe_key FROM slice AS s WHERE s.matches ORDER BY s.account_id, s.dedupe_key) AS m
    CROSS JOIN LATERAL (
      SELECT (y).ctid AS place FROM mailhook.dedupe_keys AS y WHERE y.account_id = m.account_id AND y.dedupe_key = m.dedupe_key FOR UPDATE
    ) AS x))
)
SELECT count(*) AS scanned, coalesce(max(s.seen_at), @after_at::timestamptz)::timestamptz AS last_at, count(*) FILTER (WHERE s.matches) AS erased
FROM slice AS s;

-- FindInEvents looks at the next events, of an account or of all, and names those that mention the person. The plans are
-- custom: but one branch is left of the two.
-- name: FindInEvents :one
WITH slice AS MATERIALIZED (
  (
    SELECT e.inserted_at, e.id, mailhook.mentions(p.pattern, e.recipient, e.message_id, e.campaign_id, e.dedupe_key, e.data) AS matches
    FROM mailhook.events AS e
    CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
    WHERE e.account_id = sqlc.narg('account_id')::text
      AND (e.inserted_at, e.id) > (@after_at::timestamptz, @after_id::bigint) AND e.inserted_at <= @until::timestamptz
    ORDER BY e.inserted_at, e.id
    LIMIT @max_rows::int
  )
  UNION ALL
  (
    SELECT e.inserted_at, e.id, mailhook.mentions(p.pattern, e.recipient, e.message_id, e.campaign_id, e.dedupe_key, e.data) AS matches
    FROM mailhook.events AS e
    CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
    WHERE sqlc.narg('account_id')::text IS NULL
      AND (e.inserted_at, e.id) > (@after_at::timestamptz, @after_id::bigint) AND e.inserted_at <= @until::timestamptz
    ORDER BY e.inserted_at, e.id
    LIMIT @max_rows::int
  )
)
SELECT count(*) AS scanned,
  coalesce((array_agg(s.inserted_at ORDER BY s.inserted_at DESC, s.id DESC))[1], @after_at::timestamptz)::timestamptz AS last_at,
  coalesce((array_agg(s.id ORDER BY s.inserted_at DESC, s.id DESC))[1], @after_id::bigint)::bigint AS last_id,
  coalesce(array_agg(s.inserted_at ORDER BY s.inserted_at, s.id) FILTER (WHERE s.matches), '{}')::timestamptz[] AS inserted_ats,
  coalesce(array_agg(s.id ORDER BY s.inserted_at, s.id) FILTER (WHERE s.matches), '{}')::bigint[] AS ids
FROM slice AS s;

-- EraseEvents leaves of events what counts need, and removes their dedupe keys. From here to the commit nobody makes a
-- delivery of one: who does locks the event (mailhook.keep_event, replay.sql). An upsert, because it finds each row by its
-- key in any case.
-- name: EraseEvents :one
WITH locked AS MATERIALIZED (
  SELECT l.inserted_at, l.id, l.account_id, l.event_type, l.occurred_at, l.dispatched_at, l.campaign_id, l.sending_domain, l.dedupe_key, l.duplicate_of
  FROM (SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id) AS k
  CROSS JOIN LATERAL (
    SELECT e.* FROM mailhook.events AS e WHERE e.inserted_at = k.inserted_at AND e.id = k.id FOR UPDATE
  ) AS l
),
released AS (
  DELETE FROM mailhook.dedupe_keys AS d
  WHERE (d).ctid = ANY (ARRAY(
    SELECT x.place
    FROM (SELECT DISTINCT l.account_id, l.dedupe_key FROM locked AS l WHERE l.dedupe_key IS NOT NULL ORDER BY l.account_id, l.dedupe_key) AS m
    CROSS JOIN LATERAL (
      SELECT (y).ctid AS place FROM mailhook.dedupe_keys AS y WHERE y.account_id = m.account_id AND y.dedupe_key = m.dedupe_key FOR UPDATE
    ) AS x))
  RETURNING d.seen_at
),
erased AS (
  INSERT INTO mailhook.events AS e (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, campaign_id, sending_domain, duplicate_of, erased_at)
  SELECT l.inserted_at, l.id, l.account_id, l.event_type, l.occurred_at, l.dispatched_at,
    CASE WHEN l.campaign_id !~ p.pattern THEN l.campaign_id END, l.sending_domain, l.duplicate_of, statement_timestamp()
  FROM locked AS l
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
  ON CONFLICT (inserted_at, id) DO UPDATE
  SET recipient = NULL, message_id = NULL, campaign_id = excluded.campaign_id, sending_node = NULL, bridge = NULL, dedicated_ip = NULL,
    dedupe_key = NULL, data = NULL, erased_at = excluded.erased_at
)
SELECT (SELECT count(*) FROM locked)::bigint AS events, (SELECT count(*) FROM released)::bigint AS dedupe_keys;

-- CancelErasedDeliveries ends the unfinished deliveries of events, those under way as well: the fence stops what is
-- recorded of them later. A statement of its own after EraseEvents: it sees what was made before.
-- name: CancelErasedDeliveries :one
WITH ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(
    SELECT x.id
    FROM (SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id) AS k
    CROSS JOIN LATERAL (
      SELECT y.id FROM mailhook.deliveries AS y WHERE y.event_inserted_at = k.inserted_at AND y.event_id = k.id OFFSET 0
    ) AS x
    ORDER BY x.id))
  RETURNING d.*
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, ended_as, ended_reason, delivery_created_at)
  SELECT statement_timestamp(), mailhook.uuid7(statement_timestamp()), e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type,
    e.attempt, 'cancelled', 'erased', e.created_at
  FROM ended AS e
)
SELECT count(*) FROM ended;

-- EraseDeadLetters removes the dead letters of events; their ends become cancelled, as in CancelDeadLetters. After
-- CancelErasedDeliveries: deliveries become dead letters, and none of these becomes a delivery any more.
-- name: EraseDeadLetters :one
WITH removed AS (
  DELETE FROM mailhook.dead_letters AS l
  WHERE l.id = ANY (ARRAY(
    SELECT x.id
    FROM (SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id) AS k
    CROSS JOIN LATERAL (
      SELECT y.id FROM mailhook.dead_letters AS y WHERE y.event_inserted_at = k.inserted_at AND y.event_id = k.id OFFSET 0
    ) AS x))
  RETURNING l.id
),
marked AS (
  UPDATE mailhook.attempts AS a
  SET ended_as = 'cancelled', ended_reason = 'erased'
  WHERE a.delivery_id = ANY (ARRAY(SELECT r.id FROM removed AS r)) AND a.ended_as = 'exhausted'
)
SELECT count(*) FROM removed;

-- CountOfEvents counts what EraseEvents and the two after it would remove.
-- name: CountOfEvents :one
WITH keys AS MATERIALIZED (
  SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id
)
SELECT (
    SELECT count(*) FROM keys AS k
    CROSS JOIN LATERAL (SELECT y.id FROM mailhook.deliveries AS y WHERE y.event_inserted_at = k.inserted_at AND y.event_id = k.id OFFSET 0) AS x
  )::bigint AS deliveries, (
    SELECT count(*) FROM keys AS k
    CROSS JOIN LATERAL (SELECT y.id FROM mailhook.dead_letters AS y WHERE y.event_inserted_at = k.inserted_at AND y.event_id = k.id OFFSET 0) AS x
  )::bigint AS dead_letters, (
    -- Those that mention the person are counted by EraseDedupeKeys.
    SELECT count(DISTINCT (x.account_id, x.dedupe_key)) FROM keys AS k
    CROSS JOIN LATERAL (SELECT e.account_id, e.dedupe_key FROM mailhook.events AS e WHERE e.inserted_at = k.inserted_at AND e.id = k.id OFFSET 0) AS e
    CROSS JOIN LATERAL (
      SELECT y.account_id, y.dedupe_key FROM mailhook.dedupe_keys AS y WHERE y.account_id = e.account_id AND y.dedupe_key = e.dedupe_key OFFSET 0
    ) AS x
    WHERE x.dedupe_key !~ (SELECT r.pattern FROM mailhook.erasures AS r WHERE r.id = @erasure_id)
  )::bigint AS dedupe_keys;

-- EraseDetached does for the days that are being counted and dropped what EraseEvents does; no delivery and no dead letter
-- needs them.
-- name: EraseDetached :one
SELECT (x.scanned IS NOT NULL)::boolean AS found, coalesce(x.scanned, 0)::bigint AS scanned, coalesce(x.matched, 0)::bigint AS erased,
  coalesce(x.reached_at, 'epoch')::timestamptz AS last_at, coalesce(x.reached_id, 0)::bigint AS last_id
FROM mailhook.erase_detached(@erasure_id::uuid, @max_rows::int) AS x;

-- EraseAttempts wipes the response excerpts of the next attempts, of an account or of all, where they answer to an erased
-- event or mention the person: receivers echo what they get. By time, or by id where it is one account. The escaped form
-- of the bytes is text, whatever they are.
-- name: EraseAttempts :one
WITH slice AS MATERIALIZED (
  (
    SELECT a.started_at, a.id, a.event_inserted_at, a.event_id, a.response_excerpt
    FROM mailhook.attempts AS a
    WHERE a.account_id = sqlc.narg('account_id')::text AND a.id > @after_id::uuid AND a.started_at <= @until::timestamptz
    ORDER BY a.id
    LIMIT @max_rows::int
  )
  UNION ALL
  (
    SELECT a.started_at, a.id, a.event_inserted_at, a.event_id, a.response_excerpt
    FROM mailhook.attempts AS a
    WHERE sqlc.narg('account_id')::text IS NULL
      AND (a.started_at, a.id) > (@after_at::timestamptz, @after_id::uuid) AND a.started_at <= @until::timestamptz
    ORDER BY a.started_at, a.id
    LIMIT @max_rows::int
  )
),
matched AS MATERIALIZED (
  SELECT s.started_at, s.id
  FROM slice AS s
  CROSS JOIN (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id) AS p
  WHERE s.response_excerpt IS NOT NULL
    AND (encode(s.response_excerpt, 'escape') ~ p.pattern OR coalesce((
      SELECT e.erased_at IS NOT NULL
        OR (@is_dry_run::boolean AND mailhook.mentions(p.pattern, e.recipient, e.message_id, e.campaign_id, e.dedupe_key, e.data))
      FROM mailhook.events AS e
      WHERE e.inserted_at = s.event_inserted_at AND e.id = s.event_id
    ), false))
),
wiped AS (
  -- An upsert, because it finds each row by its key in any case.
  INSERT INTO mailhook.attempts AS a (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, duration_ms, status_code, outcome, ended_as, ended_reason, delivery_created_at)
  SELECT x.started_at, x.id, x.delivery_id, x.subscription_id, x.account_id, x.event_inserted_at, x.event_id, x.event_type,
    x.number, x.duration_ms, x.status_code, x.outcome, x.ended_as, x.ended_reason, x.delivery_created_at
  FROM matched AS m
  CROSS JOIN LATERAL (
    SELECT y.* FROM mailhook.attempts AS y WHERE y.started_at = m.started_at AND y.id = m.id OFFSET 0
  ) AS x
  WHERE NOT @is_dry_run::boolean
  ON CONFLICT (started_at, id) DO UPDATE SET response_excerpt = NULL
)
SELECT count(*) AS scanned,
  coalesce((array_agg(s.started_at ORDER BY s.started_at DESC, s.id DESC))[1], @after_at::timestamptz)::timestamptz AS last_at,
  coalesce(CASE WHEN sqlc.narg('account_id')::text IS NULL
    THEN (array_agg(s.id ORDER BY s.started_at DESC, s.id DESC))[1]
    ELSE (array_agg(s.id ORDER BY s.id DESC))[1]
  END, @after_id::uuid)::uuid AS last_id,
  (SELECT count(*) FROM matched)::bigint AS erased
FROM slice AS s;

-- EraseTestDeliveries wipes the response excerpts and bodies of test sends that mention the person. They have no event, and the table
-- holds an hour.
-- name: EraseTestDeliveries :one
WITH matched AS MATERIALIZED (
  SELECT t.id
  FROM mailhook.test_deliveries AS t
  WHERE t.created_at > '-infinity'
    AND (t.response_excerpt IS NOT NULL OR t.request_body IS NOT NULL)
    AND concat_ws(' ', encode(t.response_excerpt, 'escape'), t.request_body) ~ (SELECT x.pattern FROM mailhook.erasures AS x WHERE x.id = @erasure_id)
    AND (sqlc.narg('account_id')::text IS NULL OR t.account_id = sqlc.narg('account_id')::text)
),
wiped AS (
  UPDATE mailhook.test_deliveries AS t
  SET response_excerpt = NULL, request_body = NULL
  WHERE NOT @is_dry_run::boolean AND t.id = ANY (ARRAY(SELECT m.id FROM matched AS m))
)
SELECT count(*) FROM matched;
