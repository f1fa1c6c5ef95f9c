-- +goose Up
-- +goose StatementBegin
CREATE FUNCTION mailhook.create_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
  partition text := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
  key_column text := CASE parent WHEN 'events' THEN 'inserted_at' WHEN 'attempts' THEN 'started_at' END;
  move text;
BEGIN
  IF key_column IS NULL THEN
    RAISE EXCEPTION 'only events and attempts have partitions';
  END IF;
  IF to_regclass(format('mailhook.%I', partition)) IS NOT NULL THEN
    RETURN false;
  END IF;
  -- LIKE, then ATTACH: CREATE TABLE … PARTITION OF would lock the parent against every insert.
  -- LIKE takes no storage parameters along. Rows come and stay: vacuumed by number and frozen at once, so that neither an
  -- old partition nor a host that spends its transaction ids fast has them all read again.
  EXECUTE format('CREATE TABLE mailhook.%I (LIKE mailhook.%I INCLUDING ALL) WITH (autovacuum_freeze_min_age = 0, '
    'autovacuum_vacuum_insert_scale_factor = 0.0, autovacuum_vacuum_insert_threshold = 200000)', partition, parent);
  -- Nor statistics targets: no samples of what people's data is in (see erasures).
  EXECUTE format('ALTER TABLE mailhook.%I %s', partition, CASE parent
    WHEN 'events' THEN 'ALTER COLUMN recipient SET STATISTICS 0, ALTER COLUMN message_id SET STATISTICS 0, '
      'ALTER COLUMN campaign_id SET STATISTICS 0, ALTER COLUMN dedupe_key SET STATISTICS 0, ALTER COLUMN data SET STATISTICS 0'
    ELSE 'ALTER COLUMN response_excerpt SET STATISTICS 0'
  END);
  -- What came before its partition lies in DEFAULT, which must have none of the day's rows. They are moved before the
  -- lock, as there may be many, and those that came meanwhile under it. Readers see them all the while.
  move := format('WITH moved AS (DELETE FROM mailhook.%I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO mailhook.%I SELECT * FROM moved',
    parent || '_default', key_column, day::timestamptz, key_column, (day + 1)::timestamptz, partition);
  EXECUTE move;
  EXECUTE format('LOCK TABLE mailhook.%I IN ACCESS EXCLUSIVE MODE', parent || '_default');
  EXECUTE move;
  EXECUTE format('ALTER TABLE mailhook.%I ATTACH PARTITION mailhook.%I FOR VALUES FROM (%L) TO (%L)',
    parent, partition, day::timestamptz, (day + 1)::timestamptz);
  RETURN true;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.create_partition IS 'Makes the partition of one day (UTC) of events or attempts, with the rows of that day that lie in DEFAULT; false where it exists.';
REVOKE ALL ON FUNCTION mailhook.create_partition(text, date) FROM PUBLIC;

-- What a host may well write and PostgreSQL cannot read is told from an error by these two: an error costs the batch, and
-- several statements to find its row. An exception block that writes nothing takes no transaction id.
-- +goose StatementBegin
CREATE FUNCTION mailhook.address_of(value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
  RETURN host(value::inet);
EXCEPTION
  WHEN invalid_text_representation THEN
    RETURN NULL;
END
$$;

CREATE FUNCTION mailhook.is_readable(data json) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
  RETURN data::jsonb IS NOT NULL;
EXCEPTION
  WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.address_of IS 'An address as host() writes it, so that addresses compare by value; NULL where it is none.';
COMMENT ON FUNCTION mailhook.is_readable IS 'Whether json can be read as jsonb: without \u0000, and without numbers beyond numeric.';
REVOKE ALL ON FUNCTION mailhook.address_of(text), mailhook.is_readable(json) FROM PUBLIC;

-- Both are inlined into dispatch; the API tells by them what dispatch would make of an event.
CREATE FUNCTION mailhook.leaf_type(event_type text, data json) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
  WHEN event_type NOT IN ('email.bounced', 'email.opened', 'email.clicked') THEN event_type
  -- \u0000 and half of a surrogate pair, anywhere: no field of it can be read.
  WHEN (position('\u0000' IN data::text) > 0 OR position('\ud' IN data::text) > 0 OR position('\uD' IN data::text) > 0) AND NOT mailhook.is_readable(data)
    THEN event_type
  WHEN event_type = 'email.bounced' AND data ->> 'bounce_type' IN ('hard', 'soft')
    THEN 'email.bounced.' || (data ->> 'bounce_type')
  WHEN event_type IN ('email.opened', 'email.clicked') AND data ->> 'message_class' IN ('newsletter', 'transactional')
    THEN event_type || '.' || (data ->> 'message_class')
  ELSE event_type
END;

-- First the cheap ones. Whether jsonb can read it is asked only about the two spellings it is known to refuse.
CREATE FUNCTION mailhook.refusal_of(event_type text, account_id text, recipient text, message_id text, campaign_id text, sending_domain text,
  sending_node text, bridge text, dedupe_key text, occurred_at timestamptz, dedicated_ip text, dedicated_address text, data json) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
  WHEN octet_length(event_type) > 100 OR event_type !~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$'
    THEN 'MH001 event_type is not valid'
  WHEN greatest(octet_length(account_id), octet_length(recipient), octet_length(message_id), octet_length(campaign_id),
      octet_length(sending_domain), octet_length(sending_node), octet_length(bridge), octet_length(dedupe_key)) > 1000
    THEN 'MH003 ' || CASE
      WHEN octet_length(account_id) > 1000 THEN 'account_id'
      WHEN octet_length(recipient) > 1000 THEN 'recipient'
      WHEN octet_length(message_id) > 1000 THEN 'message_id'
      WHEN octet_length(campaign_id) > 1000 THEN 'campaign_id'
      WHEN octet_length(sending_domain) > 1000 THEN 'sending_domain'
      WHEN octet_length(sending_node) > 1000 THEN 'sending_node'
      WHEN octet_length(bridge) > 1000 THEN 'bridge'
      ELSE 'dedupe_key'
    END || ' is longer than 1,000 bytes'
  WHEN occurred_at < '0001-01-01 00:00+00' OR occurred_at >= '10000-01-01 00:00+00'
    THEN 'MH004 occurred_at is not in the years 1 to 9999'
  WHEN json_typeof(data) <> 'object'
    THEN 'MH002 data is not an object'
  WHEN octet_length(data::text) > 262144
    THEN 'MH002 data is longer than 262,144 bytes'
  WHEN data::text ~ '\\u0000|[0-9][eE][+-]?[0-9]{4}' AND NOT mailhook.is_readable(data)
    THEN 'MH002 data cannot be read back'
  WHEN dedicated_ip IS NOT NULL AND dedicated_address IS NULL
    THEN 'MH006 dedicated_ip is not an address'
END;
COMMENT ON FUNCTION mailhook.leaf_type IS 'The most exact type: bounce_type and message_class make it.';
COMMENT ON FUNCTION mailhook.refusal_of IS 'Which limit an event passes, as its error code, a space and the reason; NULL where dispatch takes it. dedicated_address is mailhook.address_of(dedicated_ip).';
REVOKE ALL ON FUNCTION mailhook.leaf_type(text, json), mailhook.refusal_of(text, text, text, text, text, text, text, text, text, timestamptz, text, text, json)
FROM PUBLIC;

CREATE TABLE mailhook.events (
  inserted_at    timestamptz NOT NULL,
  id             bigint NOT NULL,
  account_id     text NOT NULL,
  event_type     text NOT NULL,
  occurred_at    timestamptz NOT NULL,
  dispatched_at  timestamptz NOT NULL,
  recipient      text,
  message_id     text,
  campaign_id    text,
  sending_domain text,
  sending_node   text,
  bridge         text,
  dedicated_ip   text,
  dedupe_key     text,
  duplicate_of   text,
  data           json,
  erased_at      timestamptz,
  CONSTRAINT events_inserted_at_id_pkey PRIMARY KEY (inserted_at, id)
) PARTITION BY RANGE (inserted_at);
CREATE INDEX events_account_id_inserted_at_idx ON mailhook.events (account_id, inserted_at, id);

COMMENT ON TABLE mailhook.events IS 'The log of dispatched events: append-only but for erasures, replayable, a partition for each day (UTC) of inserted_at.';
COMMENT ON COLUMN mailhook.events.inserted_at IS 'When the host wrote it; with id the identity. The partition key is never occurred_at: the host controls that.';
COMMENT ON COLUMN mailhook.events.event_type IS 'The most exact type: email.bounced with a bounce_type has become email.bounced.hard or .soft.';
COMMENT ON COLUMN mailhook.events.dispatched_at IS 'When subscriptions were matched.';
COMMENT ON COLUMN mailhook.events.erased_at IS 'When a person was erased from it: what is left is that something of this type happened for this account, so that counts stay true. It is not delivered any more.';
COMMENT ON COLUMN mailhook.events.duplicate_of IS 'The id of the earlier event with the same dedupe_key: this one has no deliveries.';

CREATE TABLE mailhook.events_default PARTITION OF mailhook.events DEFAULT;
COMMENT ON TABLE mailhook.events_default IS 'Events of a day without a partition. Rows here mean that partitions were not made ahead: an alarm.';

CREATE TABLE mailhook.dedupe_keys (
  account_id        text NOT NULL,
  dedupe_key        text NOT NULL,
  event_inserted_at timestamptz NOT NULL,
  event_id          bigint NOT NULL,
  seen_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT dedupe_keys_account_id_dedupe_key_pkey PRIMARY KEY (account_id, dedupe_key)
) WITH (
  -- Each row goes after the window: dead rows by number, not by share of a large table.
  autovacuum_vacuum_scale_factor = 0.0,
  autovacuum_vacuum_threshold = 20000,
  vacuum_truncate = off
);
CREATE INDEX dedupe_keys_seen_at_idx ON mailhook.dedupe_keys (seen_at);
COMMENT ON TABLE mailhook.dedupe_keys IS 'The dedupe keys seen within the window, written by dispatch in key order. A table of its own: a unique key on outbox would make host transactions wait for each other.';

CREATE TABLE mailhook.quarantine (
  inserted_at    timestamptz NOT NULL,
  id             bigint NOT NULL,
  account_id     text,
  event_type     text NOT NULL,
  occurred_at    timestamptz,
  recipient      text,
  message_id     text,
  campaign_id    text,
  sending_domain text,
  sending_node   text,
  bridge         text,
  dedicated_ip   text,
  dedupe_key     text,
  data           json,
  reason         text NOT NULL,
  error_code     text NOT NULL,
  quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT quarantine_inserted_at_id_pkey PRIMARY KEY (inserted_at, id)
);
CREATE INDEX quarantine_quarantined_at_idx ON mailhook.quarantine (quarantined_at);
COMMENT ON TABLE mailhook.quarantine IS 'Events that dispatch could not process, as the host wrote them, with the reason. Released ones go back to the outbox under the same id.';
COMMENT ON COLUMN mailhook.quarantine.error_code IS 'A SQLSTATE: of class MH where a known limit was passed, else what PostgreSQL said.';

-- +goose Down
DROP TABLE mailhook.quarantine, mailhook.dedupe_keys, mailhook.events;
DROP FUNCTION mailhook.refusal_of, mailhook.leaf_type, mailhook.create_partition, mailhook.is_readable, mailhook.address_of;
