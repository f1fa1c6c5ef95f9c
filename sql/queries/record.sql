-- Record writes a batch of outcomes in one statement: each delivery is deleted or put off by its schedule, its attempt
-- is appended, the exhausted become dead letters, and the health of the subscriptions follows. Only rows that pass the
-- fence (id, lease_id) count: a worker that lost its lease changes nothing. The answer counts the outcomes that passed, by
-- how their deliveries ended ('': they go on); what is missing from it is stale.
--
-- What to do is decided by the caller (outcome.go): @delivered and @suspends. When to do it is computed here, by the
-- database's clock: @age_ms is how long before this statement the attempt began.
-- name: Record :many
WITH outcomes AS MATERIALIZED (
  SELECT unnest(@delivery_ids::uuid[]) AS delivery_id,
    unnest(@id_tails::text[]) AS id_tail,
    unnest(@lease_ids::uuid[]) AS lease_id,
    unnest(@outcomes::text[]) AS outcome,
    unnest(@delivered::boolean[]) AS delivered,
    unnest(@suspends::boolean[]) AS suspends,
    unnest(@status_codes::int[]) AS status_code,
    unnest(@ages_ms::int[]) AS age_ms,
    unnest(@durations_ms::int[]) AS duration_ms,
    unnest(@retry_afters_ms::bigint[]) AS retry_after_ms,
    unnest(@excerpts::bytea[]) AS excerpt
),
-- A delivered one needs no decision: the deletion is its fence.
delivered AS (
  DELETE FROM mailhook.deliveries AS d
  USING outcomes AS o
  WHERE (o).delivered AND d.id = (o).delivery_id AND d.lease_id = (o).lease_id
  RETURNING d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt, d.created_at,
    -- In brackets, for sqlc to look away: it does not know the columns of USING.
    (o).id_tail AS id_tail, (o).outcome AS outcome, (o).status_code AS status_code, (o).age_ms AS age_ms, (o).duration_ms AS duration_ms,
    (o).excerpt AS excerpt
),
failed AS MATERIALIZED (
  SELECT d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt, d.created_at,
    o.id_tail, o.outcome, o.status_code, o.age_ms, o.duration_ms, o.excerpt, o.suspends, o.retry_after_ms
  FROM outcomes AS o
  JOIN mailhook.deliveries AS d ON d.id = o.delivery_id AND d.lease_id = o.lease_id
  WHERE NOT o.delivered
  FOR UPDATE OF d
),
decided AS MATERIALIZED (
  SELECT g.id, g.subscription_id, g.account_id, g.event_inserted_at, g.event_id, g.event_type, g.attempt, g.created_at,
    g.id_tail, g.outcome, g.status_code, g.age_ms, g.duration_ms, g.excerpt, false AS suspends,
    'delivered' AS ended_as, NULL AS ended_reason, NULL::timestamptz AS next_attempt_at, false AS suspend_when_exhausted
  FROM delivered AS g
  UNION ALL
  SELECT f.id, f.subscription_id, f.account_id, f.event_inserted_at, f.event_id, f.event_type, f.attempt, f.created_at,
    f.id_tail, f.outcome, f.status_code, f.age_ms, f.duration_ms, f.excerpt, f.suspends,
    CASE
      WHEN s.id IS NULL OR s.deleted_at IS NOT NULL OR s.status = 'inactive' THEN 'cancelled'
      WHEN f.attempt >= cardinality(s.retry_schedule) THEN 'exhausted'
    END,
    CASE
      WHEN s.id IS NULL OR s.deleted_at IS NOT NULL THEN 'deleted'
      WHEN s.status = 'inactive' THEN 'deactivated'
    END,
    -- The later of Retry-After and the schedule, at most 1 h beyond the schedule.
    statement_timestamp() + greatest(
      scheduled.delay,
      least(f.retry_after_ms * interval '1 millisecond', scheduled.delay + interval '1 hour')),
    coalesce(s.suspend_when_exhausted, false)
  FROM failed AS f
  -- OFFSET 0, and a scalar subquery below: always probed; the planner may hash a whole table for a join or an EXISTS.
  LEFT JOIN LATERAL (
    SELECT b.id, b.deleted_at, b.status, b.retry_schedule, b.retry_jitter, b.suspend_when_exhausted
    FROM mailhook.subscriptions AS b
    WHERE b.id = f.subscription_id
    OFFSET 0
  ) AS s ON true
  CROSS JOIN LATERAL (
    SELECT s.retry_schedule[f.attempt + 1] * (1 + s.retry_jitter * (2 * random() - 1)) AS delay
  ) AS scheduled
),
ended AS (
  DELETE FROM mailhook.deliveries AS d
  WHERE d.id = ANY (ARRAY(SELECT x.id FROM decided AS x WHERE x.ended_as <> 'delivered'))
),
put_off AS (
  UPDATE mailhook.deliveries AS d
  SET attempt = x.attempt + 1, next_attempt_at = x.next_attempt_at, last_outcome = x.outcome, leased_by = NULL, lease_id = NULL
  FROM decided AS x
  WHERE d.id = x.id AND x.ended_as IS NULL
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
  SELECT x.id, x.subscription_id, x.account_id, x.event_inserted_at, x.event_id, x.event_type, x.attempt + 1, x.outcome, 'schedule_ended',
    x.created_at, statement_timestamp()
  FROM decided AS x
  WHERE x.ended_as = 'exhausted'
),
-- Failures add up; a success sets those that failed before back to nothing. One statement in id order: two workers that
-- record for the same subscriptions wait for each other, and never in a circle.
health AS (
  INSERT INTO mailhook.subscription_health AS h (subscription_id, consecutive_failures, first_failed_at, last_failed_at, last_outcome)
  SELECT x.subscription_id,
    CASE WHEN coalesce(bool_or(x.ended_as = 'delivered'), false) THEN 0 ELSE count(*) END, statement_timestamp(), statement_timestamp(), max(x.outcome)
  FROM decided AS x
  GROUP BY x.subscription_id
  HAVING NOT coalesce(bool_or(x.ended_as = 'delivered'), false)
    OR coalesce((SELECT f.consecutive_failures FROM mailhook.subscription_health AS f WHERE f.subscription_id = x.subscription_id), 0) > 0
  ORDER BY x.subscription_id
  ON CONFLICT (subscription_id) DO UPDATE
  SET consecutive_failures = CASE WHEN excluded.consecutive_failures = 0 THEN 0 ELSE h.consecutive_failures + excluded.consecutive_failures END,
    first_failed_at = CASE WHEN excluded.consecutive_failures > 0 AND h.consecutive_failures > 0 THEN h.first_failed_at ELSE excluded.first_failed_at END,
    last_failed_at = CASE WHEN excluded.consecutive_failures = 0 THEN h.last_failed_at ELSE excluded.last_failed_at END,
    last_outcome = excluded.last_outcome
),
suspended AS (
  UPDATE mailhook.subscriptions AS s
  SET status = 'suspended',
    status_reason = CASE WHEN s.id IN (SELECT x.subscription_id FROM decided AS x WHERE x.suspends) THEN 'gone' ELSE 'schedule_ended' END
  WHERE s.status = 'active'
    AND s.id = ANY (ARRAY(
      SELECT g.id
      FROM mailhook.subscriptions AS g
      WHERE g.id IN (
        SELECT x.subscription_id
        FROM decided AS x
        WHERE x.suspends OR (x.ended_as = 'exhausted' AND x.suspend_when_exhausted))
      ORDER BY g.id
      FOR UPDATE))
)
SELECT coalesce(x.ended_as, '')::text AS ended_as, count(*) AS deliveries
FROM decided AS x
GROUP BY x.ended_as;

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
