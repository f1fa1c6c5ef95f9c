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
RETURNING t.id, t.subscription_id, t.event_type, t.format, t.is_preview, t.created_at;

-- EventTypeSample is what an event of a type looks like: the sample of the type or, where nobody registered it, of its nearest
-- registered ancestor, with the fields that the host writes into columns, and with the leaf type that dispatch would make of it.
-- No row for a type without either.
-- name: EventTypeSample :one
SELECT (CASE
    WHEN @name::text = 'email.bounced' AND s.sample ->> 'bounce_type' IN ('hard', 'soft') THEN 'email.bounced.' || (s.sample ->> 'bounce_type')
    WHEN @name::text IN ('email.opened', 'email.clicked') AND s.sample ->> 'message_class' IN ('newsletter', 'transactional')
      THEN @name::text || '.' || (s.sample ->> 'message_class')
    ELSE @name::text
  END)::text AS event_type,
  coalesce(s.sample ->> 'recipient', '')::text AS recipient,
  coalesce(s.sample ->> 'message_id', '')::text AS message_id,
  coalesce(s.sample ->> 'campaign_id', '')::text AS campaign_id,
  coalesce(s.sample ->> 'sending_domain', '')::text AS sending_domain,
  coalesce(s.sample ->> 'sending_node', '')::text AS sending_node,
  coalesce(s.sample ->> 'bridge', '')::text AS bridge,
  coalesce(s.sample ->> 'dedicated_ip', '')::text AS dedicated_ip,
  s.sample::json AS sample
FROM unnest(mailhook.event_type_ancestors(@name::text)) WITH ORDINALITY AS node (name, nth)
CROSS JOIN LATERAL (
  SELECT e.sample FROM mailhook.event_types AS e WHERE e.name = node.name OFFSET 0
) AS s
ORDER BY node.nth
LIMIT 1;

-- FinishTestDelivery records what came of a test send.
-- name: FinishTestDelivery :exec
UPDATE mailhook.test_deliveries
SET ended_at = clock_timestamp(), duration_ms = @duration_ms, status_code = @status_code, outcome = @outcome, response_excerpt = @response_excerpt,
  request_headers = sqlc.narg('request_headers'), content_type = sqlc.narg('content_type'), request_body = sqlc.narg('request_body')
WHERE id = @id;
