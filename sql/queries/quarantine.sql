-- ScanQuarantine answers the quarantined events before the key given, of one account or of all, newest first, out of
-- the newest @scan_rows there, without their data. When that bound was reached, the last row scanned comes too, marked
-- is_horizon.
-- name: ScanQuarantine :many
WITH scanned AS MATERIALIZED (
  SELECT q.quarantined_at, q.inserted_at, q.id, coalesce(nullif(q.account_id, ''), 'default') AS account_id
  FROM mailhook.quarantine AS q
  WHERE (q.quarantined_at, q.id) < (@before_at::timestamptz, @before_id::bigint)
  ORDER BY q.quarantined_at DESC, q.id DESC
  LIMIT @scan_rows::int
),
marked AS (
  SELECT x.quarantined_at, x.inserted_at, x.id, x.account_id,
    (row_number() OVER (ORDER BY x.quarantined_at DESC, x.id DESC) = @scan_rows::int)::boolean AS is_horizon,
    (sqlc.narg('account_id')::text IS NULL OR x.account_id = sqlc.narg('account_id')::text)::boolean AS matches
  FROM scanned AS x
),
page AS (
  SELECT m.quarantined_at, m.inserted_at, m.id, m.account_id, m.is_horizon, m.matches
  FROM marked AS m
  WHERE m.matches OR m.is_horizon
  ORDER BY m.quarantined_at DESC, m.id DESC
  LIMIT @page_rows::int
)
SELECT q.inserted_at, q.id, p.account_id::text AS account_id, left(q.event_type, 1000)::text AS event_type,
  coalesce(CASE WHEN q.occurred_at >= '0001-01-01 00:00+00' AND q.occurred_at < '10000-01-01 00:00+00' THEN q.occurred_at END, q.inserted_at)::timestamptz AS occurred_at,
  coalesce(left(q.recipient, 1000), '')::text AS recipient, q.reason, q.error_code, q.quarantined_at, p.is_horizon, p.matches
FROM page AS p
JOIN mailhook.quarantine AS q ON q.inserted_at = p.inserted_at AND q.id = p.id
ORDER BY q.quarantined_at DESC, q.id DESC;

-- GetQuarantinedEvent finds an event in quarantine, shortened as in GetUndispatchedEvent.
-- name: GetQuarantinedEvent :one
SELECT coalesce(nullif(q.account_id, ''), 'default')::text AS account_id,
  left(q.event_type, 1000)::text AS event_type,
  coalesce(CASE WHEN q.occurred_at >= '0001-01-01 00:00+00' AND q.occurred_at < '10000-01-01 00:00+00' THEN q.occurred_at END, q.inserted_at)::timestamptz AS occurred_at,
  coalesce(left(q.recipient, 1000), '')::text AS recipient,
  coalesce(left(q.message_id, 1000), '')::text AS message_id,
  coalesce(left(q.campaign_id, 1000), '')::text AS campaign_id,
  coalesce(left(q.sending_domain, 1000), '')::text AS sending_domain,
  coalesce(left(q.sending_node, 1000), '')::text AS sending_node,
  coalesce(left(q.bridge, 1000), '')::text AS bridge,
  coalesce(left(q.dedicated_ip, 1000), '')::text AS dedicated_ip,
  coalesce(CASE WHEN octet_length(q.data::text) <= 262144 THEN q.data END, '{}')::json AS data,
  q.reason, q.error_code, q.quarantined_at
FROM mailhook.quarantine AS q
WHERE q.inserted_at = @inserted_at
  AND q.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR coalesce(nullif(q.account_id, ''), 'default') = sqlc.narg('account_id')::text);

-- ReleaseQuarantined puts an event back into the outbox, as the host wrote it and under the same id, in one statement. Not
-- while an erasure runs: it has looked through the outbox already.
-- name: ReleaseQuarantined :execrows
WITH released AS (
  DELETE FROM mailhook.quarantine AS q
  WHERE q.inserted_at = @inserted_at
    AND q.id = @id
    AND (sqlc.narg('account_id')::text IS NULL OR coalesce(nullif(q.account_id, ''), 'default') = sqlc.narg('account_id')::text)
    AND (
      SELECT r.id FROM mailhook.erasures AS r
      WHERE r.state = 'running' AND (r.account_id IS NULL OR r.account_id = coalesce(nullif(q.account_id, ''), 'default'))
      LIMIT 1) IS NULL
  RETURNING q.*
)
INSERT INTO mailhook.outbox (id, inserted_at, account_id, event_type, occurred_at, recipient, message_id, campaign_id,
  sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data)
OVERRIDING SYSTEM VALUE
SELECT r.id, r.inserted_at, r.account_id, r.event_type, r.occurred_at, r.recipient, r.message_id, r.campaign_id,
  r.sending_domain, r.sending_node, r.bridge, r.dedicated_ip, r.dedupe_key, r.data
FROM released AS r;
