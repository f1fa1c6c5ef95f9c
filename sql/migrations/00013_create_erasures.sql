-- +goose Up
CREATE TABLE mailhook.erasures (
  id                  uuid NOT NULL DEFAULT mailhook.uuid7(),
  account_id          text,
  pattern             text,
  is_dry_run          boolean NOT NULL DEFAULT false,
  state               text NOT NULL DEFAULT 'running',
  turn                bigint NOT NULL DEFAULT 0,
  phase               text NOT NULL DEFAULT 'new',
  writers             text[] NOT NULL DEFAULT '{}',
  until               timestamptz NOT NULL DEFAULT '0001-01-01 00:00+00',
  after_at            timestamptz NOT NULL DEFAULT '0001-01-01 00:00+00',
  after_number        bigint NOT NULL DEFAULT 0,
  after_id            uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  scanned_count       bigint NOT NULL DEFAULT 0,
  outbox_count        bigint NOT NULL DEFAULT 0,
  event_count         bigint NOT NULL DEFAULT 0,
  delivery_count      bigint NOT NULL DEFAULT 0,
  attempt_count       bigint NOT NULL DEFAULT 0,
  dead_letter_count   bigint NOT NULL DEFAULT 0,
  quarantine_count    bigint NOT NULL DEFAULT 0,
  dedupe_key_count    bigint NOT NULL DEFAULT 0,
  test_delivery_count bigint NOT NULL DEFAULT 0,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at            timestamptz,
  CONSTRAINT erasures_id_pkey PRIMARY KEY (id),
  CONSTRAINT erasures_state_check CHECK (state IN ('running', 'done')),
  -- The address is kept for as long as it is needed, and no longer.
  CONSTRAINT erasures_pattern_check CHECK ((state = 'running') = (pattern IS NOT NULL)),
  CONSTRAINT erasures_ended_at_check CHECK ((state = 'running') = (ended_at IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX erasures_turn_id_idx ON mailhook.erasures (turn, id) WHERE state = 'running';
CREATE INDEX erasures_ended_at_idx ON mailhook.erasures (ended_at) WHERE state <> 'running';
COMMENT ON TABLE mailhook.erasures IS 'Requests to forget a person: everything that mentioned an address when the request began. Worked off one at a time, in steps; each step and its place are one transaction.';
COMMENT ON COLUMN mailhook.erasures.account_id IS 'Only what belongs to this account; NULL is all accounts.';
COMMENT ON COLUMN mailhook.erasures.pattern IS 'A regular expression of the address in the spellings that data has it in (db.RecipientPattern). NULL once it has ended.';
COMMENT ON COLUMN mailhook.erasures.is_dry_run IS 'Only counts.';
COMMENT ON COLUMN mailhook.erasures.turn IS 'Running ones are worked off by turn and id: those of one account have one turn each, so that accounts take turns.';
COMMENT ON COLUMN mailhook.erasures.phase IS 'new, waiting (for the writers), then the table that it is in: outbox, quarantine, dedupe_keys, events, detached_days, attempts, test_deliveries; done.';
COMMENT ON COLUMN mailhook.erasures.writers IS 'The transactions that had inserted into outbox, or might, when it began: it looks once they have ended.';
COMMENT ON COLUMN mailhook.erasures.until IS 'Up to which time the table of this phase is read; set when the phase begins.';
COMMENT ON COLUMN mailhook.erasures.after_at IS 'With after_number or after_id: the row of this phase''s table that it has come to.';
COMMENT ON COLUMN mailhook.erasures.scanned_count IS 'Rows looked at.';
COMMENT ON COLUMN mailhook.erasures.outbox_count IS 'Undispatched events, which are in events now, erased. This and the next ones are rows.';
COMMENT ON COLUMN mailhook.erasures.delivery_count IS 'Unfinished deliveries, which ended as cancelled.';
COMMENT ON COLUMN mailhook.erasures.attempt_count IS 'Attempts whose response excerpt was wiped.';

-- Statistics hold samples of the values, pg_stats shows them, and no erasure reaches them. Nothing looks these columns up
-- but by a whole key. mailhook.create_partition does the same for each day.
-- +goose StatementBegin
DO $$
DECLARE
  t text;
  c text;
BEGIN
  FOR t, c IN
    SELECT cls.oid::regclass::text, att.attname
    FROM pg_catalog.pg_class AS cls
    JOIN pg_catalog.pg_attribute AS att ON att.attrelid = cls.oid
    WHERE cls.relnamespace = 'mailhook'::regnamespace AND cls.relkind IN ('r', 'p') AND att.attnum > 0 AND NOT att.attisdropped
      AND (cls.relname ~ '^(outbox|quarantine|events|dedupe_keys|attempts|test_deliveries|erasures)(_|$)')
      AND (att.attname IN ('recipient', 'message_id', 'campaign_id', 'dedupe_key', 'data', 'reason', 'response_excerpt', 'pattern')
        -- What has not been checked may be anything.
        OR (att.attname IN ('event_type', 'dedicated_ip') AND cls.relname IN ('outbox', 'quarantine')))
  LOOP
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS 0', t, c);
  END LOOP;
END
$$;
-- +goose StatementEnd

CREATE FUNCTION mailhook.mentions(pattern text, recipient text, message_id text, campaign_id text, dedupe_key text, data json) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN concat_ws(chr(10), recipient, message_id, campaign_id, dedupe_key, data::text) ~ pattern;
COMMENT ON FUNCTION mailhook.mentions IS 'Whether an event mentions an address, whose pattern it is. The columns that name the sender are not looked at.';

-- A function, so that the API needs no right to change events for it: a row lock asks for one.
-- +goose StatementBegin
CREATE FUNCTION mailhook.keep_event(inserted_at timestamptz, id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM FROM mailhook.events AS e
  WHERE e.inserted_at = keep_event.inserted_at AND e.id = keep_event.id AND e.erased_at IS NULL
  FOR SHARE;
  RETURN FOUND;
END
$$;

CREATE FUNCTION mailhook.erase_detached(erasure_id uuid, max_rows integer, OUT scanned bigint, OUT matched bigint, OUT reached_at timestamptz, OUT reached_id bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  place   mailhook.erasures;
  next_day date;
BEGIN
  SELECT x.* INTO place FROM mailhook.erasures AS x WHERE x.id = erasure_id;
  SELECT d.day INTO next_day FROM mailhook.detached_days AS d
  WHERE place.after_at < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
  ORDER BY d.day LIMIT 1;
  IF next_day IS NULL THEN
    RETURN;
  END IF;
  EXECUTE format($slice$
    WITH slice AS MATERIALIZED (
      SELECT e.inserted_at, e.id,
        ($3::text IS NULL OR e.account_id = $3) AND mailhook.mentions($4, e.recipient, e.message_id, e.campaign_id, e.dedupe_key, e.data) AS matches
      FROM mailhook.%1$I AS e
      WHERE (e.inserted_at, e.id) > ($1, $2)
      ORDER BY e.inserted_at, e.id
      LIMIT $5
    ),
    erased AS (
      UPDATE mailhook.%1$I AS e
      SET recipient = NULL, message_id = NULL, sending_node = NULL, bridge = NULL, dedicated_ip = NULL, dedupe_key = NULL, data = NULL,
        campaign_id = CASE WHEN e.campaign_id ~ $4 THEN NULL ELSE e.campaign_id END, erased_at = statement_timestamp()
      FROM slice AS s
      WHERE s.matches AND NOT $6 AND e.inserted_at = s.inserted_at AND e.id = s.id
    )
    SELECT count(*), count(*) FILTER (WHERE s.matches),
      (array_agg(s.inserted_at ORDER BY s.inserted_at DESC, s.id DESC))[1], (array_agg(s.id ORDER BY s.inserted_at DESC, s.id DESC))[1]
    FROM slice AS s
  $slice$, 'events_' || to_char(next_day, 'YYYYMMDD'))
  INTO scanned, matched, reached_at, reached_id
  USING place.after_at, place.after_number, place.account_id, place.pattern, max_rows, place.is_dry_run;
  IF scanned < max_rows THEN
    reached_at := (next_day + 1)::timestamp AT TIME ZONE 'UTC';
    reached_id := 0;
  END IF;
EXCEPTION
  -- It has been counted and dropped meanwhile: look for the next one.
  WHEN undefined_table THEN
    scanned := 0;
    matched := 0;
    reached_at := place.after_at;
    reached_id := place.after_number;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.keep_event IS 'Whether an event is there and not erased; it stays so until the end of the transaction. Who makes a delivery of a logged event asks, and an erasure waits.';
COMMENT ON FUNCTION mailhook.erase_detached IS 'Erases from the days that are being counted, at most max_rows events from the erasure''s place on; NULLs where there are no more.';
REVOKE ALL ON FUNCTION mailhook.mentions(text, text, text, text, text, json), mailhook.keep_event(timestamptz, bigint),
  mailhook.erase_detached(uuid, integer) FROM PUBLIC;

-- +goose Down
DROP FUNCTION mailhook.erase_detached, mailhook.keep_event, mailhook.mentions;
DROP TABLE mailhook.erasures;
