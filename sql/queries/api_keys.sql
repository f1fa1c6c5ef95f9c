-- FindAPIKey answers whom a key may act for: the account of the key with this hash, NULL for an admin key, no row for
-- a key that does not exist.
-- name: FindAPIKey :one
SELECT k.account_id FROM mailhook.api_keys AS k WHERE k.key_hash = @key_hash;

-- InsertAPIKey makes a key known by its hash; without an account it is an admin key.
-- name: InsertAPIKey :exec
INSERT INTO mailhook.api_keys (key_hash, account_id)
VALUES (@key_hash, sqlc.narg('account_id'));

-- DeleteAPIKeysOfAccount ends every key of an account.
-- name: DeleteAPIKeysOfAccount :execrows
DELETE FROM mailhook.api_keys WHERE account_id = @account_id::text;
