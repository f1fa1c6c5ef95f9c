-- ListRunningReplays names the replays under way, one of each account after the other, and of an account first those that wait for longest.
-- nth is the place of a replay among those of its account, from 1.
-- name: ListRunningReplays :many
SELECT r.id, r.subscription_id, row_number() OVER (PARTITION BY r.account_id ORDER BY r.advanced_at, r.id) AS nth
FROM mailhook.replays AS r
WHERE r.state = 'running'
ORDER BY nth, r.advanced_at, r.id;

-- TryRepeats is LockRepeats for who need not wait.
-- name: TryRepeats :one
SELECT pg_try_advisory_xact_lock(hashtextextended((@subscription_id::uuid)::text, 3))::boolean;

-- AdvanceReplay makes new deliveries of the next events that the subscription matches today, of all or of those with dead letters,
-- oldest events first, and removes those dead letters. A pair that is unfinished is skipped: its dead letters go, too, as the
-- unfinished delivery stands for it. Those that go in order are inserted blocked, and their keys are answered for Unblock. Call it
-- after LockPartitions: what moves into a new partition meanwhile would be passed over.
-- name: AdvanceReplay :one
WITH replay AS (
  -- What the rate allows since it last released, read under the lock: several workers do not add up.
  SELECT r.*,
    (SELECT s.ordering FROM mailhook.subscriptions AS s WHERE s.id = r.subscription_id) AS ordering,
    greatest(0, least(1000, floor(r.rate_per_second * extract(epoch FROM statement_timestamp() - r.advanced_at))))::int AS allowance,
    -- No EXISTS, for which the planner may hash the whole table.
    coalesce((SELECT s.deleted_at IS NULL AND s.status <> 'inactive' FROM mailhook.subscriptions AS s WHERE s.id = r.subscription_id), false) AS may_release
  FROM mailhook.replays AS r
  WHERE r.id = @id::uuid AND r.state = 'running'
  FOR UPDATE SKIP LOCKED
),
-- A bounded number of events is read in a step, however few of them match.
scanned AS MATERIALIZED (
  SELECT e.inserted_at, e.id, e.account_id, e.event_type, s.id AS subscription_id,
    e.dispatched_at >= r.since AND e.dispatched_at < r.until
      AND e.duplicate_of IS NULL
      AND e.erased_at IS NULL
      AND mailhook.event_type_ancestors(e.event_type) && s.event_types
      AND (r.event_types IS NULL OR mailhook.event_type_ancestors(e.event_type) && r.event_types)
      AND mailhook.passes_filters(e.sending_domain, e.sending_node, e.bridge, mailhook.address_of(e.dedicated_ip),
        mailhook.fields_of(e.event_type, e.recipient, e.message_id, e.campaign_id, e.sending_domain, e.sending_node, e.bridge, e.dedicated_ip, e.data),
        s.filter_sending_domain, s.filter_sending_node, s.filter_bridge, s.filter_dedicated_ip, s.filter)
      AND NOT mailhook.is_about(e.event_type, e.data, s.id) AS is_match
  FROM replay AS r
  JOIN mailhook.subscriptions AS s ON s.id = r.subscription_id
  -- LATERAL: in the order of the index. A join with an ORDER BY behind it read and sorted all that was left.
  CROSS JOIN LATERAL (
    (
      SELECT l.inserted_at, l.id, l.account_id, l.event_type, l.recipient, l.message_id, l.campaign_id, l.sending_domain, l.sending_node,
        l.bridge, l.dedicated_ip, l.data, l.duplicate_of, l.dispatched_at, l.erased_at
      FROM mailhook.events AS l
      WHERE r.source = 'all'
        AND l.account_id = r.account_id
        AND (l.inserted_at, l.id) > (r.after_inserted_at, r.after_id)
        AND l.inserted_at < r.until
      ORDER BY l.inserted_at, l.id
      LIMIT @max_scanned::int
    )
    UNION ALL
    (
      SELECT pair.event_inserted_at, pair.event_id, l.account_id, l.event_type, l.recipient, l.message_id, l.campaign_id, l.sending_domain, l.sending_node,
        l.bridge, l.dedicated_ip, l.data, l.duplicate_of, l.dispatched_at, l.erased_at
      FROM (
        -- A pair has several where its delivery was retried more than once.
        SELECT DISTINCT d.event_inserted_at, d.event_id
        FROM mailhook.dead_letters AS d
        WHERE r.source = 'exhausted'
          AND d.subscription_id = r.subscription_id
          AND (d.event_inserted_at, d.event_id) > (r.after_inserted_at, r.after_id)
          AND d.event_inserted_at < r.until
        ORDER BY d.event_inserted_at, d.event_id
        LIMIT @max_scanned::int
      ) AS pair
      LEFT JOIN LATERAL (
        SELECT y.* FROM mailhook.events AS y WHERE y.inserted_at = pair.event_inserted_at AND y.id = pair.event_id OFFSET 0
      ) AS l ON true
    )
  ) AS e
  WHERE r.may_release AND r.allowance > 0
),
picked AS MATERIALIZED (
  SELECT x.inserted_at, x.id, x.account_id, x.event_type, x.subscription_id
  FROM scanned AS x
  WHERE x.is_match
  ORDER BY x.inserted_at, x.id
  LIMIT (SELECT replay.allowance FROM replay)
),
-- Where this step has come to: the last one released when the rate stopped it, else the last one read.
reached AS (
  SELECT x.inserted_at, x.id
  FROM scanned AS x
  WHERE (SELECT count(*) FROM picked) < (SELECT replay.allowance FROM replay)
    OR (x.inserted_at, x.id) <= (SELECT p.inserted_at, p.id FROM picked AS p ORDER BY p.inserted_at DESC, p.id DESC LIMIT 1)
  ORDER BY x.inserted_at DESC, x.id DESC
  LIMIT 1
),
-- Locked, so that of a replay and a retry of the same one makes a delivery; what is locked already is being retried or erased.
letters AS MATERIALIZED (
  SELECT x.id, x.event_inserted_at, x.event_id
  FROM picked AS p
  CROSS JOIN LATERAL (
    SELECT l.id, l.event_inserted_at, l.event_id
    FROM mailhook.dead_letters AS l
    WHERE l.subscription_id = p.subscription_id AND l.event_inserted_at = p.inserted_at AND l.event_id = p.id
    FOR UPDATE SKIP LOCKED
  ) AS x
),
inserted AS (
  INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, replay_id, order_key)
  SELECT p.subscription_id, p.account_id, p.inserted_at, p.id, p.event_type,
    CASE WHEN event.order_key IS NULL THEN statement_timestamp() ELSE 'infinity' END, statement_timestamp(), @id::uuid, event.order_key
  FROM picked AS p
  CROSS JOIN LATERAL (
    SELECT e.erased_at, mailhook.order_key((SELECT replay.ordering FROM replay), e.message_id, e.recipient) AS order_key
    FROM mailhook.events AS e
    WHERE e.inserted_at = p.inserted_at AND e.id = p.id
    FOR SHARE
  ) AS event
  WHERE event.erased_at IS NULL
    AND ((SELECT replay.source FROM replay) = 'all' OR coalesce((p.inserted_at, p.id) IN (SELECT l.event_inserted_at, l.event_id FROM letters AS l), false))
    AND NOT EXISTS (
      SELECT FROM mailhook.deliveries AS d
      WHERE d.event_inserted_at = p.inserted_at AND d.event_id = p.id AND d.subscription_id = p.subscription_id)
  RETURNING id, order_key
),
removed AS (
  DELETE FROM mailhook.dead_letters AS l
  WHERE l.id = ANY (ARRAY(SELECT x.id FROM letters AS x))
),
advanced AS (
  UPDATE mailhook.replays AS r
  SET done = r.done + (SELECT count(*) FROM inserted),
    -- What is left of the time is less than one event's, and counts the next time.
    advanced_at = CASE
      WHEN replay.allowance > 0 THEN greatest(r.advanced_at + replay.allowance / r.rate_per_second * interval '1 second',
        statement_timestamp() - 1 / r.rate_per_second * interval '1 second')
      ELSE r.advanced_at
    END,
    after_inserted_at = coalesce((SELECT reached.inserted_at FROM reached), r.after_inserted_at),
    after_id = coalesce((SELECT reached.id FROM reached), r.after_id),
    state = CASE
      WHEN NOT replay.may_release THEN 'cancelled'
      WHEN (SELECT count(*) FROM picked) < replay.allowance AND (SELECT count(*) FROM scanned) < @max_scanned::int THEN 'done'
      ELSE r.state
    END
  FROM replay
  WHERE r.id = replay.id
  RETURNING r.state
)
SELECT (SELECT count(*) FROM inserted)::bigint AS inserted, coalesce((SELECT a.state FROM advanced AS a), '')::text AS state,
  ARRAY(SELECT DISTINCT i.order_key FROM inserted AS i WHERE i.order_key IS NOT NULL)::bigint[] AS order_keys;
