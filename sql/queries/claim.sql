-- Claim leases due deliveries (retries, released, rescued), fair by construction: it walks the distinct subscriptions
-- that have waiting rows from @after_subscription_id on, at most @max_steps of them, and takes at most its room of each,
-- oldest first. A closed-off subscription (paused, suspended, circuit open, account suspended) costs one probe.
-- It answers the deliveries with their events, where the next walk resumes, and whether a subscription had no more room:
-- one row without a delivery when there is none. A delivery whose event is gone comes with event_found false.
--
-- The step of the walk has no due condition: a step over a million future rows of one subscription took 38 ms with it.
-- name: Claim :many
WITH RECURSIVE walked AS (
  SELECT (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL AND d.subscription_id > @after_subscription_id::uuid
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS subscription_id, 1 AS step
  UNION ALL
  SELECT (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL AND d.subscription_id > w.subscription_id
    ORDER BY d.subscription_id
    LIMIT 1
  ), w.step + 1
  FROM walked AS w
  WHERE w.subscription_id IS NOT NULL AND w.step < @max_steps::int
),
open AS MATERIALIZED (
  SELECT w.subscription_id, w.step,
    (least(
      mailhook.in_flight_share(s.max_in_flight, s.id, @worker_count::int, @worker_rank::int),
      CASE WHEN s.rate_limit_per_second IS NOT NULL THEN greatest(1, s.rate_limit_per_second / @worker_count::int) END) - coalesce((@in_flight::jsonb ->> s.id::text)::int, 0))::int AS room
  FROM walked AS w
  JOIN mailhook.subscriptions AS s ON s.id = w.subscription_id
  WHERE s.status = 'active'
    AND s.deleted_at IS NULL
    AND coalesce((SELECT acc.status FROM mailhook.accounts AS acc WHERE acc.id = s.account_id), 'active') <> 'suspended'
    AND coalesce((SELECT h.open_until FROM mailhook.subscription_health AS h WHERE h.subscription_id = s.id), '-infinity') <= statement_timestamp()
),
locked AS MATERIALIZED (
  SELECT due.id, due.event_inserted_at, due.event_id, o.step
  FROM open AS o
  CROSS JOIN LATERAL (
    SELECT d.id, d.event_inserted_at, d.event_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND d.subscription_id = o.subscription_id
      AND d.next_attempt_at <= statement_timestamp()
    ORDER BY d.next_attempt_at
    LIMIT greatest(0, least(o.room, @max_of_each::int))
    FOR UPDATE SKIP LOCKED
  ) AS due
  WHERE o.room > 0
  LIMIT @free_slots::int
),
-- By bytes, too; the first one always.
kept AS MATERIALIZED (
  SELECT sized.id, sized.step
  FROM (
    SELECT l.id, l.step,
      row_number() OVER (ORDER BY l.step, l.id) AS nth,
      sum(coalesce(octet_length(e.data::text), 0)) OVER (ORDER BY l.step, l.id) AS bytes_so_far
    FROM locked AS l
    LEFT JOIN mailhook.events AS e ON e.inserted_at = l.event_inserted_at AND e.id = l.event_id
  ) AS sized
  WHERE sized.nth = 1 OR sized.bytes_so_far <= @max_bytes::bigint
),
-- No further condition here: the lock has decided, and one more would change the plan from 0.7 ms to 351.
claimed AS (
  UPDATE mailhook.deliveries AS d
  SET leased_by = @worker_id::uuid, lease_id = @lease_id::uuid
  WHERE d.id = ANY (ARRAY(SELECT k.id FROM kept AS k))
  RETURNING d.id, d.subscription_id, d.event_inserted_at, d.event_id, d.attempt, d.account_id, d.event_type
)
SELECT resume.subscription_id AS resume_after,
  resume.limited,
  c.id AS delivery_id,
  coalesce(c.subscription_id, resume.subscription_id)::uuid AS subscription_id,
  coalesce(c.attempt, 0)::int AS attempt,
  coalesce(c.account_id, '')::text AS account_id,
  coalesce(c.event_type, '')::text AS event_type,
  coalesce(c.event_inserted_at, 'epoch')::timestamptz AS event_inserted_at,
  coalesce(c.event_id, 0)::bigint AS event_id,
  (e.id IS NOT NULL)::boolean AS event_found,
  coalesce(e.occurred_at, 'epoch')::timestamptz AS occurred_at,
  coalesce(e.recipient, '')::text AS recipient,
  coalesce(e.message_id, '')::text AS message_id,
  coalesce(e.campaign_id, '')::text AS campaign_id,
  coalesce(e.sending_domain, '')::text AS sending_domain,
  coalesce(e.sending_node, '')::text AS sending_node,
  coalesce(e.bridge, '')::text AS bridge,
  coalesce(e.dedicated_ip, '')::text AS dedicated_ip,
  coalesce(e.data, '{}')::json AS data
FROM (
  -- Where the slots or the bytes ran out, else where the steps ran out, else the zero id: start over.
  SELECT coalesce(
    CASE WHEN (SELECT count(*) FROM locked) >= @free_slots::int OR (SELECT count(*) FROM kept) < (SELECT count(*) FROM locked)
      THEN (SELECT o.subscription_id FROM open AS o WHERE o.step = (SELECT max(k.step) FROM kept AS k)) END,
    (SELECT w.subscription_id FROM walked AS w WHERE w.step = @max_steps::int),
    '00000000-0000-0000-0000-000000000000')::uuid AS subscription_id,
  EXISTS (
    SELECT FROM open AS o
    WHERE o.room <= (SELECT count(*) FROM kept AS k WHERE k.step = o.step)
  )::boolean AS limited
) AS resume
LEFT JOIN claimed AS c ON true
LEFT JOIN mailhook.events AS e ON e.inserted_at = c.event_inserted_at AND e.id = c.event_id;

-- AnyDue says whether a waiting delivery is due: a look at one index entry, so that an idle worker's claim costs nothing.
-- Deliveries that are held answer true as well.
-- name: AnyDue :one
SELECT EXISTS (
  SELECT FROM mailhook.deliveries AS d
  WHERE d.lease_id IS NULL AND d.next_attempt_at <= statement_timestamp()
)::boolean;
