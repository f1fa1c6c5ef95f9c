-- FindAPIKey answers whose a key is, by its hash, and whether it has ended; no row for a key that never was. The row is
-- looked up by the hash itself: how long that takes tells how far a hash agrees with a stored one, and nobody can choose the
-- hash of what he sends.
-- name: FindAPIKey :one
SELECT k.id, k.account_id, k.scope,
  (k.revoked_at IS NOT NULL)::boolean AS is_revoked,
  coalesce(k.expires_at <= statement_timestamp(), false)::boolean AS is_expired
FROM mailhook.api_keys AS k
WHERE k.key_hash = @key_hash;

-- TouchAPIKey notes that a key was used, at most once a minute.
-- name: TouchAPIKey :exec
UPDATE mailhook.api_keys AS k
SET last_used_at = statement_timestamp()
WHERE k.id = @id
  AND (k.last_used_at IS NULL OR k.last_used_at < statement_timestamp() - interval '1 minute');

-- InsertAPIKey makes a key known by its hash; without an account it is an admin key, without a lifetime it does not expire.
-- name: InsertAPIKey :one
INSERT INTO mailhook.api_keys (key_hash, account_id, name, scope, expires_at)
VALUES (@key_hash, sqlc.narg('account_id'), @name, @scope,
  CASE WHEN @lifetime::interval > interval '0' THEN statement_timestamp() + @lifetime::interval END)
RETURNING id, expires_at;

-- ListAPIKeys answers the keys of one account or, without @account_id, all, newest first. Never their hashes.
-- name: ListAPIKeys :many
SELECT k.id, k.name, k.account_id, k.scope, k.created_at, k.last_used_at, k.expires_at, k.revoked_at,
  CASE
    WHEN k.revoked_at IS NOT NULL THEN 'revoked'
    WHEN k.expires_at <= statement_timestamp() THEN 'expired'
    ELSE 'active'
  END::text AS state
FROM mailhook.api_keys AS k
WHERE sqlc.narg('account_id')::text IS NULL OR k.account_id = sqlc.narg('account_id')::text
ORDER BY k.id DESC;

-- RevokeAPIKey ends a key; one that was revoked before keeps its time. No row: there is no such key.
-- name: RevokeAPIKey :one
UPDATE mailhook.api_keys AS k
SET revoked_at = coalesce(k.revoked_at, statement_timestamp())
WHERE k.id = @id
RETURNING k.account_id, k.name, (k.revoked_at < statement_timestamp())::boolean AS was_revoked;

-- RevokeAPIKeysOfAccount ends every key of an account.
-- name: RevokeAPIKeysOfAccount :execrows
UPDATE mailhook.api_keys AS k
SET revoked_at = statement_timestamp()
WHERE k.account_id = @account_id::text AND k.revoked_at IS NULL;
