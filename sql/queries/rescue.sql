-- RegisterWorker makes a worker known; its leases count from then on. No row: it lacks the master key that the installation
-- seals with. The lock makes a rotation wait, which then sees this worker, or this wait for the rotation.
-- name: RegisterWorker :execrows
WITH allowed AS (
  SELECT i.singleton
  FROM mailhook.installation AS i
  WHERE i.secret_key_id IS NULL OR i.secret_key_id = ANY (@key_ids::text[])
  FOR SHARE
)
INSERT INTO mailhook.workers (id, hostname, pid, version, key_ids)
SELECT @id, @hostname, @pid, @version, @key_ids::text[]
FROM allowed;

-- Beat raises the heartbeat of a worker. No row: it has been rescued and needs a new identity, or it slept through a rotation
-- and lacks the master key: without a heartbeat it sends nothing.
-- name: Beat :one
UPDATE mailhook.workers AS w
SET heartbeat = w.heartbeat + 1, seen_at = clock_timestamp()
WHERE w.id = @id
  AND coalesce((SELECT i.secret_key_id FROM mailhook.installation AS i WHERE i.singleton) = ANY (w.key_ids), true)
RETURNING w.heartbeat;

-- ListHeartbeats is what a rescuer compares with what it saw before, and for how long each has been silent by the
-- database's clock.
-- name: ListHeartbeats :many
SELECT w.id, w.heartbeat, extract(epoch FROM clock_timestamp() - w.seen_at)::double precision AS silent_seconds
FROM mailhook.workers AS w
ORDER BY w.id;

-- RescueWorker removes a worker whose heartbeat is still the one that the rescuer saw standing, and frees its deliveries.
-- name: RescueWorker :one
WITH removed AS (
  DELETE FROM mailhook.workers AS w
  WHERE w.id = @id::uuid AND w.heartbeat = @heartbeat::bigint
  RETURNING w.id
),
freed AS (
  UPDATE mailhook.deliveries AS d
  SET leased_by = NULL, lease_id = NULL
  FROM removed AS r
  WHERE d.leased_by = r.id AND d.lease_id IS NOT NULL
  RETURNING d.id
)
SELECT (SELECT count(*) FROM removed)::bigint AS removed, (SELECT count(*) FROM freed)::bigint AS freed;

-- FreeOrphans frees the deliveries leased by workers that are not registered: a worker that was rescued in the
-- middle of a dispatch.
-- name: FreeOrphans :execrows
UPDATE mailhook.deliveries AS d
SET leased_by = NULL, lease_id = NULL
WHERE d.lease_id IS NOT NULL
  AND d.leased_by = ANY (@workers::uuid[])
  AND NOT EXISTS (SELECT FROM mailhook.workers AS w WHERE w.id = d.leased_by);

-- ListLeaseHolders walks the distinct workers that hold leases.
-- name: ListLeaseHolders :many
WITH RECURSIVE held AS (
  SELECT (SELECT d.leased_by FROM mailhook.deliveries AS d WHERE d.lease_id IS NOT NULL ORDER BY d.leased_by LIMIT 1) AS leased_by
  UNION ALL
  SELECT (
    SELECT d.leased_by FROM mailhook.deliveries AS d
    WHERE d.lease_id IS NOT NULL AND d.leased_by > h.leased_by
    ORDER BY d.leased_by LIMIT 1)
  FROM held AS h
  WHERE h.leased_by IS NOT NULL
)
SELECT h.leased_by::uuid AS worker_id
FROM held AS h
WHERE h.leased_by IS NOT NULL AND NOT EXISTS (SELECT FROM mailhook.workers AS w WHERE w.id = h.leased_by);

-- RemoveWorker signs a worker off and frees whatever it still holds.
-- name: RemoveWorker :exec
WITH removed AS (
  DELETE FROM mailhook.workers AS w WHERE w.id = @id::uuid
)
UPDATE mailhook.deliveries AS d
SET leased_by = NULL, lease_id = NULL
WHERE d.leased_by = @id::uuid AND d.lease_id IS NOT NULL;
