-- +goose Up
CREATE TABLE mailhook.event_counts (
  account_id       text NOT NULL,
  day              date NOT NULL,
  event_type       text NOT NULL,
  campaign_id      text NOT NULL,
  sending_domain   text NOT NULL,
  recipient_domain text NOT NULL,
  n                bigint NOT NULL,
  CONSTRAINT event_counts_pkey PRIMARY KEY (account_id, day, event_type, campaign_id, sending_domain, recipient_domain)
) WITH (
  -- A day is counted in slices: a group of several slices is updated once for each, on its own page where it fits.
  fillfactor = 90,
  autovacuum_vacuum_scale_factor = 0.02
);
COMMENT ON TABLE mailhook.event_counts IS 'How many events a dropped day had; kept. Duplicates (events.duplicate_of) are not counted. A day is complete once detached_days has it no more.';
COMMENT ON COLUMN mailhook.event_counts.day IS 'The day (UTC) of inserted_at.';
COMMENT ON COLUMN mailhook.event_counts.campaign_id IS 'Empty for none, and for one with an @ in it, which may be a person''s address: an erasure does not reach this table. Values longer than 400 bytes are counted under their first 100 characters, here and in the next two columns: an index entry has 2,700 bytes.';
COMMENT ON COLUMN mailhook.event_counts.sending_domain IS 'In lower case; empty for none.';
COMMENT ON COLUMN mailhook.event_counts.recipient_domain IS 'What follows the last @ of the recipient, in lower case; empty for none.';

CREATE TABLE mailhook.detached_days (
  day                 date NOT NULL,
  detached_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  counted_inserted_at timestamptz NOT NULL DEFAULT '-infinity',
  counted_id          bigint NOT NULL DEFAULT 0,
  CONSTRAINT detached_days_day_pkey PRIMARY KEY (day)
);
COMMENT ON TABLE mailhook.detached_days IS 'Days taken out of events that are being counted: the table events_YYYYMMDD stands alone until it is dropped.';
COMMENT ON COLUMN mailhook.detached_days.counted_inserted_at IS 'With counted_id: the last event that is in event_counts.';

-- Counts are kept for ever and no erasure reaches them, so no address may come into them: neither a campaign nor a domain has
-- an @, as it is or escaped as JSON or URLs do (db.RecipientPattern).
CREATE FUNCTION mailhook.count_key(value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN value ~ '@|%(25)*40|\\+u0040' THEN '' WHEN octet_length(value) > 400 THEN left(value, 100) ELSE coalesce(value, '') END;
COMMENT ON FUNCTION mailhook.count_key IS 'A value as event_counts has it: empty for NULL and for what has an @ in it, cut where an index could not take it.';

CREATE FUNCTION mailhook.recipient_domain(recipient text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN strpos(recipient, '@') > 0 THEN lower(split_part(recipient, '@', -1)) ELSE '' END;
COMMENT ON FUNCTION mailhook.recipient_domain IS 'What follows the last @, in lower case; empty where there is none.';

-- One statement, so one snapshot: a delivery that becomes a dead letter at this moment is seen as one of the two.
CREATE FUNCTION mailhook.day_needed_by(day date) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
  WHEN EXISTS (
    SELECT FROM mailhook.deliveries AS d
    WHERE d.event_inserted_at >= day::timestamp AT TIME ZONE 'UTC' AND d.event_inserted_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
  ) THEN 'delivery'
  WHEN EXISTS (
    SELECT FROM mailhook.dead_letters AS l
    WHERE l.event_inserted_at >= day::timestamp AT TIME ZONE 'UTC' AND l.event_inserted_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
  ) THEN 'dead_letter'
  -- A replay reads upwards from where it has come to. It keeps nothing for longer than a week, however slow its customer wants it.
  WHEN EXISTS (
    SELECT FROM mailhook.replays AS r
    WHERE r.state = 'running' AND r.source = 'all' AND r.created_at > statement_timestamp() - interval '7 days' AND r.after_inserted_at < (day + 1)::timestamp AT TIME ZONE 'UTC'
      AND r.until > day::timestamp AT TIME ZONE 'UTC'
  ) THEN 'replay'
  ELSE ''
END;
COMMENT ON FUNCTION mailhook.day_needed_by IS 'What still needs the events of a day (UTC): delivery (an unfinished one), dead_letter, replay (a running one); empty for nothing.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.detach_day(day date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  partition text := 'events_' || to_char(day, 'YYYYMMDD');
  needed_by text := mailhook.day_needed_by(day);
BEGIN
  IF day >= (statement_timestamp() AT TIME ZONE 'UTC')::date THEN
    RAISE EXCEPTION 'the day is not over';
  END IF;
  IF needed_by <> '' THEN
    RETURN needed_by;
  END IF;
  -- Who makes a delivery of a logged event reads the event in the same transaction, and waits for this lock; dispatch too.
  -- So what the second look does not see does not come: an event of that day that is dispatched later lies in DEFAULT.
  LOCK TABLE ONLY mailhook.events IN ACCESS EXCLUSIVE MODE;
  needed_by := mailhook.day_needed_by(day);
  -- Another worker may have done it.
  IF needed_by = '' AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = to_regclass('mailhook.' || partition)) THEN
    EXECUTE format('ALTER TABLE mailhook.events DETACH PARTITION mailhook.%I', partition);
    INSERT INTO mailhook.detached_days (day) VALUES (detach_day.day);
  END IF;
  RETURN needed_by;
END
$$;

CREATE FUNCTION mailhook.count_day(day date, max_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  partition text := 'events_' || to_char(day, 'YYYYMMDD');
  place     mailhook.detached_days;
  reached   record;
BEGIN
  SELECT d.* INTO place FROM mailhook.detached_days AS d WHERE d.day = count_day.day FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  -- In key order, as every statement that counts: two of them wait for each other and never in a circle.
  EXECUTE format($slice$
    WITH slice AS MATERIALIZED (
      SELECT e.inserted_at, e.id, e.account_id, e.event_type, e.campaign_id, e.sending_domain, e.recipient, e.duplicate_of
      FROM mailhook.%I AS e
      WHERE (e.inserted_at, e.id) > ($1, $2)
      ORDER BY e.inserted_at, e.id
      LIMIT $3
    ),
    counted AS (
      INSERT INTO mailhook.event_counts AS c (account_id, day, event_type, campaign_id, sending_domain, recipient_domain, n)
      SELECT s.account_id, $4, s.event_type, mailhook.count_key(s.campaign_id), mailhook.count_key(lower(s.sending_domain)),
        mailhook.count_key(mailhook.recipient_domain(s.recipient)), count(*)
      FROM slice AS s
      WHERE s.duplicate_of IS NULL
      GROUP BY 1, 2, 3, 4, 5, 6
      ORDER BY 1, 2, 3, 4, 5, 6
      ON CONFLICT (account_id, day, event_type, campaign_id, sending_domain, recipient_domain) DO UPDATE SET n = c.n + excluded.n
    )
    SELECT s.inserted_at, s.id, (SELECT count(*) FROM slice) AS n
    FROM slice AS s
    ORDER BY s.inserted_at DESC, s.id DESC
    LIMIT 1
  $slice$, partition) INTO reached USING place.counted_inserted_at, place.counted_id, max_rows, day;
  IF coalesce(reached.n, 0) < max_rows THEN
    EXECUTE format('DROP TABLE mailhook.%I', partition);
    DELETE FROM mailhook.detached_days AS d WHERE d.day = count_day.day;
  ELSE
    UPDATE mailhook.detached_days AS d
    SET counted_inserted_at = reached.inserted_at, counted_id = reached.id
    WHERE d.day = count_day.day;
  END IF;
  RETURN coalesce(reached.n, 0);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.detach_day IS 'Takes a day (UTC) out of events, to be counted by count_day; what needs it, and nothing done, where something does (day_needed_by).';
COMMENT ON FUNCTION mailhook.count_day IS 'Counts the next events of a detached day into event_counts, at most max_rows, and answers how many; fewer than max_rows: it was the last slice, and the day is dropped. NULL: another session counts it, or it is gone.';
REVOKE ALL ON FUNCTION mailhook.count_key(text), mailhook.recipient_domain(text), mailhook.day_needed_by(date), mailhook.detach_day(date),
  mailhook.count_day(date, integer) FROM PUBLIC;

-- +goose Down
-- Days that are being counted are no partitions any more, and would stay behind.
-- +goose StatementBegin
DO $$
DECLARE
  detached text;
BEGIN
  FOR detached IN SELECT 'events_' || to_char(d.day, 'YYYYMMDD') FROM mailhook.detached_days AS d LOOP
    EXECUTE format('DROP TABLE mailhook.%I', detached);
  END LOOP;
END
$$;
-- +goose StatementEnd
DROP FUNCTION mailhook.count_day, mailhook.detach_day, mailhook.day_needed_by, mailhook.recipient_domain, mailhook.count_key;
DROP TABLE mailhook.detached_days, mailhook.event_counts;
