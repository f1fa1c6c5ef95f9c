-- InsertTestDelivery asks for a test send, unless the account has asked for more than so many others within a minute:
-- then it answers how long until there is room again. Lock the account before, so that no other process counts at the
-- same time, and notify the workers in the same transaction.
-- name: InsertTestDelivery :one
WITH filling AS (
  -- The last of those that fill the limit: while it is younger than a minute, there is no room.
  SELECT t.created_at + interval '1 minute' - statement_timestamp() AS room_in
  FROM mailhook.test_deliveries AS t
  WHERE t.account_id = @account_id::text AND t.created_at > statement_timestamp() - interval '1 minute'
  ORDER BY t.created_at DESC
  OFFSET @others::int
  LIMIT 1
),
inserted AS (
  INSERT INTO mailhook.test_deliveries (subscription_id, account_id, event_type, format, is_preview)
  SELECT @subscription_id::uuid, @account_id::text, @event_type::text, @format::text, @is_preview::boolean
  WHERE NOT EXISTS (SELECT FROM filling)
  RETURNING id
)
SELECT coalesce((SELECT i.id FROM inserted AS i), '00000000-0000-0000-0000-000000000000')::uuid AS id,
  coalesce((SELECT f.room_in FROM filling AS f), interval '0')::interval AS room_in;

-- NotifyWorkers wakes the workers at commit. The payload says what for: test, or empty for the ordinary work.
-- name: NotifyWorkers :exec
SELECT pg_notify('mailhook_wakeup', @payload::text);

-- GetTestDelivery answers how far a test send is.
-- name: GetTestDelivery :one
SELECT (t.leased_by IS NOT NULL)::boolean AS is_leased, (t.ended_at IS NOT NULL)::boolean AS is_ended,
  t.duration_ms, t.status_code, t.outcome, t.response_excerpt,
  t.request_headers, t.content_type, t.request_body
FROM mailhook.test_deliveries AS t
WHERE t.id = @id;

-- WithdrawTestDelivery takes a test send back, if no worker has it.
-- name: WithdrawTestDelivery :execrows
DELETE FROM mailhook.test_deliveries WHERE id = @id AND leased_by IS NULL;
