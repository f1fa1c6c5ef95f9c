-- CountExhaustedToReplay counts the dead letters that a replay of a subscription would take.
-- name: CountExhaustedToReplay :one
SELECT count(*)
FROM mailhook.dead_letters AS l
WHERE l.subscription_id = @subscription_id
  AND l.created_at >= @since AND l.created_at < @until
  AND (sqlc.narg('event_types')::text[] IS NULL OR mailhook.event_type_ancestors(l.event_type) && sqlc.narg('event_types')::text[]);

-- CountEventsToReplay counts the events that a replay of a subscription would deliver once more: what it matches today,
-- but for the pairs that are still unfinished. The conditions are those of AdvanceEventReplay.
-- name: CountEventsToReplay :one
SELECT count(*)
FROM mailhook.subscriptions AS s
JOIN mailhook.events AS e ON e.account_id = s.account_id
WHERE s.id = @subscription_id
  AND e.inserted_at < @until
  AND e.dispatched_at >= @since AND e.dispatched_at < @until
  AND e.duplicate_of IS NULL
  AND e.erased_at IS NULL
  AND mailhook.event_type_ancestors(e.event_type) && s.event_types
  AND (sqlc.narg('event_types')::text[] IS NULL OR mailhook.event_type_ancestors(e.event_type) && sqlc.narg('event_types')::text[])
  AND mailhook.passes_filters(e.sending_domain, e.sending_node, e.bridge, mailhook.address_of(e.dedicated_ip),
    mailhook.fields_of(e.event_type, e.recipient, e.message_id, e.campaign_id, e.sending_domain, e.sending_node, e.bridge, e.dedicated_ip, e.data),
    s.filter_sending_domain, s.filter_sending_node, s.filter_bridge, s.filter_dedicated_ip, s.filter)
  AND NOT mailhook.is_about(e.event_type, e.data, s.id)
  AND NOT EXISTS (
    SELECT FROM mailhook.deliveries AS d
    WHERE d.event_inserted_at = e.inserted_at AND d.event_id = e.id AND d.subscription_id = s.id);

-- GetReplayEnd answers where a replay ends: at the time given, but never in the future.
-- name: GetReplayEnd :one
SELECT least(sqlc.narg('until')::timestamptz, statement_timestamp())::timestamptz AS until;

-- CreateReplay starts a replay; the workers do it.
-- name: CreateReplay :one
INSERT INTO mailhook.replays AS r (subscription_id, account_id, since, until, event_types, source, rate_per_second, matched)
VALUES (@subscription_id, @account_id, @since, @until, sqlc.narg('event_types')::text[], @source, @rate_per_second, @matched)
RETURNING r.id, r.subscription_id, r.state, r.matched, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id;

-- GetReplay finds a replay of one account or, without @account_id, of any.
-- name: GetReplay :one
SELECT r.id, r.subscription_id, r.state, r.matched, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id
FROM mailhook.replays AS r
WHERE r.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text);

-- CancelReplay stops a replay that runs, and leaves another as it is. What it has released is delivered.
-- name: CancelReplay :one
UPDATE mailhook.replays AS r
SET state = CASE WHEN r.state = 'running' THEN 'cancelled' ELSE r.state END
WHERE r.id = @id
  AND (sqlc.narg('account_id')::text IS NULL OR r.account_id = sqlc.narg('account_id')::text)
RETURNING r.id, r.subscription_id, r.state, r.matched, r.done, r.source, r.since, r.until, r.event_types, r.rate_per_second, r.created_at, r.account_id;
