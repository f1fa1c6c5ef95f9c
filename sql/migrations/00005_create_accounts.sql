-- +goose Up
CREATE TABLE mailhook.accounts (
  id                  text NOT NULL,
  status              text NOT NULL DEFAULT 'active',
  subscription_limit  integer,
  allow_insecure_http boolean NOT NULL DEFAULT false,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  status_changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT accounts_id_pkey PRIMARY KEY (id),
  CONSTRAINT accounts_status_check CHECK (status IN ('active', 'suspended')),
  CONSTRAINT accounts_subscription_limit_check CHECK (subscription_limit >= 0)
);
CREATE INDEX accounts_updated_at_idx ON mailhook.accounts (updated_at);
COMMENT ON TABLE mailhook.accounts IS 'Customers of the host that have settings of their own. An account without a row has the defaults.';
COMMENT ON COLUMN mailhook.accounts.status IS 'suspended: all deliveries of the account are held.';
COMMENT ON COLUMN mailhook.accounts.status_changed_at IS 'Since when it has its status.';
COMMENT ON COLUMN mailhook.accounts.subscription_limit IS 'How many subscriptions it may have; NULL is the default limit.';
COMMENT ON COLUMN mailhook.accounts.allow_insecure_http IS 'Whether its subscriptions may use http, where the installation allows https only.';

CREATE TABLE mailhook.api_keys (
  id           uuid NOT NULL DEFAULT mailhook.uuid7(),
  key_hash     bytea NOT NULL,
  account_id   text,
  name         text NOT NULL DEFAULT '',
  scope        text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_used_at timestamptz,
  expires_at   timestamptz,
  revoked_at   timestamptz,
  CONSTRAINT api_keys_id_pkey PRIMARY KEY (id),
  CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
  CONSTRAINT api_keys_scope_check CHECK (scope IN ('read', 'write'))
);
CREATE INDEX api_keys_account_id_idx ON mailhook.api_keys (account_id);
COMMENT ON TABLE mailhook.api_keys IS 'Keys of the JSON API, made by mailhook key create. A row stays when its key has ended: the audit log names it.';
COMMENT ON COLUMN mailhook.api_keys.key_hash IS 'SHA-256 of the key. Keys have 256 random bits, so a fast hash is enough.';
COMMENT ON COLUMN mailhook.api_keys.account_id IS 'The one account this key may act for; NULL is an admin key.';
COMMENT ON COLUMN mailhook.api_keys.name IS 'For people: who has it, and what for.';
COMMENT ON COLUMN mailhook.api_keys.scope IS 'read: changes nothing. write: reads and changes.';
COMMENT ON COLUMN mailhook.api_keys.last_used_at IS 'To the minute; NULL: never.';
COMMENT ON COLUMN mailhook.api_keys.expires_at IS 'From then on it is refused; NULL: never.';
COMMENT ON COLUMN mailhook.api_keys.revoked_at IS 'Refused since: revoked by mailhook key revoke, or its account was deleted.';

-- Who may set revoked_at may not take it back: an API process that is taken over gives no ended key its life again.
-- +goose StatementBegin
CREATE FUNCTION mailhook.refuse() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
  RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.refuse IS 'For triggers whose condition says what nobody may do; their argument says it in words.';
REVOKE ALL ON FUNCTION mailhook.refuse() FROM PUBLIC;
CREATE TRIGGER api_keys_stay_revoked BEFORE UPDATE ON mailhook.api_keys
FOR EACH ROW WHEN (OLD.revoked_at IS DISTINCT FROM NEW.revoked_at AND OLD.revoked_at IS NOT NULL)
EXECUTE FUNCTION mailhook.refuse('a revoked key stays revoked');

-- +goose Down
DROP TABLE mailhook.api_keys, mailhook.accounts;
DROP FUNCTION mailhook.refuse;
