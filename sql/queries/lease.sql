-- ReturnDeliveries gives back leased deliveries that this worker did not start, as they were; those it may start
-- again only after @delay_ms.
-- name: ReturnDeliveries :execrows
UPDATE mailhook.deliveries AS d
SET leased_by = NULL, lease_id = NULL,
  next_attempt_at = greatest(d.next_attempt_at, statement_timestamp() + r.delay_ms * interval '1 millisecond')
FROM (
  SELECT unnest(@delivery_ids::uuid[]) AS delivery_id, unnest(@lease_ids::uuid[]) AS lease_id, unnest(@delays_ms::bigint[]) AS delay_ms
) AS r
WHERE d.id = r.delivery_id AND d.lease_id = r.lease_id;

-- ListLeases names the leases that this worker holds by the database's account.
-- name: ListLeases :many
SELECT DISTINCT d.lease_id::uuid AS lease_id
FROM mailhook.deliveries AS d
WHERE d.leased_by = @worker_id::uuid AND d.lease_id IS NOT NULL;

-- ReturnLeases gives back whole leases of this worker: those of a dispatch or claim whose reply was lost. Without it
-- they would wait for ever at a healthy worker that never heard of them.
-- name: ReturnLeases :execrows
UPDATE mailhook.deliveries
SET leased_by = NULL, lease_id = NULL
WHERE leased_by = @worker_id::uuid
  AND lease_id IS NOT NULL
  AND lease_id = ANY (@lease_ids::uuid[]);
