-- +goose Up
CREATE SCHEMA IF NOT EXISTS mailhook;

-- Roles belong to the cluster, not to this database: another database may have made it already,
-- an operator without CREATEROLE may have had it made for them, and 20 installers may race.
-- +goose StatementBegin
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['mailhook_producer', 'mailhook_worker', 'mailhook_api'] LOOP
    BEGIN
      IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      END IF;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN
        NULL;
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'this role may not create the role %', name
          USING ERRCODE = 'insufficient_privilege',
            HINT = 'Ask an administrator for: CREATE ROLE mailhook_producer NOLOGIN; CREATE ROLE mailhook_worker NOLOGIN; CREATE ROLE mailhook_api NOLOGIN; then run mailhook migrate up again.';
    END;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- What each may do with the tables is in 00014_grant_roles.sql.
GRANT USAGE ON SCHEMA mailhook TO mailhook_producer, mailhook_worker, mailhook_api;

CREATE TABLE mailhook.installation (
  singleton        boolean NOT NULL DEFAULT true,
  delivery_enabled boolean NOT NULL DEFAULT true,
  notify_enabled   boolean NOT NULL DEFAULT true,
  dedupe_window    interval NOT NULL DEFAULT '24 hours',
  circuit_failures integer NOT NULL DEFAULT 20,
  circuit_after    interval NOT NULL DEFAULT '10 seconds',
  probe_pause      interval NOT NULL DEFAULT '3 seconds',
  longest_probe_pause interval NOT NULL DEFAULT '1 minute',
  release_rate     double precision NOT NULL DEFAULT 100,
  suspend_after    interval NOT NULL DEFAULT '5 days',
  secret_key_id    text,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT installation_singleton_pkey PRIMARY KEY (singleton),
  CONSTRAINT installation_singleton_check CHECK (singleton),
  CONSTRAINT installation_dedupe_window_check CHECK (dedupe_window >= '1 minute'),
  CONSTRAINT installation_circuit_failures_check CHECK (circuit_failures >= 1),
  CONSTRAINT installation_circuit_after_check CHECK (circuit_after >= '0 seconds'),
  CONSTRAINT installation_probe_pause_check CHECK (probe_pause >= '100 milliseconds' AND longest_probe_pause >= probe_pause),
  CONSTRAINT installation_release_rate_check CHECK (release_rate >= 1),
  CONSTRAINT installation_suspend_after_check CHECK (suspend_after >= '1 minute')
);
INSERT INTO mailhook.installation DEFAULT VALUES;

COMMENT ON TABLE mailhook.installation IS 'Settings of this installation that every worker must share: one row.';
COMMENT ON COLUMN mailhook.installation.delivery_enabled IS 'false: the host keeps writing events, nothing is dispatched or sent (mailhook delivery off).';
COMMENT ON COLUMN mailhook.installation.notify_enabled IS 'false: workers never arm the wakeup sequence, so no host transaction ever runs NOTIFY; workers poll. For hosts that use two-phase commit.';
COMMENT ON COLUMN mailhook.installation.circuit_failures IS 'So many failed attempts in a row, over at least circuit_after, open the circuit of a subscription: its deliveries are held.';
COMMENT ON COLUMN mailhook.installation.probe_pause IS 'From an opened circuit to its first probe, and from each that fails to the next: a tenth of the time that the circuit has been open, but no less than this and no more than longest_probe_pause.';
COMMENT ON COLUMN mailhook.installation.release_rate IS 'Held deliveries released each second for each subscription, once they are held no longer. Its own rate limit holds as well.';
COMMENT ON COLUMN mailhook.installation.suspend_after IS 'A subscription with nothing but failures for so long is suspended, as failing, when a schedule ends or a probe fails.';
COMMENT ON COLUMN mailhook.installation.secret_key_id IS 'Which master key seals from now on: that of the first process that started, or the one mailhook keys rotate went to. A process without it does not start. NULL: none yet.';
COMMENT ON COLUMN mailhook.installation.dedupe_window IS 'How long a dedupe_key keeps later events with the same key from being delivered.';

-- The code of this installation is a constant function, not a column: emit runs under the host''s
-- role and may read no table of ours, and a constant costs the host nothing.
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE format(
    'CREATE FUNCTION mailhook.installation_code() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
    format('SELECT %L::text', substr(md5(gen_random_uuid()::text), 1, 8)));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.installation_code IS 'Eight hexadecimal digits, drawn when mailhook was installed: the last part of every event id.';

CREATE FUNCTION mailhook.event_id(inserted_at timestamptz, id bigint) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'evt_' || lpad(to_hex((extract(epoch FROM inserted_at) * 1000000)::bigint), 16, '0')
  || lpad(to_hex(id), 16, '0') || mailhook.installation_code();
COMMENT ON FUNCTION mailhook.event_id IS 'The public id of an event: inserted_at in microseconds, the outbox id and the installation code, in hexadecimal.';

-- UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random bits. PostgreSQL has its own from 18 on; 14 to 17 have not.
CREATE FUNCTION mailhook.uuid7(at timestamptz DEFAULT clock_timestamp()) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
  || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
COMMENT ON FUNCTION mailhook.uuid7 IS 'A new UUIDv7 that sorts by the time given, to the millisecond.';

REVOKE ALL ON FUNCTION mailhook.installation_code(), mailhook.event_id(timestamptz, bigint), mailhook.uuid7(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mailhook.installation_code(), mailhook.event_id(timestamptz, bigint) TO mailhook_producer;

-- +goose Down
-- The roles stay: they belong to the cluster, and other databases may use them.
REVOKE USAGE ON SCHEMA mailhook FROM mailhook_producer, mailhook_worker, mailhook_api;
DROP FUNCTION mailhook.uuid7, mailhook.event_id, mailhook.installation_code;
DROP TABLE mailhook.installation;
