-- ScanEvents answers the keys of the events before the key given that pass the filters, newest first, out of the newest
-- @scan_rows there, with the size of their data. When that bound was reached, the last row scanned comes too, marked
-- is_horizon. The plans are custom: but one branch is left of the two.
-- name: ScanEvents :many
WITH scanned AS MATERIALIZED (
  (
    SELECT e.inserted_at, e.id, e.event_type, e.recipient
    FROM mailhook.events AS e
    WHERE e.account_id = sqlc.narg('account_id')::text
      AND (e.inserted_at, e.id) < (@before_at::timestamptz, @before_id::bigint)
      AND e.inserted_at >= @since::timestamptz AND e.inserted_at < @until::timestamptz
    ORDER BY e.inserted_at DESC, e.id DESC
    LIMIT @scan_rows::int
  )
  UNION ALL
  (
    SELECT e.inserted_at, e.id, e.event_type, e.recipient
    FROM mailhook.events AS e
    WHERE sqlc.narg('account_id')::text IS NULL
      AND (e.inserted_at, e.id) < (@before_at::timestamptz, @before_id::bigint)
      AND e.inserted_at >= @since::timestamptz AND e.inserted_at < @until::timestamptz
    ORDER BY e.inserted_at DESC, e.id DESC
    LIMIT @scan_rows::int
  )
),
marked AS (
  SELECT x.inserted_at, x.id,
    (row_number() OVER (ORDER BY x.inserted_at DESC, x.id DESC) = @scan_rows::int)::boolean AS is_horizon,
    ((sqlc.narg('event_type')::text IS NULL OR sqlc.narg('event_type')::text = ANY (mailhook.event_type_ancestors(x.event_type)))
      AND (sqlc.narg('recipient')::text IS NULL OR x.recipient IS NOT DISTINCT FROM sqlc.narg('recipient')::text)
    )::boolean AS matches
  FROM scanned AS x
),
page AS (
  SELECT m.inserted_at, m.id, m.is_horizon, m.matches
  FROM marked AS m
  WHERE m.matches OR m.is_horizon
  ORDER BY m.inserted_at DESC, m.id DESC
  LIMIT @page_rows::int
)
SELECT p.inserted_at, p.id, p.is_horizon, p.matches, coalesce(octet_length(e.data::text), 0)::bigint AS data_bytes
FROM page AS p
JOIN mailhook.events AS e ON e.inserted_at = p.inserted_at AND e.id = p.id
ORDER BY p.inserted_at DESC, p.id DESC;

-- ListEventsByKey answers the events with these keys, newest first.
-- name: ListEventsByKey :many
SELECT e.*
FROM (SELECT unnest(@inserted_ats::timestamptz[]) AS inserted_at, unnest(@ids::bigint[]) AS id) AS k
JOIN mailhook.events AS e ON e.inserted_at = k.inserted_at AND e.id = k.id
ORDER BY e.inserted_at DESC, e.id DESC;

-- GetEvent finds a dispatched event of one account or, without @account_id, of any.
-- name: GetEvent :one
SELECT e.*
FROM mailhook.events AS e
WHERE e.inserted_at = @inserted_at
  AND e.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR e.account_id = sqlc.narg('account_id')::text);

-- GetUndispatchedEvent finds an event in the outbox. Nothing in there has been checked, so what is too long to be
-- dispatched comes shortened to what is still too long, or, as data, not at all, and a time that nobody can write is as good as none.
-- name: GetUndispatchedEvent :one
SELECT coalesce(nullif(o.account_id, ''), 'default')::text AS account_id,
  left(o.event_type, 1000)::text AS event_type,
  coalesce(CASE WHEN o.occurred_at >= '0001-01-01 00:00+00' AND o.occurred_at < '10000-01-01 00:00+00' THEN o.occurred_at END, o.inserted_at)::timestamptz AS occurred_at,
  coalesce(left(o.recipient, 1001), '')::text AS recipient,
  coalesce(left(o.message_id, 1001), '')::text AS message_id,
  coalesce(left(o.campaign_id, 1001), '')::text AS campaign_id,
  coalesce(left(o.sending_domain, 1001), '')::text AS sending_domain,
  coalesce(left(o.sending_node, 1001), '')::text AS sending_node,
  coalesce(left(o.bridge, 1001), '')::text AS bridge,
  coalesce(left(o.dedicated_ip, 1001), '')::text AS dedicated_ip,
  coalesce(CASE WHEN octet_length(o.data::text) <= 262144 THEN o.data END, '{}')::json AS data
FROM mailhook.outbox AS o
WHERE o.id = @id
  AND o.inserted_at = @inserted_at::timestamptz
  AND (sqlc.narg('account_id')::text IS NULL OR coalesce(nullif(o.account_id, ''), 'default') = sqlc.narg('account_id')::text);
