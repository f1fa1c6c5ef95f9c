-- InsertTestDelivery asks for a test send. Notify the workers in the same transaction.
-- name: InsertTestDelivery :one
INSERT INTO mailhook.test_deliveries (subscription_id, event_type)
VALUES (@subscription_id, @event_type)
RETURNING id;

-- NotifyWorkers wakes the workers at commit. The payload says what for: test, or empty for the ordinary work.
-- name: NotifyWorkers :exec
SELECT pg_notify('mailhook_wakeup', @payload::text);

-- GetTestDelivery answers how far a test send is.
-- name: GetTestDelivery :one
SELECT (t.leased_by IS NOT NULL)::boolean AS is_leased, (t.ended_at IS NOT NULL)::boolean AS is_ended,
  t.duration_ms, t.status_code, t.outcome, t.response_excerpt
FROM mailhook.test_deliveries AS t
WHERE t.id = @id;

-- WithdrawTestDelivery takes a test send back, if no worker has it.
-- name: WithdrawTestDelivery :execrows
DELETE FROM mailhook.test_deliveries WHERE id = @id AND leased_by IS NULL;
