-- Record writes a batch of outcomes in one statement: each delivery is deleted or put off by its schedule, its attempt
-- is appended, the exhausted become dead letters, and the health of the subscriptions follows: circuits open and close,
-- endpoints are slowed, subscriptions suspended, and events tell so. Only rows that pass the fence (id, lease_id) count: a
-- worker that lost its lease changes nothing. The answer counts the outcomes that passed, by how their deliveries ended
-- ('': they go on); what is missing from it is stale.
--
-- What to do is decided by the caller (outcome.go): @delivered, @permanent (no further attempt), @suspends and @slows. When to do it is computed here, by
-- the database's clock: @age_ms is how long before this statement the attempt began. What failed in one batch and goes
-- there together again has one @batch_id and one @jitter (-1 to 1), and so comes due together; of the failures of one
-- request @counts says for one only that it counts against the endpoint.
-- name: Record :many
WITH outcomes AS MATERIALIZED (
  SELECT unnest(@delivery_ids::uuid[]) AS delivery_id,
    unnest(@id_tails::text[]) AS id_tail,
    unnest(@lease_ids::uuid[]) AS lease_id,
    unnest(@outcomes::text[]) AS outcome,
    unnest(@delivered::boolean[]) AS delivered,
    unnest(@permanent::boolean[]) AS permanent,
    unnest(@suspends::boolean[]) AS suspends,
    unnest(@slows::boolean[]) AS slows,
    unnest(@status_codes::int[]) AS status_code,
    unnest(@ages_ms::int[]) AS age_ms,
    unnest(@durations_ms::int[]) AS duration_ms,
    unnest(@retry_afters_ms::bigint[]) AS retry_after_ms,
    unnest(@excerpts::bytea[]) AS excerpt,
    unnest(@jitters::float8[]) AS jitter,
    unnest(@batch_ids::uuid[]) AS batch_id,
    unnest(@counts::int[]) AS counts
),
-- A delivered one needs no lock to decide: the deletion is its fence. coalesce: for a plain IN the planner may join, and read the
-- whole table.
removed AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT o.delivery_id FROM outcomes AS o WHERE o.delivered))
    AND coalesce((d.id, d.lease_id) IN (SELECT o.delivery_id, o.lease_id FROM outcomes AS o WHERE o.delivered), false)
  RETURNING d.id, d.lease_id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt, d.created_at
),
-- Each is probed. A plan is made once for a session, on an empty table perhaps, and for a join it would then read the whole table,
-- whatever has become of it: 15 s for a batch. And no plain lease_id = …, which would let it read the whole partial index of what
-- is leased.
failed AS MATERIALIZED (
  SELECT d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt, d.created_at, o.lease_id,
    o.id_tail, o.outcome, o.status_code, o.age_ms, o.duration_ms, o.excerpt, o.permanent, o.suspends, o.slows, o.retry_after_ms,
    o.jitter, o.batch_id, o.counts
  FROM outcomes AS o
  CROSS JOIN LATERAL (
    SELECT x.id, x.subscription_id, x.account_id, x.event_inserted_at, x.event_id, x.event_type, x.attempt, x.created_at
    FROM mailhook.deliveries AS x
    WHERE x.id = o.delivery_id AND x.lease_id IS NOT DISTINCT FROM o.lease_id
    FOR UPDATE
  ) AS d
  WHERE NOT o.delivered
),
decided AS MATERIALIZED (
  SELECT g.id, g.subscription_id, g.account_id, g.event_inserted_at, g.event_id, g.event_type, g.attempt, g.created_at,
    g.id_tail, g.outcome, g.status_code, g.age_ms, g.duration_ms, g.excerpt, NULL::uuid AS lease_id, false AS suspends, false AS slows,
    NULL::bigint AS retry_after_ms, g.counts, NULL::uuid AS batch_id, 'delivered' AS ended_as, NULL AS ended_reason, NULL::timestamptz AS next_attempt_at
  FROM (
    -- FULL JOIN: it cannot be a nested loop.
    SELECT r.id, r.subscription_id, r.account_id, r.event_inserted_at, r.event_id, r.event_type, r.attempt, r.created_at,
      o.id_tail, o.outcome, o.status_code, o.age_ms, o.duration_ms, o.excerpt, o.counts
    FROM removed AS r
    FULL JOIN outcomes AS o ON o.delivery_id = r.id AND o.lease_id = r.lease_id
    OFFSET 0
  ) AS g
  WHERE g.id IS NOT NULL
  UNION ALL
  SELECT f.id, f.subscription_id, f.account_id, f.event_inserted_at, f.event_id, f.event_type, f.attempt, f.created_at,
    f.id_tail, f.outcome, f.status_code, f.age_ms, f.duration_ms, f.excerpt, f.lease_id, f.suspends, f.slows,
    f.retry_after_ms, f.counts, nullif(f.batch_id, '00000000-0000-0000-0000-000000000000'),
    CASE
      WHEN s.id IS NULL OR s.deleted_at IS NOT NULL OR s.status = 'inactive' THEN 'cancelled'
      WHEN f.permanent OR f.attempt >= cardinality(s.retry_schedule) THEN 'exhausted'
    END,
    CASE
      WHEN s.id IS NULL OR s.deleted_at IS NOT NULL THEN 'deleted'
      WHEN s.status = 'inactive' THEN 'deactivated'
      WHEN f.permanent THEN 'permanent'
    END,
    -- The later of Retry-After and the schedule, at most 1 h beyond the schedule.
    statement_timestamp() + greatest(
      scheduled.delay,
      least(f.retry_after_ms * interval '1 millisecond', scheduled.delay + interval '1 hour'))
  FROM failed AS f
  -- OFFSET 0, and a scalar subquery below: always probed; the planner may hash a whole table for a join or an EXISTS.
  LEFT JOIN LATERAL (
    SELECT b.id, b.deleted_at, b.status, b.retry_schedule, b.retry_jitter
    FROM mailhook.subscriptions AS b
    WHERE b.id = f.subscription_id
    OFFSET 0
  ) AS s ON true
  CROSS JOIN LATERAL (
    SELECT s.retry_schedule[f.attempt + 1] * (1 + s.retry_jitter * f.jitter) AS delay
  ) AS scheduled
),
ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT x.id FROM decided AS x WHERE x.ended_as <> 'delivered'))
),
-- An upsert, because it finds each row by its key in any case. All of them are there: they are locked.
put_off AS (
  INSERT INTO mailhook.deliveries AS d (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, next_attempt_at, last_outcome, batch_id, created_at)
  SELECT x.id, x.subscription_id, x.account_id, x.event_inserted_at, x.event_id, x.event_type, x.attempt + 1, x.next_attempt_at, x.outcome, x.batch_id, x.created_at
  FROM decided AS x
  WHERE x.ended_as IS NULL
  ON CONFLICT (id) DO UPDATE
  SET attempt = excluded.attempt, next_attempt_at = excluded.next_attempt_at, last_outcome = excluded.last_outcome, batch_id = excluded.batch_id,
    leased_by = NULL, lease_id = NULL
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, duration_ms, status_code, outcome, response_excerpt, ended_as, ended_reason, delivery_created_at)
  SELECT statement_timestamp() - x.age_ms * interval '1 millisecond',
    -- UUIDv7: lists are ordered by it, so its time is the database's.
    ((SELECT lpad(to_hex((extract(epoch FROM statement_timestamp()) * 1000)::bigint), 12, '0') || '7') || x.id_tail)::uuid, x.id, x.subscription_id, x.account_id,
    x.event_inserted_at, x.event_id, x.event_type, x.attempt + 1, x.duration_ms, nullif(x.status_code, 0), x.outcome, x.excerpt,
    x.ended_as, x.ended_reason, x.created_at
  FROM decided AS x
),
buried AS (
  INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, last_outcome, reason, created_at, ended_at)
  SELECT x.id, x.subscription_id, x.account_id, x.event_inserted_at, x.event_id, x.event_type, x.attempt + 1, x.outcome, coalesce(x.ended_reason, 'schedule_ended'),
    x.created_at, statement_timestamp()
  FROM decided AS x
  WHERE x.ended_as = 'exhausted'
),
-- What the batch says of each subscription.
heard AS MATERIALIZED (
  SELECT x.subscription_id,
    coalesce(bool_or(x.ended_as = 'delivered'), false) AS succeeded,
    sum(x.counts)::integer AS attempts,
    statement_timestamp() - max(x.age_ms) * interval '1 millisecond' AS began_at,
    CASE WHEN bool_or(x.ended_as = 'delivered') THEN 'ok' ELSE max(x.outcome) END AS outcome,
    bool_or(x.suspends) AS suspends,
    bool_or(x.slows) AS slows,
    max(least(x.retry_after_ms * interval '1 millisecond', interval '1 hour')) FILTER (WHERE x.slows) AS pause,
    coalesce(bool_or(x.ended_as = 'exhausted'), false) AS exhausted,
    coalesce(bool_or(x.ended_as = 'exhausted' AND x.ended_reason IS NULL), false) AS schedule_ended,
    array_agg(x.lease_id) FILTER (WHERE x.lease_id IS NOT NULL) AS lease_ids
  FROM decided AS x
  WHERE x.ended_as IS DISTINCT FROM 'cancelled'
  GROUP BY x.subscription_id
),
-- Its health before, locked in id order: two workers that record for the same subscriptions wait for each other, and
-- never in a circle. A success of a healthy one locks and writes nothing.
before AS MATERIALIZED (
  SELECT e.subscription_id, e.succeeded, e.attempts, e.began_at, e.outcome, e.suspends, e.slows, e.pause, e.exhausted, e.schedule_ended,
    y.probe_lease_id = ANY (e.lease_ids) AS probed, y.consecutive_failures, y.first_failed_at, y.last_failed_at, y.opened_at, y.open_until,
    y.probe_lease_id, y.failed_probes, y.wait_until, y.in_flight_limit, y.slowed_at, y.release_before, y.released_at, y.subscription_id IS NOT NULL AS is_known
  FROM (SELECT heard.* FROM heard ORDER BY heard.subscription_id) AS e
  LEFT JOIN LATERAL (
    SELECT h.*
    FROM mailhook.subscription_health AS h
    WHERE h.subscription_id = e.subscription_id
      AND (NOT e.succeeded OR e.slows OR e.suspends OR h.consecutive_failures > 0 OR h.opened_at IS NOT NULL)
    FOR UPDATE
  ) AS y ON true
),
-- Failures add up, until there are enough of them over enough time, and the circuit opens. A failed probe puts the next one
-- off. A success closes the circuit, and what was held is released. Slowing counts once a second: requests under way at
-- one time say one thing.
judged AS MATERIALIZED (
  SELECT b.subscription_id, b.succeeded, b.suspends, b.exhausted, b.outcome, b.is_known,
    CASE WHEN b.succeeded THEN 0 ELSE coalesce(b.consecutive_failures, 0) + b.attempts END AS consecutive_failures,
    since.failed_at AS first_failed_at,
    CASE WHEN b.succeeded THEN b.last_failed_at ELSE statement_timestamp() END AS last_failed_at,
    CASE WHEN NOT b.succeeded THEN CASE WHEN b.opened_at IS NOT NULL THEN b.opened_at WHEN opens.now THEN statement_timestamp() END END AS opened_at,
    CASE WHEN NOT b.succeeded THEN CASE
      WHEN opens.now THEN statement_timestamp() + i.probe_pause
      WHEN b.probed THEN statement_timestamp() + least(i.longest_probe_pause, greatest(i.probe_pause, (statement_timestamp() - b.opened_at) / 10))
      ELSE b.open_until
    END END AS open_until,
    CASE WHEN NOT b.succeeded THEN b.probe_lease_id END AS probe_lease_id,
    CASE WHEN b.succeeded THEN 0 ELSE coalesce(b.failed_probes, 0) + coalesce(b.probed, false)::integer END AS failed_probes,
    CASE WHEN b.pause > interval '0' THEN greatest(b.wait_until, statement_timestamp() + b.pause) ELSE b.wait_until END AS wait_until,
    CASE WHEN slowed.now THEN greatest(1, mailhook.slowed_cap(s.max_in_flight, b.in_flight_limit, b.slowed_at, statement_timestamp()) / 2) ELSE b.in_flight_limit END AS in_flight_limit,
    CASE WHEN slowed.now THEN greatest(b.wait_until, statement_timestamp() + coalesce(b.pause, interval '0')) ELSE b.slowed_at END AS slowed_at,
    CASE WHEN b.succeeded AND b.opened_at IS NOT NULL THEN statement_timestamp() ELSE b.release_before END AS release_before,
    CASE WHEN b.succeeded AND b.opened_at IS NOT NULL THEN statement_timestamp() ELSE b.released_at END AS released_at,
    CASE WHEN b.succeeded AND b.opened_at IS NOT NULL THEN 'recovered' WHEN opens.now THEN 'failing' END AS turn,
    CASE
      WHEN b.suspends THEN 'gone'
      WHEN b.succeeded THEN NULL
      WHEN s.suspend_when_exhausted AND (b.schedule_ended OR (b.probed AND b.opened_at <= statement_timestamp() - schedule.length)) THEN 'schedule_ended'
      WHEN (b.exhausted AND since.failed_at <= statement_timestamp() - i.suspend_after)
        OR (b.probed AND b.opened_at <= statement_timestamp() - greatest(i.suspend_after, schedule.length)) THEN 'failing'
    END AS suspend_for,
    coalesce(b.consecutive_failures, 0) AS failures_before, s.account_id, s.name
  FROM before AS b
  CROSS JOIN mailhook.installation AS i
  CROSS JOIN LATERAL (
    SELECT z.account_id, z.name, z.max_in_flight, z.suspend_when_exhausted, z.retry_schedule
    FROM mailhook.subscriptions AS z
    WHERE z.id = b.subscription_id
    OFFSET 0
  ) AS s
  CROSS JOIN LATERAL (
    SELECT sum(step.delay) AS length FROM unnest(s.retry_schedule) AS step (delay)
  ) AS schedule
  CROSS JOIN LATERAL (
    SELECT CASE WHEN b.consecutive_failures > 0 THEN b.first_failed_at WHEN NOT b.succeeded THEN b.began_at END AS failed_at
  ) AS since
  CROSS JOIN LATERAL (
    SELECT NOT b.succeeded AND b.opened_at IS NULL
      AND coalesce(b.consecutive_failures, 0) + b.attempts >= i.circuit_failures
      AND since.failed_at <= statement_timestamp() - i.circuit_after AS now
  ) AS opens
  CROSS JOIN LATERAL (
    SELECT b.slows AND coalesce(b.slowed_at, '-infinity') <= statement_timestamp() - interval '1 second' AS now
  ) AS slowed
  WHERE b.is_known OR NOT b.succeeded OR b.slows OR b.suspends
),
health AS (
  INSERT INTO mailhook.subscription_health AS h (subscription_id, consecutive_failures, first_failed_at, last_failed_at, last_outcome, opened_at, open_until,
    probe_lease_id, failed_probes, wait_until, in_flight_limit, slowed_at, release_before, released_at)
  SELECT j.subscription_id, j.consecutive_failures, j.first_failed_at, j.last_failed_at, j.outcome, j.opened_at, j.open_until,
    j.probe_lease_id, j.failed_probes, j.wait_until, j.in_flight_limit, j.slowed_at, j.release_before, j.released_at
  FROM judged AS j
  ORDER BY j.subscription_id
  ON CONFLICT (subscription_id) DO UPDATE
  SET consecutive_failures = excluded.consecutive_failures, first_failed_at = excluded.first_failed_at, last_failed_at = excluded.last_failed_at,
    last_outcome = excluded.last_outcome, opened_at = excluded.opened_at, open_until = excluded.open_until, probe_lease_id = excluded.probe_lease_id,
    failed_probes = excluded.failed_probes,
    -- These only ever come: what another statement wrote since this one began stays.
    wait_until = coalesce(excluded.wait_until, h.wait_until), in_flight_limit = coalesce(excluded.in_flight_limit, h.in_flight_limit),
    slowed_at = coalesce(excluded.slowed_at, h.slowed_at), release_before = coalesce(excluded.release_before, h.release_before),
    released_at = coalesce(excluded.released_at, h.released_at)
),
suspended AS (
  UPDATE mailhook.subscriptions AS s
  SET status = 'suspended', status_reason = j.suspend_for
  FROM judged AS j
  WHERE s.id = j.subscription_id
    AND s.status = 'active'
    AND s.id = ANY (ARRAY(
      SELECT g.id
      FROM mailhook.subscriptions AS g
      WHERE g.id = ANY (ARRAY(SELECT k.subscription_id FROM judged AS k WHERE k.suspend_for IS NOT NULL))
      ORDER BY g.id
      FOR UPDATE))
  RETURNING s.id
),
-- Events of ours, for the account's other subscriptions.
told AS (
  INSERT INTO mailhook.outbox (account_id, event_type, data)
  SELECT t.account_id, 'subscription.' || t.turn,
    json_build_object('subscription_id', 'sub_' || replace(t.subscription_id::text, '-', ''), 'name', t.name,
      'since', to_char(t.first_failed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'consecutive_failures', greatest(t.consecutive_failures, t.failures_before), 'last_outcome', t.outcome)
  FROM (
    SELECT j.account_id, j.subscription_id, j.name, j.first_failed_at, j.consecutive_failures, j.failures_before, j.outcome, j.turn
    FROM judged AS j WHERE j.turn IS NOT NULL
    UNION ALL
    SELECT j.account_id, j.subscription_id, j.name, j.first_failed_at, j.consecutive_failures, j.failures_before, j.outcome, 'suspended'
    FROM judged AS j WHERE j.subscription_id IN (SELECT suspended.id FROM suspended)
  ) AS t
)
SELECT coalesce(x.ended_as, '')::text AS ended_as, count(*) AS deliveries, count(*) FILTER (WHERE x.ended_reason = 'permanent') AS permanent
FROM decided AS x
GROUP BY x.ended_as;

-- RecordAlike is Record for deliveries of one subscription that were delivered and have all else in common: of one lease and one request with
-- many events. The random part of the ids of the attempts is that of the delivery, which ends once. It takes none of them where the endpoint had
-- failed before, and Record has more to do.
-- name: RecordAlike :one
WITH failing AS MATERIALIZED (
  SELECT h.subscription_id FROM mailhook.subscription_health AS h
  WHERE h.subscription_id = @subscription_id
    AND (h.consecutive_failures > 0 OR h.opened_at IS NOT NULL)
),
removed AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (@delivery_ids::uuid[])
    AND coalesce(d.lease_id = @lease_id::uuid, false) -- not by itself: see Record
    AND NOT EXISTS (SELECT failing.subscription_id FROM failing)
  RETURNING d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt, d.created_at
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, duration_ms, status_code, outcome, response_excerpt, ended_as, delivery_created_at)
  SELECT statement_timestamp() - (@age_ms::int) * interval '1 millisecond',
    ((SELECT lpad(to_hex((extract(epoch FROM statement_timestamp()) * 1000)::bigint), 12, '0') || '7') || substr(r.id::text, 16))::uuid, r.id, r.subscription_id,
    r.account_id, r.event_inserted_at, r.event_id, r.event_type, r.attempt + 1, @duration_ms::int, nullif(@status_code::int, 0), @outcome::text,
    sqlc.narg('excerpt')::bytea, 'delivered', r.created_at
  FROM removed AS r
)
SELECT (SELECT count(*) FROM removed) AS deliveries, EXISTS (SELECT failing.subscription_id FROM failing)::boolean AS is_failing;

-- BuryUnrecordable ends a delivery whose outcome cannot be written for its data: the last resort of Record, so that
-- no delivery is attempted for ever.
-- name: BuryUnrecordable :execrows
WITH ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = @delivery_id::uuid AND d.lease_id = @lease_id::uuid
  RETURNING d.*
),
logged AS (
  INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type,
    number, ended_as, ended_reason, delivery_created_at)
  SELECT statement_timestamp(), mailhook.uuid7(), e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type,
    e.attempt + 1, 'exhausted', 'unrecordable', e.created_at
  FROM ended AS e
)
INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, last_outcome, reason, created_at, ended_at)
SELECT e.id, e.subscription_id, e.account_id, e.event_inserted_at, e.event_id, e.event_type, e.attempt + 1, e.last_outcome, 'unrecordable',
  e.created_at, statement_timestamp()
FROM ended AS e;
