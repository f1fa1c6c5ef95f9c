-- +goose Up
CREATE TABLE mailhook.audit_log (
  id            uuid NOT NULL DEFAULT mailhook.uuid7(),
  changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor         text NOT NULL,
  actor_key_id  uuid, -- no foreign key: what is written here stays as it was written
  database_user text NOT NULL DEFAULT session_user,
  account_id    text,
  action        text NOT NULL,
  object_id     text,
  before        json,
  after         json,
  CONSTRAINT audit_log_id_pkey PRIMARY KEY (id),
  CONSTRAINT audit_log_actor_check CHECK ((actor = 'key') = (actor_key_id IS NOT NULL) AND actor IN ('key', 'command'))
);
CREATE INDEX audit_log_account_id_id_idx ON mailhook.audit_log (account_id, id);
CREATE INDEX audit_log_changed_at_idx ON mailhook.audit_log (changed_at);
COMMENT ON TABLE mailhook.audit_log IS 'Every change made by a key or a command, in the transaction of the change. Rows are added, never changed, and dropped after --retain-audit.';
COMMENT ON COLUMN mailhook.audit_log.actor IS 'key: by the API, with actor_key_id. command: by mailhook on a command line, as database_user.';
COMMENT ON COLUMN mailhook.audit_log.actor_key_id IS 'api_keys.id; its public form is key_ and the hexadecimal digits.';
COMMENT ON COLUMN mailhook.audit_log.database_user IS 'The role that was logged in to the database.';
COMMENT ON COLUMN mailhook.audit_log.account_id IS 'Whose things were changed; NULL: the whole installation''s.';
COMMENT ON COLUMN mailhook.audit_log.action IS 'The kind of thing and the verb: subscription.update, delivery.retry, key.revoke and the like.';
COMMENT ON COLUMN mailhook.audit_log.object_id IS 'The public id of what was changed.';
COMMENT ON COLUMN mailhook.audit_log.before IS 'The fields that changed, as the API shows them, before; NULL: there is nothing to show. Never secrets, header values, recipients, or more of a URL than scheme, host and path.';
COMMENT ON COLUMN mailhook.audit_log.after IS 'The same fields after.';

-- Workers drop old lines, and may have been taken over.
CREATE TRIGGER audit_log_stays BEFORE DELETE ON mailhook.audit_log
FOR EACH ROW WHEN (OLD.changed_at > statement_timestamp() - interval '7 days')
EXECUTE FUNCTION mailhook.refuse('the audit log keeps its last 7 days');

-- +goose Down
DROP TABLE mailhook.audit_log;
