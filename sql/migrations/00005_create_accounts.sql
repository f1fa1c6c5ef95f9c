-- +goose Up
CREATE TABLE mailhook.accounts (
  id                  text NOT NULL,
  status              text NOT NULL DEFAULT 'active',
  subscription_limit  integer,
  allow_insecure_http boolean NOT NULL DEFAULT false,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT accounts_id_pkey PRIMARY KEY (id),
  CONSTRAINT accounts_status_check CHECK (status IN ('active', 'suspended')),
  CONSTRAINT accounts_subscription_limit_check CHECK (subscription_limit >= 0)
);
CREATE INDEX accounts_updated_at_idx ON mailhook.accounts (updated_at);
COMMENT ON TABLE mailhook.accounts IS 'Customers of the host that have settings of their own. An account without a row has the defaults.';
COMMENT ON COLUMN mailhook.accounts.status IS 'suspended: all deliveries of the account are held.';
COMMENT ON COLUMN mailhook.accounts.subscription_limit IS 'How many subscriptions it may have; NULL is the default limit.';
COMMENT ON COLUMN mailhook.accounts.allow_insecure_http IS 'Whether its subscriptions may use http, where the installation allows https only.';

CREATE TABLE mailhook.api_keys (
  id         uuid NOT NULL DEFAULT mailhook.uuid7(),
  key_hash   bytea NOT NULL,
  account_id text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT api_keys_id_pkey PRIMARY KEY (id),
  CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash)
);
COMMENT ON TABLE mailhook.api_keys IS 'Keys of the JSON API, made by mailhook key create.';
COMMENT ON COLUMN mailhook.api_keys.key_hash IS 'SHA-256 of the key. Keys have 256 random bits, so a fast hash is enough.';
COMMENT ON COLUMN mailhook.api_keys.account_id IS 'The one account this key may act for; NULL is an admin key.';

-- +goose Down
DROP TABLE mailhook.api_keys, mailhook.accounts;
