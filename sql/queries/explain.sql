-- RefineEvent answers what dispatch would make of an event: its leaf type, and which limit it passes, empty for none. The
-- address of a host's dedicated_ip is asked as dispatch does.
-- name: RefineEvent :one
SELECT leaf.event_type::text AS event_type,
  coalesce(mailhook.refusal_of(leaf.event_type, @account_id::text, sqlc.narg('recipient')::text, sqlc.narg('message_id')::text, sqlc.narg('campaign_id')::text,
    sqlc.narg('sending_domain')::text, sqlc.narg('sending_node')::text, sqlc.narg('bridge')::text, NULL, statement_timestamp(), sqlc.narg('dedicated_ip')::text,
    mailhook.address_of(sqlc.narg('dedicated_ip')::text), sqlc.narg('data')::json), '')::text AS refused,
  statement_timestamp()::timestamptz AS now
FROM (SELECT mailhook.leaf_type(@event_type::text, sqlc.narg('data')::json) AS event_type) AS leaf;

-- ExplainMatch holds an event as it was logged, or might be, against a subscription as it is today, condition by condition,
-- as dispatch does. conditions is an array of objects: condition as in filter_conditions, passed, and found, the first
-- values that it looked at.
-- name: ExplainMatch :one
WITH event AS MATERIALIZED (
  SELECT @account_id::text AS account_id, @inserted_at::timestamptz AS inserted_at, @event_type::text AS event_type,
    sqlc.narg('sending_domain')::text AS sending_domain, sqlc.narg('sending_node')::text AS sending_node, sqlc.narg('bridge')::text AS bridge,
    mailhook.address_of(sqlc.narg('dedicated_ip')::text) AS address, sqlc.narg('data')::json AS data,
    mailhook.fields_of(@event_type::text, sqlc.narg('recipient')::text, sqlc.narg('message_id')::text, sqlc.narg('campaign_id')::text,
      sqlc.narg('sending_domain')::text, sqlc.narg('sending_node')::text, sqlc.narg('bridge')::text, sqlc.narg('dedicated_ip')::text,
      sqlc.narg('data')::json) AS fields
)
SELECT (e.account_id = s.account_id)::boolean AS account_passed,
  (s.created_at <= e.inserted_at OR s.has_backfill AND s.created_at <= @dispatched_at::timestamptz)::boolean AS created_before_passed,
  (s.status <> 'inactive')::boolean AS status_passed,
  (s.event_types && mailhook.event_type_ancestors(e.event_type))::boolean AS event_type_passed,
  coalesce(mailhook.passes_filters(e.sending_domain, NULL, NULL, NULL, NULL, s.filter_sending_domain, '{}', '{}', '{}', NULL), false)::boolean AS sending_domain_passed,
  coalesce(mailhook.passes_filters(NULL, e.sending_node, NULL, NULL, NULL, '{}', s.filter_sending_node, '{}', '{}', NULL), false)::boolean AS sending_node_passed,
  coalesce(mailhook.passes_filters(NULL, NULL, e.bridge, NULL, NULL, '{}', '{}', s.filter_bridge, '{}', NULL), false)::boolean AS bridge_passed,
  coalesce(mailhook.passes_filters(NULL, NULL, NULL, e.address, NULL, '{}', '{}', '{}', s.filter_dedicated_ip, NULL), false)::boolean AS dedicated_ip_passed,
  (SELECT coalesce(jsonb_agg(jsonb_build_object(
      'condition', c.condition,
      'passed', coalesce(mailhook.passes_filters(NULL, NULL, NULL, NULL, e.fields, '{}', '{}', '{}', '{}', mailhook.filter_of(jsonb_build_array(c.condition))), false),
      'found', ARRAY(
        SELECT jsonb_path_query(e.fields, place::jsonpath) FROM unnest(mailhook.condition_places(c.condition)) AS place LIMIT 10)
    ) ORDER BY c.nth), '[]')
    FROM jsonb_array_elements(s.filter_conditions) WITH ORDINALITY AS c (condition, nth))::jsonb AS conditions,
  coalesce(e.address, '')::text AS dedicated_ip,
  mailhook.is_about(e.event_type, e.data, s.id)::boolean AS is_about_itself
FROM event AS e
JOIN mailhook.subscriptions AS s ON s.id = @subscription_id;

-- GetSubscriptionOfHistory is GetSubscription for what has happened: deleted ones too.
-- name: GetSubscriptionOfHistory :one
SELECT s.*
FROM mailhook.subscriptions AS s
WHERE s.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text);

-- GetHealth answers what holds a subscription up; no row where nothing does.
-- name: GetHealth :one
SELECT h.opened_at, h.open_until, h.wait_until, h.first_failed_at, h.last_failed_at, h.last_outcome
FROM mailhook.subscription_health AS h
WHERE h.subscription_id = @subscription_id;

-- GetDelays answers what a delivery that is due may wait for. How many of its subscription workers have stops at 1,000; they are asked for
-- by worker, as the index has them.
-- name: GetDelays :one
SELECT i.delivery_enabled,
  EXISTS (SELECT FROM mailhook.workers AS w WHERE w.seen_at > statement_timestamp() - interval '15 seconds')::boolean AS has_workers,
  EXISTS (SELECT FROM mailhook.subscription_health AS h WHERE h.subscription_id = @subscription_id AND h.release_before IS NOT NULL)::boolean AS is_releasing,
  i.release_rate,
  (SELECT count(*) FROM (
    SELECT FROM mailhook.workers AS w
    JOIN mailhook.deliveries AS d ON d.leased_by = w.id AND d.subscription_id = @subscription_id AND d.lease_id IS NOT NULL
    LIMIT 1000) AS x)::int AS leased
FROM mailhook.installation AS i;

-- ListSameURL answers up to @max_rows other subscriptions of an account with the same URL, that match at all. Of channel web alone: of others
-- the whole URL is not in it.
-- name: ListSameURL :many
SELECT s.id, s.name
FROM mailhook.subscriptions AS s
WHERE s.account_id = @account_id
  AND s.channel_type = 'web'
  AND s.url = @url
  AND s.id <> @id
  AND s.deleted_at IS NULL
  AND s.status <> 'inactive'
ORDER BY s.id
LIMIT @max_rows;
