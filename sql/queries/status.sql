-- Status is the state of the whole installation in numbers. Counts of waiting rows stop at 1,000,000, so that the
-- question stays cheap when the answer is bad.
-- name: Status :one
SELECT i.delivery_enabled,
  (SELECT count(*) FROM (SELECT FROM mailhook.outbox LIMIT 1000000) AS o)::bigint AS undispatched,
  coalesce((SELECT extract(epoch FROM clock_timestamp() - o.inserted_at) FROM mailhook.outbox AS o ORDER BY o.id LIMIT 1), 0)::double precision AS oldest_undispatched_seconds,
  (SELECT count(*) FROM (SELECT FROM mailhook.deliveries AS d WHERE d.lease_id IS NULL AND d.next_attempt_at <= statement_timestamp() LIMIT 1000000) AS x)::bigint AS due,
  (SELECT count(*) FROM (SELECT FROM mailhook.deliveries AS d WHERE d.lease_id IS NULL AND d.next_attempt_at > statement_timestamp() LIMIT 1000000) AS x)::bigint AS waiting,
  (SELECT count(*) FROM (SELECT FROM mailhook.deliveries AS d WHERE d.lease_id IS NOT NULL LIMIT 1000000) AS x)::bigint AS sending,
  (SELECT count(*) FROM (
    SELECT FROM mailhook.subscriptions AS s
    JOIN mailhook.deliveries AS d ON d.subscription_id = s.id AND d.lease_id IS NULL
    WHERE s.status IN ('paused', 'suspended')
      OR EXISTS (SELECT FROM mailhook.accounts AS a WHERE a.id = s.account_id AND a.status = 'suspended')
      OR EXISTS (SELECT FROM mailhook.subscription_health AS h WHERE h.subscription_id = s.id AND (h.opened_at IS NOT NULL OR h.wait_until > clock_timestamp()))
    LIMIT 1000000) AS x)::bigint AS held,
  (SELECT count(*) FROM mailhook.subscription_health AS h WHERE h.opened_at IS NOT NULL)::bigint AS open_circuits,
  (SELECT count(*) FROM (SELECT FROM mailhook.dead_letters LIMIT 1000000) AS x)::bigint AS dead,
  (SELECT count(*) FROM (SELECT FROM mailhook.quarantine LIMIT 1000000) AS x)::bigint AS quarantined,
  coalesce(pg_sequence_last_value('mailhook.emit_failures'::regclass), 0)::bigint AS emit_failures
FROM mailhook.installation AS i;

-- ListWorkers names the live workers.
-- name: ListWorkers :many
SELECT w.id, w.hostname, w.pid, w.version, w.started_at, w.seen_at FROM mailhook.workers AS w ORDER BY w.started_at;

-- ListWorstSubscriptions names the subscriptions that fail most.
-- name: ListWorstSubscriptions :many
SELECT s.id, s.account_id, s.name, s.status, h.consecutive_failures, h.first_failed_at, h.last_outcome, h.opened_at
FROM mailhook.subscription_health AS h
JOIN mailhook.subscriptions AS s ON s.id = h.subscription_id
WHERE h.consecutive_failures > 0
ORDER BY h.consecutive_failures DESC
LIMIT @max_rows::int;

-- SetDelivery switches sending off or on for the whole installation, and answers how it was. The host keeps writing.
-- name: SetDelivery :one
WITH locked AS (SELECT i.delivery_enabled FROM mailhook.installation AS i FOR UPDATE)
UPDATE mailhook.installation AS i
SET delivery_enabled = @enabled
FROM locked AS l
RETURNING l.delivery_enabled;
