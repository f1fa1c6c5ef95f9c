-- Pulse is what a worker asks twice a second: whether delivery is on, how many workers there are, whether a test send
-- waits, and whether any subscription has an order.
-- name: Pulse :one
SELECT i.delivery_enabled, i.notify_enabled,
  (SELECT count(*) FROM mailhook.workers)::int AS worker_count,
  EXISTS (SELECT FROM mailhook.test_deliveries AS t WHERE t.leased_by IS NULL)::boolean AS test_waits,
  EXISTS (SELECT FROM mailhook.subscriptions AS s WHERE s.ordering <> 'none' AND s.deleted_at IS NULL)::boolean AS has_ordered,
  clock_timestamp()::timestamptz AS now
FROM mailhook.installation AS i;

-- ListChangedSubscriptions names the subscriptions changed since @since, with the state that decides whether a request
-- may start. A caller overlaps its calls by a minute, for transactions that commit late.
-- name: ListChangedSubscriptions :many
SELECT s.id, s.version, false AS by_account
FROM mailhook.subscriptions AS s
WHERE s.updated_at >= @since::timestamptz
UNION ALL
SELECT s.id, s.version, true
FROM mailhook.accounts AS a
-- OFFSET 0: probed, whatever the plan was made on.
CROSS JOIN LATERAL (
  SELECT b.id, b.version FROM mailhook.subscriptions AS b WHERE b.account_id = a.id OFFSET 0
) AS s
WHERE a.updated_at >= @since::timestamptz;

-- LoadSubscriptions reads what a request needs of each subscription. Secrets come sealed, newest first; credentials come
-- sealed, by kind.
-- name: LoadSubscriptions :many
SELECT s.id, s.account_id, s.version, s.url, s.format, s.channel_type, s.channel_settings,
  (cardinality(s.header_names) > 0)::boolean AS has_headers, (s.auth_type IS NOT NULL)::boolean AS has_auth,
  (extract(epoch FROM s.timeout) * 1000)::bigint AS timeout_ms,
  s.max_in_flight, s.rate_limit_per_second, s.success_rule, coalesce(s.batch_max_events, 0)::int AS batch_max_events,
  (extract(epoch FROM coalesce(s.batch_max_wait, '0')) * 1000)::bigint AS batch_max_wait_ms,
  (s.deleted_at IS NULL AND s.status <> 'inactive')::boolean AS exists,
  (s.status = 'active' AND coalesce((SELECT a.status FROM mailhook.accounts AS a WHERE a.id = s.account_id), 'active') <> 'suspended')::boolean AS may_start,
  coalesce((SELECT a.allow_insecure_http FROM mailhook.accounts AS a WHERE a.id = s.account_id), false)::boolean AS allows_http,
  coalesce(k.key_ids, '{}')::text[] AS secret_key_ids,
  coalesce(k.sealed, '{}')::bytea[] AS secrets_sealed,
  coalesce(c.kinds, '{}')::text[] AS credential_kinds,
  coalesce(c.key_ids, '{}')::text[] AS credential_key_ids,
  coalesce(c.sealed, '{}')::bytea[] AS credentials_sealed,
  -- To be read again then: secrets expire.
  coalesce(k.next_expiry, clock_timestamp() + interval '1 hour')::timestamptz AS reload_at,
  clock_timestamp()::timestamptz AS now
FROM mailhook.subscriptions AS s
LEFT JOIN LATERAL (
  SELECT array_agg(x.key_id ORDER BY x.expires_at DESC NULLS FIRST, x.id DESC) AS key_ids,
    array_agg(x.sealed ORDER BY x.expires_at DESC NULLS FIRST, x.id DESC) AS sealed,
    min(x.expires_at) AS next_expiry
  FROM mailhook.subscription_secrets AS x
  WHERE x.subscription_id = s.id AND (x.expires_at IS NULL OR x.expires_at > clock_timestamp())
) AS k ON true
LEFT JOIN LATERAL (
  SELECT array_agg(y.kind) AS kinds, array_agg(y.key_id) AS key_ids, array_agg(y.sealed) AS sealed
  FROM mailhook.subscription_credentials AS y
  WHERE y.subscription_id = s.id
) AS c ON true
WHERE s.id = ANY (@ids::uuid[]);
