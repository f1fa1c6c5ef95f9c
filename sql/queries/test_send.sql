-- ClaimTestDeliveries takes waiting test sends, oldest first.
-- name: ClaimTestDeliveries :many
UPDATE mailhook.test_deliveries AS t
SET leased_by = @worker_id::uuid
WHERE t.id = ANY (ARRAY(
  SELECT w.id FROM mailhook.test_deliveries AS w
  WHERE w.leased_by IS NULL
  ORDER BY w.created_at
  LIMIT 10
  FOR UPDATE SKIP LOCKED))
RETURNING t.id, t.subscription_id, t.event_type, t.created_at;

-- EventTypeSample is the sample data of a type; no row for a type that nobody registered.
-- name: EventTypeSample :one
SELECT e.sample FROM mailhook.event_types AS e WHERE e.name = @name;

-- FinishTestDelivery records what came of a test send.
-- name: FinishTestDelivery :exec
UPDATE mailhook.test_deliveries
SET ended_at = clock_timestamp(), duration_ms = @duration_ms, status_code = @status_code, outcome = @outcome, response_excerpt = @response_excerpt
WHERE id = @id;
