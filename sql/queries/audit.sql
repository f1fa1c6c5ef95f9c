-- InsertAudit writes a line of the audit log; Audit is the way to call it.
-- name: InsertAudit :exec
INSERT INTO mailhook.audit_log (actor, actor_key_id, account_id, action, object_id, before, after)
VALUES (@actor, sqlc.narg('actor_key_id'), sqlc.narg('account_id'), @action, sqlc.narg('object_id'), sqlc.narg('before'), sqlc.narg('after'));
