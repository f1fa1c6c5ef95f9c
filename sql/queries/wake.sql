-- Arm asks the trigger on outbox to notify for @seconds; where the installation has notifications off it makes sure that it
-- does not.
-- name: Arm :one
SELECT (setval('mailhook.wakeup', CASE WHEN i.notify_enabled THEN ceil(extract(epoch FROM clock_timestamp()) + @seconds::double precision)::bigint ELSE 0 END) > 0)::boolean AS armed
FROM mailhook.installation AS i;

-- Disarm: a worker is awake, and hosts need not notify.
-- name: Disarm :exec
SELECT setval('mailhook.wakeup', 0);

-- ListWriters names the transactions that hold a lock to write into a table now, which they took before their snapshot. Those that
-- inserted into outbox before a worker armed will not notify when they commit; those that lease deliveries since before a worker
-- registered do not count with it.
-- name: ListWriters :many
SELECT DISTINCT l.virtualtransaction::text AS writer
FROM pg_catalog.pg_locks AS l
WHERE l.locktype = 'relation'
  AND l.relation = CAST(@table_name::text AS regclass)
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
  AND l.mode = 'RowExclusiveLock'
  AND l.granted
  AND l.virtualtransaction IS NOT NULL
  AND l.pid IS DISTINCT FROM pg_backend_pid();

-- Notify tells the sessions that listen on a channel, when it commits.
-- name: Notify :exec
SELECT pg_notify(@channel::text, '');
