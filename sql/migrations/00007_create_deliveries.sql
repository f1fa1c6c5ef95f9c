-- +goose Up
CREATE TABLE mailhook.deliveries (
  id                uuid NOT NULL DEFAULT mailhook.uuid7(),
  subscription_id   uuid NOT NULL,
  account_id        text NOT NULL,
  event_inserted_at timestamptz NOT NULL,
  event_id          bigint NOT NULL,
  event_type        text NOT NULL,
  attempt           integer NOT NULL DEFAULT 0,
  next_attempt_at   timestamptz NOT NULL,
  leased_by         uuid,
  lease_id          uuid,
  last_outcome      text,
  replay_id         uuid,
  order_key         bigint,
  batch_id          uuid,
  created_at        timestamptz NOT NULL,
  CONSTRAINT deliveries_id_pkey PRIMARY KEY (id),
  CONSTRAINT deliveries_lease_check CHECK ((leased_by IS NULL) = (lease_id IS NULL)),
  CONSTRAINT deliveries_blocked_check CHECK (next_attempt_at < 'infinity' OR (order_key IS NOT NULL AND lease_id IS NULL))
) WITH (
  autovacuum_vacuum_scale_factor = 0.0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0.0,
  autovacuum_vacuum_insert_threshold = 100000,
  vacuum_truncate = off
);
-- The claim walks the subscriptions that have waiting rows by the first, and tries the common case by the second.
CREATE INDEX deliveries_subscription_id_next_attempt_at_idx ON mailhook.deliveries (subscription_id, next_attempt_at) WHERE lease_id IS NULL;
CREATE INDEX deliveries_next_attempt_at_idx ON mailhook.deliveries (next_attempt_at) WHERE lease_id IS NULL;
-- The same for the urgent lane. The last conditions are true of every row: with them a statement says which of the two it wants, for
-- a planner who expects no urgent row takes either, and reads all of it.
CREATE INDEX deliveries_urgent_subscription_id_next_attempt_at_idx ON mailhook.deliveries (subscription_id, next_attempt_at)
WHERE lease_id IS NULL AND mailhook.is_urgent(event_type) AND subscription_id >= '00000000-0000-0000-0000-000000000000';
CREATE INDEX deliveries_urgent_next_attempt_at_idx ON mailhook.deliveries (next_attempt_at)
WHERE lease_id IS NULL AND mailhook.is_urgent(event_type) AND next_attempt_at >= '-infinity';
-- What a worker holds, and how much of each subscription.
CREATE INDEX deliveries_leased_by_subscription_id_idx ON mailhook.deliveries (leased_by, subscription_id) WHERE lease_id IS NOT NULL;
-- For the deliveries of an event, for replays that skip unfinished pairs, and for retention, which asks for the oldest.
CREATE INDEX deliveries_event_inserted_at_event_id_idx ON mailhook.deliveries (event_inserted_at, event_id);
-- Order: one head for each key, whoever makes it; the blocked behind it, in order; and those of a subscription by age. What has no
-- key is in none of them. attempt >= 0 is always so: who asks by age says it, and says nothing of key or lease,
-- and so the planner has one index to choose from for each question.
CREATE UNIQUE INDEX deliveries_head_key ON mailhook.deliveries (subscription_id, order_key) WHERE order_key IS NOT NULL AND next_attempt_at < 'infinity';
CREATE INDEX deliveries_blocked_order_key_idx ON mailhook.deliveries (subscription_id, order_key, event_id) WHERE order_key IS NOT NULL AND next_attempt_at = 'infinity';
CREATE INDEX deliveries_blocked_created_at_idx ON mailhook.deliveries (subscription_id, created_at) WHERE attempt >= 0 AND next_attempt_at = 'infinity';
-- A claim that takes one of a failed batch takes all of it.
CREATE INDEX deliveries_batch_id_idx ON mailhook.deliveries (batch_id) WHERE batch_id IS NOT NULL AND lease_id IS NULL;

COMMENT ON TABLE mailhook.deliveries IS 'One event for one subscription, unfinished. No foreign keys, on purpose: they would lock rows of subscriptions and events on the hot path. Whether one is held follows from its subscription and account.';
COMMENT ON COLUMN mailhook.deliveries.attempt IS 'How many attempts have been made.';
COMMENT ON COLUMN mailhook.deliveries.next_attempt_at IS 'Due from then on, by the clock of the database. infinity: blocked, until the delivery of the same order_key before it has ended.';
COMMENT ON COLUMN mailhook.deliveries.leased_by IS 'The worker that holds it; NULL while it waits.';
COMMENT ON COLUMN mailhook.deliveries.lease_id IS 'Fresh with every dispatch or claim call: an outcome is recorded only by the holder of this lease.';
COMMENT ON COLUMN mailhook.deliveries.replay_id IS 'The replay that made it.';
COMMENT ON COLUMN mailhook.deliveries.order_key IS 'Deliveries of one subscription with the same key go one after another: the head is due, put off or under way, the others are blocked. By the ordering of the subscription when it was made; NULL: in no order.';
COMMENT ON COLUMN mailhook.deliveries.batch_id IS 'Deliveries that failed in one batch and are sent in one batch again have the same; a part that was cut from it has another. NULL: may be sent with any.';

CREATE TABLE mailhook.attempts (
  started_at        timestamptz NOT NULL,
  id                uuid NOT NULL,
  delivery_id       uuid NOT NULL,
  subscription_id   uuid NOT NULL,
  account_id        text NOT NULL,
  event_inserted_at timestamptz NOT NULL,
  event_id          bigint NOT NULL,
  event_type        text NOT NULL,
  number            integer NOT NULL,
  duration_ms       integer,
  status_code       smallint,
  outcome           text,
  response_excerpt  bytea,
  ended_as          text,
  ended_reason      text,
  delivery_created_at timestamptz NOT NULL,
  CONSTRAINT attempts_started_at_id_pkey PRIMARY KEY (started_at, id),
  CONSTRAINT attempts_outcome_check CHECK (outcome IS NOT NULL OR ended_as IS NOT NULL),
  CONSTRAINT attempts_ended_as_check CHECK (ended_as IN ('delivered', 'exhausted', 'cancelled'))
) PARTITION BY RANGE (started_at);
CREATE INDEX attempts_delivery_id_idx ON mailhook.attempts (delivery_id);
CREATE INDEX attempts_account_id_id_idx ON mailhook.attempts (account_id, id);
CREATE INDEX attempts_subscription_id_id_idx ON mailhook.attempts (subscription_id, id);

COMMENT ON TABLE mailhook.attempts IS 'Every attempt and its outcome, append-only, a partition for each day (UTC). The end of every delivery has a row here; an end without a request (a cancellation, an expiry) has one without outcome.';
COMMENT ON COLUMN mailhook.attempts.number IS 'From 1; 0 in a row without a request that came before the first.';
COMMENT ON COLUMN mailhook.attempts.outcome IS 'A word of the closed list in docs/receivers.md; NULL in a row without a request.';
COMMENT ON COLUMN mailhook.attempts.response_excerpt IS 'The first bytes of the answer''s body. Bytes: receivers send NUL and bad UTF-8.';
COMMENT ON COLUMN mailhook.attempts.ended_as IS 'How the delivery ended by this row; NULL while it goes on.';
COMMENT ON COLUMN mailhook.attempts.ended_reason IS 'Why, where the outcome does not say it: deactivated, deleted, erased (a person), expired (held too long), overflow (too many held), permanent (what the channel sends to will never take it) or unrecordable.';

CREATE TABLE mailhook.attempts_default PARTITION OF mailhook.attempts DEFAULT;
COMMENT ON TABLE mailhook.attempts_default IS 'Attempts of a day without a partition: an alarm.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.drop_attempts(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF day >= (statement_timestamp() AT TIME ZONE 'UTC')::date THEN
    RAISE EXCEPTION 'the day is not over';
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS mailhook.%I', 'attempts_' || to_char(day, 'YYYYMMDD'));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.drop_attempts IS 'Drops the attempts of a day (UTC). SECURITY DEFINER, as all that makes and drops partitions: workers own no table.';
REVOKE ALL ON FUNCTION mailhook.drop_attempts(date) FROM PUBLIC;

CREATE TABLE mailhook.dead_letters (
  id                uuid NOT NULL,
  subscription_id   uuid NOT NULL,
  account_id        text NOT NULL,
  event_inserted_at timestamptz NOT NULL,
  event_id          bigint NOT NULL,
  event_type        text NOT NULL,
  attempt           integer NOT NULL,
  last_outcome      text,
  reason            text NOT NULL,
  created_at        timestamptz NOT NULL,
  ended_at          timestamptz NOT NULL,
  CONSTRAINT dead_letters_id_pkey PRIMARY KEY (id)
) WITH (
  autovacuum_vacuum_scale_factor = 0.0,
  autovacuum_vacuum_threshold = 20000
);
-- For replays, oldest events first.
CREATE INDEX dead_letters_subscription_id_event_inserted_at_event_id_idx ON mailhook.dead_letters (subscription_id, event_inserted_at, event_id);
CREATE INDEX dead_letters_ended_at_idx ON mailhook.dead_letters (ended_at);
CREATE INDEX dead_letters_event_inserted_at_event_id_idx ON mailhook.dead_letters (event_inserted_at, event_id);
COMMENT ON TABLE mailhook.dead_letters IS 'Exhausted deliveries, kept and replayable. id is the delivery''s.';
COMMENT ON COLUMN mailhook.dead_letters.reason IS 'schedule_ended, permanent (what the channel sends to will never take it: no further attempt was made), expired (held too long), overflow (too many held) or unrecordable (its outcome could not be written).';
COMMENT ON COLUMN mailhook.dead_letters.created_at IS 'When it was dispatched.';

-- Partitions for today and the days ahead; from here on workers make them.
SELECT mailhook.create_partition(parent, current_date + ahead)
FROM unnest(ARRAY['events', 'attempts']) AS parent, generate_series(-1, 3) AS ahead;

-- +goose Down
DROP TABLE mailhook.dead_letters, mailhook.attempts, mailhook.deliveries;
DROP FUNCTION mailhook.drop_attempts;
