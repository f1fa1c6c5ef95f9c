-- GetMasterKeyID is the id of the master key that the installation seals with; empty: none yet.
-- name: GetMasterKeyID :one
SELECT coalesce(i.secret_key_id, '')::text AS key_id FROM mailhook.installation AS i WHERE i.singleton;

-- ClaimMasterKey makes a master key that of the installation if it has none yet.
-- name: ClaimMasterKey :exec
UPDATE mailhook.installation AS i SET secret_key_id = @key_id::text WHERE i.singleton AND i.secret_key_id IS NULL;

-- HoldMasterKey is GetMasterKeyID for a transaction that seals: a rotation waits until it has ended.
-- name: HoldMasterKey :one
SELECT coalesce(i.secret_key_id, '')::text AS key_id FROM mailhook.installation AS i WHERE i.singleton FOR SHARE;

-- LockMasterKey is GetMasterKeyID for a rotation: who seals or registers waits until it has ended.
-- name: LockMasterKey :one
SELECT coalesce(i.secret_key_id, '')::text AS key_id FROM mailhook.installation AS i WHERE i.singleton FOR UPDATE;

-- SetMasterKey makes a master key the one that the installation seals with.
-- name: SetMasterKey :exec
UPDATE mailhook.installation AS i SET secret_key_id = @key_id::text WHERE i.singleton;

-- ListWorkersWithoutKey names the live workers that lack a master key. One without a heartbeat for 30 s is gone; if it comes
-- back, Beat refuses it.
-- name: ListWorkersWithoutKey :many
SELECT w.id, w.hostname, w.pid
FROM mailhook.workers AS w
WHERE w.seen_at > clock_timestamp() - interval '30 seconds' AND NOT w.key_ids @> ARRAY[@key_id::text]
ORDER BY w.hostname, w.pid;

-- ListSealed is what other keys than @key_id have sealed of a kind, after an id, in the order of ids: those of the secrets, or of
-- the subscriptions whose credentials they are.
-- name: ListSealed :many
SELECT x.id, x.subscription_id, x.key_id, x.sealed
FROM mailhook.subscription_secrets AS x
WHERE @kind::text = 'secret' AND x.key_id <> @key_id::text AND x.id > @after_id::uuid
UNION ALL
SELECT c.subscription_id, c.subscription_id, c.key_id, c.sealed
FROM mailhook.subscription_credentials AS c
WHERE c.kind = @kind::text AND c.key_id <> @key_id::text AND c.subscription_id > @after_id::uuid
ORDER BY 1
LIMIT @max_rows::int;

-- ResealSecrets stores secrets as another key has sealed them, while that one is the installation's. What was changed since it
-- was read, or is locked at this moment, stays as it is.
-- name: ResealSecrets :execrows
UPDATE mailhook.subscription_secrets AS x
SET key_id = @key_id::text, sealed = g.sealed
FROM (
  SELECT unnest(@ids::uuid[]) AS id, unnest(@old_key_ids::text[]) AS old_key_id, unnest(@sealed::bytea[]) AS sealed
) AS g
WHERE x.id = g.id
  AND x.key_id = g.old_key_id
  AND (SELECT i.secret_key_id FROM mailhook.installation AS i WHERE i.singleton) = @key_id::text
  AND x.id = ANY (ARRAY(
    SELECT l.id FROM mailhook.subscription_secrets AS l WHERE l.id = ANY (@ids::uuid[]) FOR UPDATE SKIP LOCKED));

-- ResealCredentials is ResealSecrets for the credentials of a kind; @ids are those of the subscriptions.
-- name: ResealCredentials :execrows
UPDATE mailhook.subscription_credentials AS c
SET key_id = @key_id::text, sealed = g.sealed
FROM (
  SELECT unnest(@ids::uuid[]) AS id, unnest(@old_key_ids::text[]) AS old_key_id, unnest(@sealed::bytea[]) AS sealed
) AS g
WHERE c.subscription_id = g.id
  AND c.kind = @kind::text
  AND c.key_id = g.old_key_id
  AND (SELECT i.secret_key_id FROM mailhook.installation AS i WHERE i.singleton) = @key_id::text
  AND c.subscription_id = ANY (ARRAY(
    SELECT l.subscription_id FROM mailhook.subscription_credentials AS l
    WHERE l.kind = @kind::text AND l.subscription_id = ANY (@ids::uuid[]) FOR UPDATE SKIP LOCKED));

-- CountSealed is how many values each master key has sealed.
-- name: CountSealed :many
SELECT k.key_id::text AS key_id, sum(k.n)::bigint AS n
FROM (
  SELECT x.key_id, count(*) AS n FROM mailhook.subscription_secrets AS x GROUP BY x.key_id
  UNION ALL
  SELECT c.key_id, count(*) FROM mailhook.subscription_credentials AS c GROUP BY c.key_id
) AS k
GROUP BY k.key_id
ORDER BY k.key_id;

-- ListLeftKeys names the master keys that rotations have left, as far back as the audit log goes.
-- name: ListLeftKeys :many
SELECT DISTINCT (a.before ->> 'key_id')::text AS key_id
FROM mailhook.audit_log AS a
WHERE a.action = 'master_key.rotate' AND a.before ->> 'key_id' IS NOT NULL;
