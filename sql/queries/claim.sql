-- Claim leases due deliveries (retries, released, rescued), fair by construction: it walks the distinct subscriptions
-- that have waiting rows from @after_subscription_id on, at most @max_steps of them, and takes at most its room of each,
-- oldest first. A closed-off subscription (paused, suspended, circuit open, asked to wait, account suspended) costs one
-- look. Of an open circuit whose pause is over one worker takes one delivery: the probe. What had been held and is
-- released goes out at a bounded rate, over all workers; what came later does not wait for it.
-- Of a batch that failed it takes all, or, where another worker is at work on the same subscription, none; deliveries for
-- batches have free slots of their own (@free_batched), and come with how many requests of their subscription may be
-- under way here.
-- It answers the deliveries with their events, where the next walk resumes, which subscriptions may want more room than they have, whether
-- anything else has limited it, and whether a release is under way: one row without a delivery when there is none. A delivery whose event is gone comes with event_found false.
--
-- With @since it looks only at what has come due after it: the index entries of rows that were claimed before lie below, and
-- while somebody holds a snapshot no vacuum takes them away. Then it names the subscriptions by what is due, and leaves
-- probes and releases to the next walk.
--
-- With @is_urgent it sees the urgent deliveries alone, and may take what is kept for them; crowded are subscriptions of theirs that have no
-- room at all. The planner knows its value, and takes the indexes of the urgent ones, each by the condition that it is made with.
--
-- The step of the walk has no due condition: a step over a million future rows of one subscription took 38 ms with it.
-- name: Claim :many
WITH RECURSIVE walked AS (
  SELECT (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL AND d.subscription_id > @after_subscription_id::uuid
      AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'))
    ORDER BY d.subscription_id
    LIMIT 1
  ) AS subscription_id, 1 AS step
  WHERE sqlc.narg('since')::timestamptz IS NULL
  UNION ALL
  SELECT (
    SELECT d.subscription_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL AND d.subscription_id > w.subscription_id
      AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'))
    ORDER BY d.subscription_id
    LIMIT 1
  ), w.step + 1
  FROM walked AS w
  WHERE w.subscription_id IS NOT NULL AND w.step < @max_steps::int
),
recent AS MATERIALIZED (
  SELECT d.subscription_id
  FROM mailhook.deliveries AS d
  WHERE sqlc.narg('since')::timestamptz IS NOT NULL
    AND d.lease_id IS NULL
    AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.next_attempt_at >= '-infinity'))
    AND d.next_attempt_at > sqlc.narg('since')::timestamptz
    AND d.next_attempt_at <= statement_timestamp()
  ORDER BY d.next_attempt_at
  LIMIT 2000
),
named AS MATERIALIZED (
  SELECT w.subscription_id, w.step FROM walked AS w WHERE w.subscription_id IS NOT NULL
  UNION ALL
  SELECT r.subscription_id, row_number() OVER (ORDER BY r.subscription_id)::int
  FROM (SELECT DISTINCT recent.subscription_id FROM recent) AS r
),
crew AS MATERIALIZED (
  SELECT coalesce(array_agg(w.id), '{}') AS workers FROM mailhook.workers AS w
),
-- This and measured are as in dispatch.
elsewhere AS MATERIALIZED (
  SELECT coalesce(jsonb_object_agg(y.subscription_id, y.by_worker), '{}') AS in_flight
  FROM (
    SELECT x.subscription_id, jsonb_object_agg(x.worker_id, x.n) AS by_worker
    FROM (
      SELECT other.id AS worker_id, l.subscription_id, count(*) AS n
      FROM crew
      CROSS JOIN LATERAL unnest(array_remove(crew.workers, @worker_id::uuid)) AS other (id)
      CROSS JOIN LATERAL (
        SELECT d.subscription_id FROM mailhook.deliveries AS d WHERE d.lease_id IS NOT NULL AND d.leased_by = other.id OFFSET 0
      ) AS l
      WHERE @is_new::boolean
      GROUP BY other.id, l.subscription_id
    ) AS x
    GROUP BY x.subscription_id
  ) AS y
),
measured AS MATERIALIZED (
  SELECT w.subscription_id, w.step, s.timeout, s.rate_limit_per_second, s.event_types, s.batch_max_events, h.opened_at, h.release_before, h.consecutive_failures,
    CASE WHEN s.batch_max_events IS NOT NULL THEN greatest(1, share.requests) END AS requests,
    least(
      share.requests * coalesce(s.batch_max_events, 1),
      CASE WHEN s.rate_limit_per_second IS NOT NULL
        THEN greatest(1, s.rate_limit_per_second / greatest(1, cardinality(crew.workers))) * coalesce(s.batch_max_events, 1) END)::int AS width,
    (@limits::jsonb ->> s.id::text)::int AS slow_limit,
    coalesce((@in_flight::jsonb ->> s.id::text)::int, 0) AS ordinary,
    coalesce((@urgent_in_flight::jsonb ->> s.id::text)::int, 0) AS urgent
  FROM named AS w
  CROSS JOIN LATERAL (
    SELECT b.id, b.account_id, b.status, b.deleted_at, b.timeout, b.max_in_flight, b.rate_limit_per_second, b.event_types, b.batch_max_events
    FROM mailhook.subscriptions AS b
    WHERE b.id = w.subscription_id
    OFFSET 0
  ) AS s
  CROSS JOIN crew
  LEFT JOIN LATERAL (
    SELECT y.opened_at, y.open_until, y.wait_until, y.in_flight_limit, y.slowed_at, y.release_before, y.consecutive_failures
    FROM mailhook.subscription_health AS y
    WHERE y.subscription_id = s.id
    OFFSET 0
  ) AS h ON true
  CROSS JOIN LATERAL (
    SELECT mailhook.slowed_cap(s.max_in_flight, h.in_flight_limit, h.slowed_at, statement_timestamp()) AS requests
  ) AS cap
  CROSS JOIN LATERAL (
    SELECT mailhook.in_flight_share(cap.requests, s.id, crew.workers, @worker_id::uuid)
      - CASE WHEN (SELECT e.in_flight FROM elsewhere AS e) ? s.id::text
          THEN mailhook.in_flight_excess(cap.requests, s.id, crew.workers, (SELECT e.in_flight FROM elsewhere AS e) -> s.id::text)
          ELSE 0 END AS requests
  ) AS share
  WHERE s.status = 'active'
    AND s.deleted_at IS NULL
    AND coalesce((SELECT acc.status FROM mailhook.accounts AS acc WHERE acc.id = s.account_id), 'active') <> 'suspended'
    AND coalesce(greatest(h.open_until, h.wait_until), '-infinity') <= statement_timestamp()
    -- Two workers would each get a part of a batch.
    AND CASE WHEN s.batch_max_events IS NOT NULL THEN pg_try_advisory_xact_lock(hashtextextended(s.id::text, 2)) ELSE true END
),
-- No other statement leases beside a claim of the urgent lane, but for a second dispatch, which there is room for: so it has all that is left;
-- of slow endpoints at least its reserve.
open AS MATERIALIZED (
  SELECT w.*, least(greatest(@max_of_each::int, w.batch_max_events), w.whole) AS room
  FROM (
    SELECT m.*, CASE WHEN @is_urgent::boolean
      THEN greatest(least(m.width, m.slow_limit) - m.ordinary, least(m.width - m.ordinary, mailhook.urgent_reserve(m.width, m.event_types))) - m.urgent
      ELSE least(m.width - m.ordinary - greatest(m.urgent, mailhook.urgent_reserve(m.width, m.event_types)), m.slow_limit - m.ordinary - m.urgent)
    END AS whole
    FROM measured AS m
  ) AS w
),
-- The probe and what may be released are for one worker at a time: for whoever locks the row, as it is then.
gated AS MATERIALIZED (
  SELECT o.subscription_id, o.step, o.timeout, l.opened_at, l.rate,
    -- A second's worth at most, or one where that takes longer. Of a rate limit no more than half of this worker's share may be under way:
    -- what is new would wait behind it, and the rest is for the other workers.
    least(floor(l.rate * least(greatest(1, 1 / l.rate), extract(epoch FROM statement_timestamp() - l.released_at))),
      CASE WHEN o.rate_limit_per_second IS NOT NULL THEN greatest(1, (o.width + 1) / 2 - o.ordinary) END)::int AS released
  FROM open AS o
  CROSS JOIN LATERAL (
    SELECT y.opened_at, y.released_at, least((SELECT i.release_rate FROM mailhook.installation AS i), o.rate_limit_per_second * coalesce(o.batch_max_events, 1) / 2) AS rate
    FROM mailhook.subscription_health AS y
    WHERE y.subscription_id = o.subscription_id
      AND (y.open_until <= statement_timestamp()
        OR (y.opened_at IS NULL AND y.released_at <= statement_timestamp() - interval '100 milliseconds'))
    FOR UPDATE SKIP LOCKED
  ) AS l
  WHERE sqlc.narg('since')::timestamptz IS NULL
    AND o.room > 0
    AND (o.opened_at IS NOT NULL OR o.release_before IS NOT NULL)
    AND (SELECT d.id
      FROM mailhook.deliveries AS d
      WHERE d.lease_id IS NULL
        AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'))
        AND (d.subscription_id, d.next_attempt_at) > (o.subscription_id, '-infinity')
        AND (d.subscription_id, d.next_attempt_at) <= (o.subscription_id, statement_timestamp())
      ORDER BY d.subscription_id, d.next_attempt_at
      LIMIT 1) IS NOT NULL
),
-- What to take of each, by when it was due. An open circuit: the probe. A release: its part, no more than half of the room
-- and of a rate limit, and what came later, which so does not wait for it.
spans AS MATERIALIZED (
  SELECT o.subscription_id, o.step, coalesce(sqlc.narg('since')::timestamptz, '-infinity') AS due_after, statement_timestamp() AS due_by, o.room, false AS is_release,
    o.requests IS NOT NULL AS is_batched
  FROM open AS o
  WHERE o.opened_at IS NULL AND o.release_before IS NULL
  UNION ALL
  SELECT o.subscription_id, o.step, '-infinity', statement_timestamp(), 1, false, o.requests IS NOT NULL
  FROM open AS o
  JOIN gated AS g ON g.subscription_id = o.subscription_id AND g.opened_at IS NOT NULL
  UNION ALL
  SELECT o.subscription_id, o.step, '-infinity', least(o.release_before, statement_timestamp()), least((o.room + 1) / 2, g.released), true, o.requests IS NOT NULL
  FROM open AS o
  JOIN gated AS g ON g.subscription_id = o.subscription_id AND g.opened_at IS NULL
  UNION ALL
  SELECT o.subscription_id, o.step, greatest(o.release_before, sqlc.narg('since')::timestamptz), statement_timestamp(), o.room - coalesce(least((o.room + 1) / 2, g.released), 0), false, o.requests IS NOT NULL
  FROM open AS o
  LEFT JOIN gated AS g ON g.subscription_id = o.subscription_id
  WHERE o.opened_at IS NULL AND o.release_before IS NOT NULL
),
single AS MATERIALIZED (
  SELECT due.id, due.event_inserted_at, due.event_id, p.step, p.is_release, NULL::uuid AS batch_id
  FROM (SELECT spans.* FROM spans WHERE NOT spans.is_batched ORDER BY spans.step) AS p -- in their turn, where the slots run out
  CROSS JOIN LATERAL (
    SELECT d.id, d.event_inserted_at, d.event_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'))
      -- Compared as rows: with an equality the planner may take the index by time alone, which leads past the due rows of all
      -- other subscriptions.
      AND (d.subscription_id, d.next_attempt_at) > (p.subscription_id, p.due_after)
      AND (d.subscription_id, d.next_attempt_at) <= (p.subscription_id, p.due_by)
    ORDER BY d.subscription_id, d.next_attempt_at
    LIMIT greatest(0, p.room)
    FOR UPDATE SKIP LOCKED
  ) AS due
  WHERE p.room > 0
  LIMIT @free_slots::int
),
batched AS MATERIALIZED (
  SELECT due.id, due.event_inserted_at, due.event_id, p.step, p.is_release, due.batch_id
  FROM (SELECT spans.* FROM spans WHERE spans.is_batched ORDER BY spans.step) AS p
  CROSS JOIN LATERAL (
    SELECT d.id, d.event_inserted_at, d.event_id, d.batch_id
    FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NULL
      AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'))
      AND (d.subscription_id, d.next_attempt_at) > (p.subscription_id, p.due_after)
      AND (d.subscription_id, d.next_attempt_at) <= (p.subscription_id, p.due_by)
    ORDER BY d.subscription_id, d.next_attempt_at
    LIMIT greatest(0, p.room)
    FOR UPDATE SKIP LOCKED
  ) AS due
  WHERE p.room > 0
  LIMIT @free_batched::int
),
-- Their batches as a whole, beyond room and slots: of a subscription that is one batch at most.
completed AS MATERIALIZED (
  SELECT whole.id, whole.event_inserted_at, whole.event_id, g.step, g.is_release, g.batch_id
  FROM (
    SELECT b.batch_id, min(b.step) AS step, bool_or(b.is_release) AS is_release
    FROM batched AS b
    WHERE b.batch_id IS NOT NULL
    GROUP BY b.batch_id
  ) AS g
  CROSS JOIN LATERAL (
    SELECT d.id, d.event_inserted_at, d.event_id
    FROM mailhook.deliveries AS d
    WHERE d.batch_id = g.batch_id AND d.lease_id IS NULL
    FOR UPDATE SKIP LOCKED
  ) AS whole
),
locked AS MATERIALIZED (
  SELECT s.* FROM single AS s
  UNION ALL
  SELECT b.* FROM batched AS b WHERE b.batch_id IS NULL
  UNION ALL
  SELECT c.* FROM completed AS c
),
-- By bytes, too; the first one always, and of a batch all where there is space for the first.
kept AS MATERIALIZED (
  SELECT sized.id, sized.step, sized.is_release
  FROM (
    SELECT l.id, l.step, l.is_release, rank() OVER by_batch AS nth, sum(coalesce(e.bytes, 0)) OVER by_batch AS bytes_so_far
    FROM locked AS l
    -- OFFSET 0: probed; for a join the planner may read all events.
    LEFT JOIN LATERAL (
      SELECT octet_length(x.data::text) AS bytes
      FROM mailhook.events AS x
      WHERE x.inserted_at = l.event_inserted_at AND x.id = l.event_id
      OFFSET 0
    ) AS e ON true
    WINDOW by_batch AS (ORDER BY l.step, l.batch_id, CASE WHEN l.batch_id IS NULL THEN l.id END)
  ) AS sized
  WHERE sized.nth = 1 OR sized.bytes_so_far <= @max_bytes::bigint
),
-- What each still has when this claim has taken its part.
left_over AS MATERIALIZED (
  SELECT o.subscription_id, o.width, o.room - k.taken AS room, o.whole - k.taken AS whole
  FROM open AS o
  CROSS JOIN LATERAL (SELECT count(*) AS taken FROM kept AS k WHERE k.step = o.step) AS k
  WHERE o.opened_at IS NULL AND o.release_before IS NULL
),
-- Only where something was taken: the slots may have run out before. What was released is paid for by its time.
marked AS (
  UPDATE mailhook.subscription_health AS h
  SET open_until = CASE WHEN g.opened_at IS NOT NULL THEN statement_timestamp() + g.timeout + interval '5 seconds' END,
    probe_lease_id = CASE WHEN g.opened_at IS NOT NULL THEN @lease_id::uuid END,
    released_at = greatest(h.released_at, CASE WHEN h.release_before IS NOT NULL THEN statement_timestamp() - greatest(1, 1 / g.rate) * interval '1 second' END)
      + taken.released / g.rate * interval '1 second'
  FROM gated AS g
  JOIN (
    SELECT k.step, count(*) FILTER (WHERE k.is_release) AS released FROM kept AS k GROUP BY k.step
  ) AS taken ON taken.step = g.step
  -- The array, for the planner would read the whole table for a join.
  WHERE h.subscription_id = ANY (ARRAY(SELECT x.subscription_id FROM gated AS x))
    AND h.subscription_id = g.subscription_id
),
-- No further condition here: the lock has decided, and one more would change the plan from 0.7 ms to 351.
claimed AS (
  UPDATE mailhook.deliveries AS d
  SET leased_by = @worker_id::uuid, lease_id = @lease_id::uuid
  WHERE d.id = ANY (ARRAY(SELECT k.id FROM kept AS k))
  RETURNING d.id, d.subscription_id, d.event_inserted_at, d.event_id, d.attempt, d.account_id, d.event_type, d.order_key, d.batch_id
),
-- How many requests of each subscription with batches may be under way here.
batching AS MATERIALIZED (
  SELECT coalesce(jsonb_object_agg(o.subscription_id, o.requests), '{}') AS requests
  FROM open AS o
  WHERE o.requests IS NOT NULL AND o.step IN (SELECT k.step FROM kept AS k)
),
-- Where the slots of either kind or the bytes ran out.
ended AS MATERIALIZED (
  SELECT least(
    CASE WHEN (SELECT count(*) FROM single) >= @free_slots::int THEN (SELECT max(s.step) FROM single AS s) END,
    CASE WHEN (SELECT count(*) FROM batched) >= @free_batched::int THEN (SELECT max(b.step) FROM batched AS b) END,
    CASE WHEN (SELECT count(*) FROM kept) < (SELECT count(*) FROM locked) THEN (SELECT max(k.step) FROM kept AS k) END) AS step
)
SELECT resume.subscription_id AS resume_after,
  resume.limited,
  EXISTS (SELECT FROM open AS o WHERE o.release_before IS NOT NULL)::boolean AS releasing,
  statement_timestamp()::timestamptz AS claimed_at,
  resume.crowded,
  resume.wanting,
  c.id AS delivery_id,
  c.batch_id,
  coalesce(((SELECT b.requests FROM batching AS b) ->> c.subscription_id::text)::int, 0)::int AS requests,
  coalesce(c.subscription_id = ANY (ARRAY(SELECT g.subscription_id FROM gated AS g WHERE g.opened_at IS NOT NULL)), false)::boolean AS is_probe,
  -- Of a batch that failed: its endpoint has taken something since, or was asked for nothing else.
  coalesce(c.subscription_id = ANY (ARRAY(SELECT o.subscription_id FROM open AS o WHERE o.requests IS NOT NULL AND coalesce(o.consecutive_failures, 0) < 2)), false)::boolean AS is_well,
  coalesce(c.subscription_id, resume.subscription_id)::uuid AS subscription_id,
  coalesce(c.attempt, 0)::int AS attempt,
  coalesce(c.order_key, 0)::bigint AS order_key, -- 0: in no order
  coalesce(c.account_id, '')::text AS account_id,
  coalesce(c.event_type, '')::text AS event_type,
  coalesce(mailhook.is_urgent(c.event_type), false)::boolean AS is_urgent,
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
    CASE WHEN sqlc.narg('since')::timestamptz IS NOT NULL THEN '00000000-0000-0000-0000-000000000000'
      ELSE (SELECT o.subscription_id FROM open AS o WHERE o.step = (SELECT e.step FROM ended AS e)) END,
    (SELECT w.subscription_id FROM walked AS w WHERE w.step = @max_steps::int),
    '00000000-0000-0000-0000-000000000000')::uuid AS subscription_id,
  ARRAY(
    SELECT o.subscription_id
    FROM open AS o
    WHERE @is_urgent::boolean
      AND o.room <= 0
      AND (SELECT d.id
        FROM mailhook.deliveries AS d
        WHERE d.lease_id IS NULL
          AND mailhook.is_urgent(d.event_type)
          AND d.subscription_id >= '00000000-0000-0000-0000-000000000000'
          AND (d.subscription_id, d.next_attempt_at) > (o.subscription_id, '-infinity')
          AND (d.subscription_id, d.next_attempt_at) <= (o.subscription_id, statement_timestamp())
        ORDER BY d.subscription_id, d.next_attempt_at
        LIMIT 1) IS NOT NULL
    LIMIT 100
  )::uuid[] AS crowded,
  ARRAY(
    SELECT l.subscription_id FROM left_over AS l WHERE l.whole <= 0 AND l.width > 0
  )::uuid[] AS wanting,
  (EXISTS (SELECT FROM left_over AS l WHERE l.room <= 0 AND l.whole > 0)
    OR (SELECT count(*) FROM recent) >= 2000
    OR (sqlc.narg('since')::timestamptz IS NOT NULL
      AND (SELECT e.step FROM ended AS e) IS NOT NULL)
    -- Those for batches wait for slots of theirs, or those without for theirs.
    OR (@free_batched::int <= 0 AND EXISTS (SELECT FROM spans AS p WHERE p.is_batched AND p.room > 0))
    OR (@free_slots::int <= 0 AND EXISTS (SELECT FROM spans AS p WHERE NOT p.is_batched AND p.room > 0)))::boolean AS limited
) AS resume
LEFT JOIN claimed AS c ON true
LEFT JOIN LATERAL (
  SELECT x.*
  FROM mailhook.events AS x
  WHERE x.inserted_at = c.event_inserted_at AND x.id = c.event_id
  OFFSET 0
) AS e ON true;

-- Now is the time of the database.
-- name: Now :one
SELECT statement_timestamp()::timestamptz AS now;

-- AnyDue says whether a waiting delivery is due, or has come due after @since: a look at one index entry, so that an idle
-- worker's claim costs nothing. Deliveries that are held answer true as well. @is_urgent: of the urgent lane.
-- name: AnyDue :one
SELECT EXISTS (
  SELECT FROM mailhook.deliveries AS d
  WHERE d.lease_id IS NULL
    AND (NOT @is_urgent::boolean OR (mailhook.is_urgent(d.event_type) AND d.next_attempt_at >= '-infinity'))
    AND d.next_attempt_at > coalesce(sqlc.narg('since')::timestamptz, '-infinity')
    AND d.next_attempt_at <= statement_timestamp()
)::boolean AS any_due,
statement_timestamp()::timestamptz AS asked_at;
