-- GetAccount answers the settings of an account and how many subscriptions it has: one row, with the defaults where
-- the account has none of its own. Every subscription that is not deleted counts, in whatever status.
-- name: GetAccount :one
SELECT coalesce(a.status, 'active')::text AS status,
  a.status_changed_at,
  a.subscription_limit,
  coalesce(a.allow_insecure_http, false)::boolean AS allow_insecure_http,
  (SELECT count(*) FROM mailhook.subscriptions AS s WHERE s.account_id = given.id AND s.deleted_at IS NULL)::bigint AS subscription_count
FROM (SELECT @id::text AS id) AS given
LEFT JOIN mailhook.accounts AS a ON a.id = given.id;

-- LockAccount makes creations of one account wait for each other until commit, so that its limit holds. An advisory
-- lock, as an account need not have a row.
-- name: LockAccount :exec
SELECT pg_advisory_xact_lock(hashtextextended(@id::text, 0));

-- PutAccount sets the settings of an account.
-- name: PutAccount :exec
INSERT INTO mailhook.accounts AS a (id, status, subscription_limit, allow_insecure_http)
VALUES (@id, @status, sqlc.narg('subscription_limit'), @allow_insecure_http)
ON CONFLICT (id) DO UPDATE
SET status = excluded.status, subscription_limit = excluded.subscription_limit, allow_insecure_http = excluded.allow_insecure_http,
  updated_at = clock_timestamp(),
  status_changed_at = CASE WHEN excluded.status <> a.status THEN clock_timestamp() ELSE a.status_changed_at END;

-- DeleteAccountRow removes the settings of an account.
-- name: DeleteAccountRow :execrows
DELETE FROM mailhook.accounts WHERE id = @id;
