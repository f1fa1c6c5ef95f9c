-- Dispatch takes up to @max_rows rows from the outbox above @after_id, and those of @holes (ids that were missing
-- below it: transactions that commit late), logs them as events, matches subscriptions, and inserts the deliveries:
-- already leased to @worker_id as far as its free slots and each subscription's room go, waiting otherwise.
-- It answers a row for each outbox row that it took, with the event's body only where there is something to send. One of
-- them (the first by id) lists the leased deliveries: four arrays of the same length; the subscriptions that get
-- batches, with how many requests of each may be under way here, and whether all of these have room for two more such dispatches side by side; and those
-- that want more room than they have. Deliveries for batches have free slots of their own
-- (@free_batched), and their subscriptions room for max_in_flight times as many as a batch holds: the requests are
-- bounded by the worker.
--
-- @is_urgent is the urgent lane: it passes its rows as @holes, and leases within what the ordinary lane leaves to it.
--
-- Invariants: an outbox row leaves in the same statement that logs or quarantines it; SKIP LOCKED lets any number
-- of workers run it side by side; the places are collected into an array, because an IN over a LIMIT … FOR UPDATE may
-- be run as a nested loop that takes more rows than its LIMIT. The planner takes the batch for a handful of rows, so
-- batch is not joined with batch in a way that may become a nested loop of 1,000 × 1,000 (but for what is rare: refused, duplicate): hashed
-- IN, windows, arrays, and one FULL JOIN, which is hashed. What a subscription has in flight comes as one jsonb object, looked up by key.
-- Of a key that goes in order (order_key) the first of the batch is leased like any, unless another delivery of it is unfinished;
-- the others are inserted blocked. It takes that no other dispatch is under way (@in_turn: InTurn), which this one would not
-- see; otherwise all with a key are blocked. The keys of the blocked are listed: their heads may end while this statement
-- runs, so they are for Unblock after its commit. A unique violation of deliveries_head_key says that a head came in between,
-- of a replay: run it again.
-- Tests that the host's values pass are known limits only; any other data error fails the statement, and the caller
-- halves the batch until it can quarantine the one row.
-- name: Dispatch :many
WITH late AS MATERIALIZED (
  SELECT (o).ctid AS place, o.id, coalesce(octet_length(o.data::text), 0) AS bytes
  FROM mailhook.outbox AS o
  WHERE o.id = ANY (@holes::bigint[])
  ORDER BY o.id
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED
),
found AS MATERIALIZED (
  SELECT (o).ctid AS place, o.id, coalesce(octet_length(o.data::text), 0) AS bytes
  FROM mailhook.outbox AS o
  WHERE o.id > @after_id::bigint
  ORDER BY o.id
  LIMIT @max_rows::int
  FOR UPDATE SKIP LOCKED
),
-- By number and by bytes; the first one always, however large.
picked AS MATERIALIZED (
  SELECT budgeted.place
  FROM (
    SELECT merged.place,
      row_number() OVER (ORDER BY merged.id) AS nth,
      sum(merged.bytes) OVER (ORDER BY merged.id) AS bytes_so_far
    FROM (SELECT late.place, late.id, late.bytes FROM late UNION ALL SELECT found.place, found.id, found.bytes FROM found) AS merged
  ) AS budgeted
  WHERE budgeted.nth = 1
    OR (budgeted.nth <= @max_rows::int AND budgeted.bytes_so_far <= @max_bytes::bigint)
),
-- (o).ctid is o.ctid as sqlc reads it. A row that somebody updates in this moment stays for the next dispatch.
taken AS (
  DELETE FROM mailhook.outbox AS o
  WHERE (o).ctid = ANY (ARRAY(SELECT picked.place FROM picked))
  RETURNING o.*
),
checked AS MATERIALIZED (
  SELECT c.*,
    mailhook.refusal_of(c.event_type, c.account_id, c.recipient, c.message_id, c.campaign_id, c.sending_domain, c.sending_node, c.bridge,
      c.dedupe_key, c.occurred_at, c.dedicated_ip, c.dedicated_address, c.data) AS refused
  FROM (
    -- '' counts as absent.
    SELECT t.id,
      coalesce(t.inserted_at, statement_timestamp()) AS inserted_at,
      coalesce(nullif(t.account_id, ''), 'default') AS account_id,
      mailhook.leaf_type(t.event_type, t.data) AS event_type,
      coalesce(t.occurred_at, t.inserted_at, statement_timestamp()) AS occurred_at,
      nullif(t.recipient, '') AS recipient,
      nullif(t.message_id, '') AS message_id,
      nullif(t.campaign_id, '') AS campaign_id,
      nullif(t.sending_domain, '') AS sending_domain,
      nullif(t.sending_node, '') AS sending_node,
      nullif(t.bridge, '') AS bridge,
      nullif(t.dedicated_ip, '') AS dedicated_ip,
      CASE WHEN t.dedicated_ip <> '' THEN mailhook.address_of(t.dedicated_ip) END AS dedicated_address,
      nullif(t.dedupe_key, '') AS dedupe_key,
      CASE WHEN t.data::text <> 'null' THEN t.data END AS data
    FROM taken AS t
    OFFSET 0
  ) AS c
),
quarantined AS (
  INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, occurred_at, recipient, message_id, campaign_id,
    sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data, reason, error_code)
  SELECT c.inserted_at, t.id, t.account_id, t.event_type, t.occurred_at, t.recipient, t.message_id, t.campaign_id,
    t.sending_domain, t.sending_node, t.bridge, t.dedicated_ip, t.dedupe_key, t.data, substr(c.refused, 7), left(c.refused, 5)
  FROM checked AS c
  JOIN taken AS t ON t.id = c.id
  WHERE c.refused IS NOT NULL
  RETURNING id
),
-- What is asked about subscriptions is asked once for each account and type of the batch.
kinds AS MATERIALIZED (
  SELECT DISTINCT c.account_id, c.event_type FROM checked AS c WHERE c.refused IS NULL
),
-- Once for each type: the nodes that a subscription may name to get it, as far as any does.
types AS MATERIALIZED (
  SELECT d.event_type, ARRAY(
    SELECT node.event_type
    FROM unnest(mailhook.event_type_ancestors(d.event_type)) AS node (event_type)
    WHERE (SELECT t.event_type FROM mailhook.subscription_event_types AS t WHERE t.event_type = node.event_type LIMIT 1) IS NOT NULL) AS nodes
  FROM (SELECT DISTINCT k.event_type FROM kinds AS k) AS d
),
-- In key order, so that two dispatchers wait for each other but never in a circle. A key beyond the window is taken over.
keyed AS (
  INSERT INTO mailhook.dedupe_keys AS k (account_id, dedupe_key, event_inserted_at, event_id)
  SELECT DISTINCT ON (c.account_id, c.dedupe_key) c.account_id, c.dedupe_key, c.inserted_at, c.id
  FROM checked AS c
  WHERE c.dedupe_key IS NOT NULL
    AND c.refused IS NULL
  ORDER BY c.account_id, c.dedupe_key, c.id
  ON CONFLICT (account_id, dedupe_key) DO UPDATE
  SET event_inserted_at = excluded.event_inserted_at, event_id = excluded.event_id, seen_at = excluded.seen_at
  WHERE k.seen_at < statement_timestamp() - (SELECT i.dedupe_window FROM mailhook.installation AS i)
  RETURNING event_id
),
accepted AS NOT MATERIALIZED (
  SELECT c.*,
    c.refused IS NULL AND c.dedupe_key IS NOT NULL AND c.id NOT IN (SELECT keyed.event_id FROM keyed) AS is_duplicate
  FROM checked AS c
),
logged AS (
  INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, message_id,
    campaign_id, sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, duplicate_of, data)
  SELECT a.inserted_at, a.id, a.account_id, a.event_type, a.occurred_at, statement_timestamp(), a.recipient, a.message_id,
    a.campaign_id, a.sending_domain, a.sending_node, a.bridge, a.dedicated_ip, a.dedupe_key,
    CASE WHEN a.is_duplicate THEN coalesce((
      -- The winner is one of this batch, not yet visible in the table, or that of an earlier statement.
      SELECT mailhook.event_id(w.inserted_at, w.id)
      FROM accepted AS w
      WHERE w.account_id = a.account_id AND w.dedupe_key = a.dedupe_key AND w.refused IS NULL AND NOT w.is_duplicate
    ), (
      SELECT mailhook.event_id(k.event_inserted_at, k.event_id)
      FROM mailhook.dedupe_keys AS k
      WHERE k.account_id = a.account_id AND k.dedupe_key = a.dedupe_key
    ), '') END,
    a.data
  FROM accepted AS a
  WHERE a.refused IS NULL
),
crew AS MATERIALIZED (
  SELECT coalesce(array_agg(w.id), '{}') AS workers FROM mailhook.workers AS w
),
-- While this worker is new, others may still have more under way than their new shares: that is off its own. What others have less than
-- theirs is not for it: they may be taking it now. Of batches they have as many requests under way as deliveries at most.
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
-- The side table is probed with the ancestors of the type, so the cost follows the matches. Account and health are asked row by row:
-- for an EXISTS or a join the planner may hash the whole table.
listening AS MATERIALIZED (
  SELECT k.account_id, k.event_type, s.id AS subscription_id, CASE WHEN s.has_backfill THEN '-infinity' ELSE s.created_at END AS wants_since, s.ordering, s.event_types, s.rate_limit_per_second, s.batch_max_events,
    s.filter_sending_domain, s.filter_sending_node, s.filter_bridge, s.filter_dedicated_ip, s.filter, s.id::text AS subscription_key,
    mailhook.slowed_cap(s.max_in_flight, h.in_flight_limit, h.slowed_at, statement_timestamp()) AS cap,
    s.status = 'active'
      AND coalesce((SELECT acc.status FROM mailhook.accounts AS acc WHERE acc.id = k.account_id), 'active') <> 'suspended'
      AND h.opened_at IS NULL
      AND coalesce(h.wait_until, '-infinity') <= statement_timestamp()
      AS may_start
  FROM kinds AS k
  JOIN types ON types.event_type = k.event_type
  -- Always probed with both: an aggregate is not joined otherwise.
  CROSS JOIN LATERAL (
    SELECT array_agg(t.subscription_id) AS subscription_ids
    FROM mailhook.subscription_event_types AS t
    WHERE t.event_type = ANY (types.nodes) AND t.account_id = k.account_id
  ) AS named
  CROSS JOIN LATERAL (
    SELECT b.id, b.status, b.created_at, b.has_backfill, b.max_in_flight, b.rate_limit_per_second, b.ordering, b.event_types, b.batch_max_events, b.filter_sending_domain, b.filter_sending_node,
      b.filter_bridge, b.filter_dedicated_ip, b.filter
    FROM mailhook.subscriptions AS b
    WHERE b.id = ANY (named.subscription_ids)
    OFFSET 0
  ) AS s
  LEFT JOIN LATERAL (
    SELECT y.opened_at, y.wait_until, y.in_flight_limit, y.slowed_at
    FROM mailhook.subscription_health AS y
    WHERE y.subscription_id = s.id
    OFFSET 0
  ) AS h ON true
),
-- The worker's share of the cap and of a second of a rate limit, and what slow endpoints may have here (@limits).
measured AS (
  SELECT l.*,
    least(
      share.requests * coalesce(l.batch_max_events, 1),
      CASE WHEN l.rate_limit_per_second IS NOT NULL
        THEN greatest(1, l.rate_limit_per_second / greatest(1, cardinality(crew.workers))) * coalesce(l.batch_max_events, 1) END)::int AS width,
    (@limits::jsonb ->> l.subscription_key)::int AS slow_limit,
    coalesce((@in_flight::jsonb ->> l.subscription_key)::int, 0) AS ordinary,
    coalesce((@urgent_in_flight::jsonb ->> l.subscription_key)::int, 0) AS urgent,
    CASE WHEN l.batch_max_events IS NOT NULL THEN greatest(1, share.requests) END AS requests
  FROM listening AS l
  CROSS JOIN crew -- a column is inlined into the functions, a subquery is not
  CROSS JOIN LATERAL (
    SELECT mailhook.in_flight_share(l.cap, l.subscription_id, crew.workers, @worker_id::uuid)
      - CASE WHEN (SELECT e.in_flight FROM elsewhere AS e) ? l.subscription_key
          THEN mailhook.in_flight_excess(l.cap, l.subscription_id, crew.workers, (SELECT e.in_flight FROM elsewhere AS e) -> l.subscription_key)
          ELSE 0 END AS requests
  ) AS share
  OFFSET 0
),
-- Room: what either lane leaves of it; NULL where nothing may start. The urgent one runs beside an ordinary dispatch or claim, and so has
-- its reserve alone; that it has of slow endpoints, too.
roomy AS MATERIALIZED (
  SELECT m.account_id, m.event_type, m.subscription_id, m.wants_since, m.ordering, m.requests, m.filter_sending_domain, m.filter_sending_node,
    m.filter_bridge, m.filter_dedicated_ip, m.filter,
    CASE
      WHEN NOT m.may_start OR m.width <= 0 THEN NULL
      WHEN @is_urgent::boolean THEN least(m.width - m.ordinary, mailhook.urgent_reserve(m.width, m.event_types)) - m.urgent
      ELSE least(m.width - m.ordinary - greatest(m.urgent, mailhook.urgent_reserve(m.width, m.event_types)), m.slow_limit - m.ordinary - m.urgent)
    END AS room
  FROM measured AS m
),
-- Fields are made once for each event, and only for filters that read them. FULL JOIN, for it is hashed: what has no partner has no
-- wants_since or inserted_at, and is left out. A subscription gets the events inserted after it, but for what mailhook tells about
-- that one itself; with a backfill all that are dispatched after it.
matched AS MATERIALIZED (
  SELECT p.inserted_at, p.id AS event_id, p.account_id, p.event_type, p.subscription_id, p.requests, p.room,
    mailhook.order_key(p.ordering, p.message_id, p.recipient) AS order_key
  FROM (
    SELECT e.inserted_at, e.id, e.account_id, e.event_type, e.recipient, e.message_id, e.sending_domain, e.sending_node, e.bridge, e.dedicated_address, e.data, e.fields,
      r.subscription_id, r.wants_since, r.ordering, r.requests, r.room, r.filter_sending_domain, r.filter_sending_node, r.filter_bridge,
      r.filter_dedicated_ip, r.filter
    FROM (
      SELECT a.inserted_at, a.id, a.account_id, a.event_type, a.recipient, a.message_id, a.sending_domain, a.sending_node, a.bridge, a.dedicated_address,
        CASE WHEN a.event_type LIKE 'subscription.%' THEN a.data END AS data, -- read by is_about alone, and of these alone
        CASE WHEN (a.account_id, a.event_type) IN (SELECT x.account_id, x.event_type FROM roomy AS x WHERE x.filter IS NOT NULL)
          THEN mailhook.fields_of(a.event_type, a.recipient, a.message_id, a.campaign_id, a.sending_domain, a.sending_node, a.bridge, a.dedicated_ip, a.data)
        END AS fields
      FROM accepted AS a
      WHERE a.refused IS NULL AND NOT a.is_duplicate
      OFFSET 0
    ) AS e
    FULL JOIN roomy AS r ON r.account_id = e.account_id AND r.event_type = e.event_type
    OFFSET 0
  ) AS p
  WHERE p.wants_since <= p.inserted_at
    AND mailhook.passes_filters(p.sending_domain, p.sending_node, p.bridge, p.dedicated_address, p.fields,
      p.filter_sending_domain, p.filter_sending_node, p.filter_bridge, p.filter_dedicated_ip, p.filter)
    AND NOT mailhook.is_about(p.event_type, p.data, p.subscription_id)
),
-- Of a key the first of the batch is free, unless something of it was there before.
queued AS (
  SELECT m.*, true AS is_free FROM matched AS m WHERE m.order_key IS NULL
  UNION ALL
  SELECT f.inserted_at, f.event_id, f.account_id, f.event_type, f.subscription_id, f.requests, f.room, f.order_key,
    @in_turn::boolean AND f.is_first AND coalesce(
      (SELECT d.id FROM mailhook.deliveries AS d WHERE d.subscription_id = f.subscription_id AND d.order_key = f.order_key AND d.next_attempt_at < 'infinity' LIMIT 1),
      (SELECT d.id FROM mailhook.deliveries AS d WHERE d.subscription_id = f.subscription_id AND d.order_key = f.order_key AND d.next_attempt_at = 'infinity' LIMIT 1)
    ) IS NULL
  FROM (
    SELECT m.*, row_number() OVER (PARTITION BY m.subscription_id, m.order_key ORDER BY m.event_id) = 1 AS is_first
    FROM matched AS m
    WHERE m.order_key IS NOT NULL
  ) AS f
),
ranked AS MATERIALIZED (
  SELECT n.*, n.is_free AND coalesce(n.nth <= n.room, false) AS has_room
  FROM (
    SELECT q.*, count(*) FILTER (WHERE q.is_free) OVER (PARTITION BY q.subscription_id ORDER BY q.event_id) AS nth FROM queued AS q
  ) AS n
),
inserted AS (
  INSERT INTO mailhook.deliveries (id, subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at, leased_by, lease_id, order_key)
  -- UUIDv7 of one batch: its time and random bits from @id_prefix, then a counter of eight digits.
  SELECT (@id_prefix::text || to_hex(x'10000000'::int + f.nth_of_all))::uuid, f.subscription_id, f.account_id, f.inserted_at, f.event_id, f.event_type,
    CASE WHEN f.is_free THEN statement_timestamp() ELSE 'infinity' END, statement_timestamp(),
    CASE WHEN f.leased THEN @worker_id::uuid END,
    CASE WHEN f.leased THEN @lease_id::uuid END,
    f.order_key
  FROM (
    SELECT y.*, row_number() OVER in_order AS nth_of_all,
      y.has_room AND CASE
        WHEN y.requests IS NULL THEN count(*) FILTER (WHERE y.has_room AND y.requests IS NULL) OVER in_order <= @free_slots::int
        ELSE count(*) FILTER (WHERE y.has_room AND y.requests IS NOT NULL) OVER in_order <= @free_batched::int
      END AS leased
    FROM ranked AS y
    WINDOW in_order AS (ORDER BY y.event_id, y.subscription_id)
  ) AS f
  RETURNING id, subscription_id, event_id, lease_id, order_key, next_attempt_at
),
blocked AS MATERIALIZED (
  SELECT DISTINCT i.subscription_id, i.order_key FROM inserted AS i WHERE i.next_attempt_at = 'infinity'
),
batching AS MATERIALIZED (
  SELECT y.subscription_id, max(y.requests) AS requests, count(*) AS deliveries, max(y.room) - count(*) AS rest
  FROM ranked AS y
  WHERE y.requests IS NOT NULL
  GROUP BY y.subscription_id
),
listed AS MATERIALIZED (
  SELECT (SELECT min(c.id) FROM checked AS c) AS event_id,
    (SELECT count(*) FROM inserted AS i) AS deliveries,
    (SELECT sum(b.deliveries) FROM batching AS b) AS for_batches,
    ARRAY(SELECT i.id FROM inserted AS i WHERE i.lease_id IS NOT NULL) AS delivery_ids,
    ARRAY(SELECT i.subscription_id FROM inserted AS i WHERE i.lease_id IS NOT NULL) AS subscription_ids,
    ARRAY(SELECT i.event_id FROM inserted AS i WHERE i.lease_id IS NOT NULL) AS event_ids,
    ARRAY(SELECT coalesce(i.order_key, 0) FROM inserted AS i WHERE i.lease_id IS NOT NULL) AS order_keys,
    (SELECT count(*) FROM inserted AS i WHERE i.next_attempt_at = 'infinity') AS blocked,
    ARRAY(SELECT b.subscription_id FROM blocked AS b) AS blocked_subscription_ids,
    ARRAY(SELECT b.order_key FROM blocked AS b) AS blocked_order_keys,
    ARRAY(SELECT b.subscription_id FROM batching AS b ORDER BY b.subscription_id) AS batching_ids,
    ARRAY(SELECT b.requests FROM batching AS b ORDER BY b.subscription_id) AS batching_requests,
    (SELECT bool_and(coalesce(b.rest >= 2 * @max_rows::int, true)) FROM batching AS b) AS is_roomy,
    ARRAY(SELECT DISTINCT y.subscription_id FROM ranked AS y WHERE y.is_free AND y.nth > y.room) AS wanting
)
SELECT a.id::bigint AS id, a.inserted_at::timestamptz AS inserted_at,
  a.event_type::text AS event_type,
  -- That of a quarantined one may be infinity, which no caller can read.
  (CASE WHEN a.refused IS NULL THEN a.occurred_at ELSE a.inserted_at END)::timestamptz AS occurred_at,
  coalesce(a.recipient, '')::text AS recipient,
  coalesce(a.message_id, '')::text AS message_id,
  coalesce(a.campaign_id, '')::text AS campaign_id,
  coalesce(a.sending_domain, '')::text AS sending_domain,
  coalesce(a.sending_node, '')::text AS sending_node,
  coalesce(a.bridge, '')::text AS bridge,
  coalesce(a.dedicated_ip, '')::text AS dedicated_ip,
  CASE WHEN a.id IN (SELECT i.event_id FROM inserted AS i WHERE i.lease_id IS NOT NULL) THEN coalesce(a.data, '{}') END::json AS data,
  (a.refused IS NOT NULL)::boolean AS is_quarantined,
  a.is_duplicate::boolean AS is_duplicate,
  mailhook.is_urgent(a.event_type)::boolean AS is_urgent,
  coalesce(listed.deliveries, 0)::bigint AS deliveries,
  coalesce(listed.for_batches, 0)::bigint AS for_batches,
  listed.delivery_ids::uuid[] AS delivery_ids,
  listed.subscription_ids::uuid[] AS subscription_ids,
  listed.event_ids::bigint[] AS event_ids,
  listed.order_keys::bigint[] AS order_keys,
  coalesce(listed.blocked, 0)::bigint AS blocked,
  listed.blocked_subscription_ids::uuid[] AS blocked_subscription_ids,
  listed.blocked_order_keys::bigint[] AS blocked_order_keys,
  listed.batching_ids::uuid[] AS batching_ids,
  listed.batching_requests::int[] AS batching_requests,
  coalesce(listed.is_roomy, false)::boolean AS is_roomy,
  listed.wanting::uuid[] AS wanting
FROM accepted AS a
LEFT JOIN listed ON listed.event_id = a.id;

-- PeekOutbox is the first id that a dispatch would take; no row when there is none. The row may be locked.
-- name: PeekOutbox :one
SELECT first.id::bigint AS id
FROM (
  SELECT least(
    (SELECT min(o.id) FROM mailhook.outbox AS o WHERE o.id = ANY (@holes::bigint[])),
    (SELECT min(o.id) FROM mailhook.outbox AS o WHERE o.id > @after_id::bigint)) AS id
) AS first
WHERE first.id IS NOT NULL;

-- AwaitUrgent answers the ids of the first urgent rows above @after_id that nobody has locked: at once when there are some, else when
-- some come within @patience; none otherwise.
-- name: AwaitUrgent :one
SELECT coalesce(mailhook.await_urgent(@after_id::bigint, @max_rows::int, @patience::interval), '{}')::bigint[] AS ids;

-- QuarantineOutboxRow moves one row of the outbox into quarantine, with the error that its dispatch gave. It computes
-- with no value of it. It takes nothing when another worker has the row.
-- name: QuarantineOutboxRow :execrows
WITH taken AS (
  DELETE FROM mailhook.outbox AS o
  WHERE o.id = (SELECT x.id FROM mailhook.outbox AS x WHERE x.id = @id::bigint FOR UPDATE SKIP LOCKED)
  RETURNING o.*
)
INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, occurred_at, recipient, message_id, campaign_id,
  sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data, reason, error_code)
SELECT coalesce(t.inserted_at, statement_timestamp()), t.id, t.account_id, t.event_type, t.occurred_at, t.recipient, t.message_id, t.campaign_id,
  t.sending_domain, t.sending_node, t.bridge, t.dedicated_ip, t.dedupe_key, t.data, @reason::text, @error_code::text
FROM taken AS t;
