-- CreateSubscription adds a subscription. Filters are stored as dispatch compares them: domains by lower() of this
-- database, addresses by host().
-- name: CreateSubscription :one
INSERT INTO mailhook.subscriptions (id, account_id, name, status, status_reason, channel_type, url, header_names, auth_type,
  event_types, filter_sending_domain, filter_sending_node, filter_bridge, filter_dedicated_ip, format,
  retry_preset, retry_schedule, retry_jitter, suspend_when_exhausted, timeout, max_in_flight, rate_limit_per_second,
  success_rule, batch_max_events, batch_max_wait, ordering, channel_settings, filter_conditions, public_key, has_backfill)
VALUES (@id, @account_id, @name, @status, sqlc.narg('status_reason'), @channel_type, @url, @header_names::text[],
  sqlc.narg('auth_type'), @event_types::text[],
  ARRAY(SELECT lower(given.value) FROM unnest(@filter_sending_domain::text[]) WITH ORDINALITY AS given (value, nth) ORDER BY given.nth),
  @filter_sending_node::text[], @filter_bridge::text[],
  ARRAY(SELECT host(given.value::inet) FROM unnest(@filter_dedicated_ip::text[]) WITH ORDINALITY AS given (value, nth) ORDER BY given.nth),
  @format, sqlc.narg('retry_preset'), @retry_schedule::interval[], @retry_jitter, @suspend_when_exhausted, @timeout::interval, @max_in_flight,
  sqlc.narg('rate_limit_per_second'), @success_rule, sqlc.narg('batch_max_events'), sqlc.narg('batch_max_wait')::interval, @ordering,
  @channel_settings::jsonb, @filter_conditions::jsonb, sqlc.narg('public_key'), @has_backfill)
RETURNING *;

-- GetSubscription finds a subscription that is not deleted, of one account or, without @account_id, of any.
-- name: GetSubscription :one
SELECT s.*
FROM mailhook.subscriptions AS s
WHERE s.id = @id
  AND s.deleted_at IS NULL
  AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text);

-- LockSubscription is GetSubscription for a change: changes of one subscription wait for each other.
-- name: LockSubscription :one
SELECT s.*
FROM mailhook.subscriptions AS s
WHERE s.id = @id
  AND s.deleted_at IS NULL
  AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
FOR UPDATE;

-- ListSubscriptions answers the subscriptions of one account, or of all, before @before_id, newest first.
-- name: ListSubscriptions :many
SELECT s.*
FROM mailhook.subscriptions AS s
WHERE s.id < @before_id
  AND s.deleted_at IS NULL
  AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
ORDER BY s.id DESC
LIMIT @max_rows;

-- UpdateSubscription writes all settings of a subscription; as CreateSubscription, but for those that never change.
-- name: UpdateSubscription :one
UPDATE mailhook.subscriptions AS s
SET name = @name, channel_type = @channel_type, url = @url, header_names = @header_names::text[], auth_type = sqlc.narg('auth_type'),
  event_types = @event_types::text[],
  filter_sending_domain = ARRAY(SELECT lower(given.value) FROM unnest(@filter_sending_domain::text[]) WITH ORDINALITY AS given (value, nth) ORDER BY given.nth),
  filter_sending_node = @filter_sending_node::text[],
  filter_bridge = @filter_bridge::text[],
  filter_dedicated_ip = ARRAY(SELECT host(given.value::inet) FROM unnest(@filter_dedicated_ip::text[]) WITH ORDINALITY AS given (value, nth) ORDER BY given.nth),
  format = @format, retry_preset = sqlc.narg('retry_preset'), retry_schedule = @retry_schedule::interval[], retry_jitter = @retry_jitter,
  suspend_when_exhausted = @suspend_when_exhausted, timeout = @timeout::interval, max_in_flight = @max_in_flight,
  rate_limit_per_second = sqlc.narg('rate_limit_per_second'), success_rule = @success_rule, batch_max_events = sqlc.narg('batch_max_events'),
  batch_max_wait = sqlc.narg('batch_max_wait')::interval, ordering = @ordering, channel_settings = @channel_settings::jsonb,
  filter_conditions = @filter_conditions::jsonb, public_key = sqlc.narg('public_key')
WHERE s.id = @id
RETURNING *;

-- SetSubscriptionStatus changes the status. What follows from it (holding, cancelling) is for the workers.
-- name: SetSubscriptionStatus :one
UPDATE mailhook.subscriptions AS s
SET status = @status, status_reason = sqlc.narg('status_reason')
WHERE s.id = @id
RETURNING *;

-- ResetHealth forgets the failures of a subscription and closes its circuit.
-- name: ResetHealth :exec
DELETE FROM mailhook.subscription_health WHERE subscription_id = @subscription_id;

-- DeleteSubscription marks one subscription as deleted and wipes its secrets, credentials and health. It matches
-- nothing from then on and frees the limit; workers cancel what waits. No row: absent, deleted before or another account's.
-- The caller has locked it in a statement before this one: a rotation that commits meanwhile would leave its secret here.
-- name: DeleteSubscription :execrows
WITH wiped AS (
  DELETE FROM mailhook.subscription_secrets AS x
  USING mailhook.subscriptions AS s
  WHERE s.id = x.subscription_id
    AND s.id = @id
    AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
),
stripped AS (
  DELETE FROM mailhook.subscription_credentials AS c
  USING mailhook.subscriptions AS s
  WHERE s.id = c.subscription_id
    AND s.id = @id
    AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
),
forgotten AS (
  DELETE FROM mailhook.subscription_health AS h
  USING mailhook.subscriptions AS s
  WHERE s.id = h.subscription_id
    AND s.id = @id
    AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
)
UPDATE mailhook.subscriptions AS s
SET deleted_at = clock_timestamp(), header_names = '{}', auth_type = NULL
WHERE s.id = @id
  AND s.deleted_at IS NULL
  AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text);

-- LockSubscriptionsOfAccount makes changes of them wait, in the order of their ids.
-- name: LockSubscriptionsOfAccount :exec
SELECT s.id FROM mailhook.subscriptions AS s
WHERE s.account_id = @account_id AND s.deleted_at IS NULL
ORDER BY s.id
FOR UPDATE;

-- DeleteSubscriptionsOfAccount is DeleteSubscription for all of an account.
-- name: DeleteSubscriptionsOfAccount :execrows
WITH wiped AS (
  DELETE FROM mailhook.subscription_secrets AS x
  USING mailhook.subscriptions AS s
  WHERE s.id = x.subscription_id AND s.account_id = @account_id AND s.deleted_at IS NULL
),
stripped AS (
  DELETE FROM mailhook.subscription_credentials AS c
  USING mailhook.subscriptions AS s
  WHERE s.id = c.subscription_id AND s.account_id = @account_id AND s.deleted_at IS NULL
),
forgotten AS (
  DELETE FROM mailhook.subscription_health AS h
  USING mailhook.subscriptions AS s
  WHERE s.id = h.subscription_id AND s.account_id = @account_id AND s.deleted_at IS NULL
)
UPDATE mailhook.subscriptions AS s
SET deleted_at = clock_timestamp(), header_names = '{}', auth_type = NULL
WHERE s.account_id = @account_id AND s.deleted_at IS NULL;

-- InsertSecret adds a sealed signing secret; the newest signs.
-- name: InsertSecret :exec
INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed)
VALUES (@subscription_id, @key_id, @sealed);

-- PutCredentials stores sealed headers or a sealed Authorization in the place of what was there. It reads nothing sealed, not
-- even excluded, which would take the right to read the column.
-- name: PutCredentials :exec
INSERT INTO mailhook.subscription_credentials (subscription_id, kind, key_id, sealed)
VALUES (@subscription_id, @kind, @key_id, @sealed)
ON CONFLICT (subscription_id, kind) DO UPDATE
SET key_id = @key_id, sealed = @sealed;

-- DeleteCredentials removes them.
-- name: DeleteCredentials :exec
DELETE FROM mailhook.subscription_credentials WHERE subscription_id = @subscription_id AND kind = @kind;

-- ListLiveSecrets says since when and until when the secrets of a subscription sign, the newest first.
-- name: ListLiveSecrets :many
SELECT x.created_at, x.expires_at
FROM mailhook.subscription_secrets AS x
WHERE x.subscription_id = @subscription_id AND (x.expires_at IS NULL OR x.expires_at > statement_timestamp())
ORDER BY x.created_at DESC, x.id DESC;

-- ExpireSecrets gives the secrets of a subscription until the end of the grace, or less where they had less, and
-- removes at once all but the newest @kept of them and those without any time left.
-- name: ExpireSecrets :exec
WITH ranked AS (
  SELECT x.id, least(x.expires_at, statement_timestamp() + @grace::interval) AS ends_at,
    row_number() OVER (ORDER BY x.created_at DESC, x.id DESC) AS nth
  FROM mailhook.subscription_secrets AS x
  WHERE x.subscription_id = @subscription_id
),
removed AS (
  DELETE FROM mailhook.subscription_secrets AS x
  USING ranked AS r
  WHERE x.id = r.id AND (r.nth > @kept::int OR r.ends_at <= statement_timestamp())
)
UPDATE mailhook.subscription_secrets AS x
SET expires_at = r.ends_at
FROM ranked AS r
WHERE x.id = r.id AND r.nth <= @kept::int AND r.ends_at > statement_timestamp();

-- SetPublicKey stores by what receivers verify the newest secret, and makes the workers read the subscription again: the
-- trigger raises its version.
-- name: SetPublicKey :one
UPDATE mailhook.subscriptions AS s
SET public_key = @public_key::text
WHERE s.id = @id
RETURNING *;

-- IsSubscriptionKnown says whether a subscription exists, deleted or not, in one account or, without @account_id, in any.
-- name: IsSubscriptionKnown :one
SELECT EXISTS (
  SELECT FROM mailhook.subscriptions AS s
  WHERE s.id = @id
    AND (sqlc.narg('account_id')::text IS NULL OR s.account_id = sqlc.narg('account_id')::text)
)::boolean;
