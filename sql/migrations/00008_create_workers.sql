-- +goose Up
CREATE TABLE mailhook.workers (
  id         uuid NOT NULL,
  heartbeat  bigint NOT NULL DEFAULT 0,
  hostname   text NOT NULL,
  pid        integer NOT NULL,
  version    text NOT NULL,
  key_ids    text[] NOT NULL DEFAULT '{}',
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT workers_id_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50, vacuum_truncate = off);
COMMENT ON TABLE mailhook.workers IS 'One row for each live worker process.';
COMMENT ON COLUMN mailhook.workers.heartbeat IS 'A counter, not a time: a rescuer acts after seeing it unchanged for 15 s of its own monotonic clock, or for 6 s where seen_at says 15 s. A stepped clock alone rescues nobody.';
COMMENT ON COLUMN mailhook.workers.key_ids IS 'The master keys that it has. Rotation waits for all; one that lacks the installation''s key can neither register nor beat, so it sends nothing.';
COMMENT ON COLUMN mailhook.workers.seen_at IS 'The last heartbeat, by the database''s clock: what a rescuer that has just started goes by.';

CREATE TABLE mailhook.task_leases (
  task       text NOT NULL,
  leased_by  uuid NOT NULL,
  expires_at timestamptz NOT NULL,
  CONSTRAINT task_leases_task_pkey PRIMARY KEY (task)
) WITH (fillfactor = 50, vacuum_truncate = off);
COMMENT ON TABLE mailhook.task_leases IS 'Which worker does a maintenance task for now. It saves work; correctness does not need it.';

CREATE TABLE mailhook.test_deliveries (
  id               uuid NOT NULL DEFAULT mailhook.uuid7(),
  subscription_id  uuid NOT NULL,
  account_id       text NOT NULL,
  event_type       text NOT NULL,
  format           text NOT NULL DEFAULT 'standard',
  is_preview       boolean NOT NULL DEFAULT false,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  leased_by        uuid,
  ended_at         timestamptz,
  duration_ms      integer,
  status_code      smallint,
  outcome          text,
  response_excerpt bytea,
  request_headers  json,
  content_type     text,
  request_body     text,
  CONSTRAINT test_deliveries_id_pkey PRIMARY KEY (id)
);
CREATE INDEX test_deliveries_created_at_idx ON mailhook.test_deliveries (created_at) WHERE leased_by IS NULL;
-- For retention: those that were taken, too.
CREATE INDEX test_deliveries_created_at_id_idx ON mailhook.test_deliveries (created_at, id);
-- For the limit of an account.
CREATE INDEX test_deliveries_account_id_created_at_idx ON mailhook.test_deliveries (account_id, created_at);
COMMENT ON TABLE mailhook.test_deliveries IS 'Test sends asked for through the API; a worker takes them ahead of all others. In a table of their own, so that health, limits, lists and aggregates never see them. Removed after an hour.';
COMMENT ON COLUMN mailhook.test_deliveries.format IS 'That of the subscription, or another one of its channel to try.';
COMMENT ON COLUMN mailhook.test_deliveries.is_preview IS 'Nothing is sent: the request is made and stored.';
COMMENT ON COLUMN mailhook.test_deliveries.outcome IS 'As in attempts; NULL when a preview has ended well.';
COMMENT ON COLUMN mailhook.test_deliveries.request_headers IS 'A JSON object of name to value, with *** for the values that are secret, and without Content-Type. NULL: no request could be made.';
COMMENT ON COLUMN mailhook.test_deliveries.request_body IS 'With *** for what is secret in it.';

CREATE TABLE mailhook.replays (
  id                uuid NOT NULL DEFAULT mailhook.uuid7(),
  subscription_id   uuid NOT NULL,
  account_id        text NOT NULL,
  since             timestamptz NOT NULL,
  until             timestamptz NOT NULL,
  event_types       text[],
  source            text NOT NULL,
  rate_per_second   double precision NOT NULL,
  state             text NOT NULL DEFAULT 'running',
  matched           bigint NOT NULL,
  matched_at_least  boolean NOT NULL DEFAULT false,
  done              bigint NOT NULL DEFAULT 0,
  after_inserted_at timestamptz NOT NULL DEFAULT '-infinity',
  after_id          bigint NOT NULL DEFAULT 0,
  created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  advanced_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT replays_id_pkey PRIMARY KEY (id),
  CONSTRAINT replays_source_check CHECK (source IN ('exhausted', 'all')),
  CONSTRAINT replays_state_check CHECK (state IN ('running', 'done', 'cancelled')),
  CONSTRAINT replays_rate_per_second_check CHECK (rate_per_second BETWEEN 1 AND 1000)
);
CREATE INDEX replays_id_idx ON mailhook.replays (id) WHERE state = 'running';
-- For lists.
CREATE INDEX replays_account_id_id_idx ON mailhook.replays (account_id, id);
CREATE INDEX replays_advanced_at_idx ON mailhook.replays (advanced_at) WHERE state <> 'running';
COMMENT ON TABLE mailhook.replays IS 'Events to deliver once more to one subscription, at a bounded rate. Ended ones go with the attempts of their time.';
COMMENT ON COLUMN mailhook.replays.since IS 'Dispatch times, from here on.';
COMMENT ON COLUMN mailhook.replays.until IS 'Dispatch times, before this one.';
COMMENT ON COLUMN mailhook.replays.event_types IS 'Nodes of the type hierarchy; NULL is whatever the subscription names.';
COMMENT ON COLUMN mailhook.replays.source IS 'exhausted: its dead letters. all: every event that its filters match today.';
COMMENT ON COLUMN mailhook.replays.matched IS 'How many there were when it was made.';
COMMENT ON COLUMN mailhook.replays.matched_at_least IS 'There may have been more: counting stops at a bound.';
COMMENT ON COLUMN mailhook.replays.after_inserted_at IS 'With after_id: the event it has come to.';
COMMENT ON COLUMN mailhook.replays.advanced_at IS 'The rate is counted from here: when rows were released last, less the part of a row that was left.';

-- +goose Down
DROP TABLE mailhook.replays, mailhook.test_deliveries, mailhook.task_leases, mailhook.workers;
