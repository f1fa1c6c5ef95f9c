-- +goose Up
-- The functions a host calls. Strict ones raise errors of class MH with a HINT; the _safe ones never raise.
--   MH001 event_type   MH002 data   MH003 too long   MH004 occurred_at   MH005 the event is not an object   MH006 other fields
-- Patterns are written without backslashes or as E'': a host's session may have standard_conforming_strings off.

CREATE SEQUENCE mailhook.emit_failures;
COMMENT ON SEQUENCE mailhook.emit_failures IS 'How many events emit_safe and emit_many_safe gave up on. A sequence: counting takes no row lock and survives the host''s rollback.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.count_emit_failure() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT nextval('mailhook.emit_failures') $$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.count_emit_failure IS 'SECURITY DEFINER, so that the host''s role needs no right on the sequence.';

-- TimeZone is pinned: a time without offset is UTC, whatever zone the host''s session is in.
-- +goose StatementBegin
CREATE FUNCTION mailhook.as_time(value text, item bigint DEFAULT NULL) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET timezone = 'UTC'
SET datestyle = 'ISO, YMD'
AS $$
BEGIN
  RETURN nullif(value, '')::timestamptz;
EXCEPTION WHEN data_exception THEN
  RAISE EXCEPTION '%', format('occurred_at is not a time: %s%s', left(value, 100), ' (event ' || item || ' of emit_many)')
    USING ERRCODE = 'MH004', COLUMN = 'occurred_at',
      HINT = 'Write RFC 3339, for example 2024-01-15T10:30:00Z. A time without offset is taken as UTC.';
END
$$;
-- +goose StatementEnd
CREATE FUNCTION mailhook.as_time(value timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE RETURN value;
CREATE FUNCTION mailhook.as_time(value timestamp) RETURNS timestamptz LANGUAGE sql IMMUTABLE RETURN value AT TIME ZONE 'UTC';
COMMENT ON FUNCTION mailhook.as_time(text, bigint) IS 'Text to a time; UTC where it has no offset; MH004 where it is no time.';
COMMENT ON FUNCTION mailhook.as_time(timestamptz) IS 'As it is.';
COMMENT ON FUNCTION mailhook.as_time(timestamp) IS 'A time without zone is UTC.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.as_json(value text) RETURNS json
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
  RETURN nullif(value, '')::json;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
  RAISE EXCEPTION 'data is not JSON: %', SQLERRM
    USING ERRCODE = 'MH002', COLUMN = 'data', HINT = 'data must be a JSON object, for example {"link_url": "https://example.com/"}.';
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.as_json IS 'Text to json; MH002 where it is no JSON.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.as_jsonb(value text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
  RETURN nullif(value, '')::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
  RAISE EXCEPTION 'the event cannot be read as JSON: %', SQLERRM
    USING ERRCODE = 'MH005', HINT = E'Give an object such as {"type": "email.delivered", "recipient": "a@example.com"}, without \\u0000 and numbers beyond the range of numeric.';
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.as_jsonb IS 'A whole event, or several, from text to jsonb; MH005 where that cannot be.';

-- What dispatch would quarantine, refused at once. item is the place in emit_many, for the message.
-- +goose StatementBegin
CREATE FUNCTION mailhook.check_event(event mailhook.outbox, item bigint DEFAULT NULL) RETURNS mailhook.outbox
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  place text := coalesce(' (event ' || item || ' of emit_many)', '');
  long  text;
BEGIN
  event.account_id     := coalesce(nullif(event.account_id, ''), 'default');
  event.recipient      := nullif(event.recipient, '');
  event.message_id     := nullif(event.message_id, '');
  event.campaign_id    := nullif(event.campaign_id, '');
  event.sending_domain := nullif(event.sending_domain, '');
  event.sending_node   := nullif(event.sending_node, '');
  event.bridge         := nullif(event.bridge, '');
  event.dedicated_ip   := nullif(event.dedicated_ip, '');
  event.dedupe_key     := nullif(event.dedupe_key, '');

  IF event.event_type IS NULL OR octet_length(event.event_type) > 100
     OR event.event_type !~ '^[a-z][a-z0-9_]*([.][a-z][a-z0-9_]*)*$' THEN
    RAISE EXCEPTION 'event type % is not valid%', coalesce(quote_literal(left(event.event_type, 120)), 'NULL'), place
      USING ERRCODE = 'MH001', COLUMN = 'event_type',
        HINT = 'A type is dotted lower-case words of letters, digits and _, at most 100 bytes: email.delivered.';
  END IF;

  long := CASE
    WHEN octet_length(event.account_id) > 1000 THEN 'account_id'
    WHEN octet_length(event.recipient) > 1000 THEN 'recipient'
    WHEN octet_length(event.message_id) > 1000 THEN 'message_id'
    WHEN octet_length(event.campaign_id) > 1000 THEN 'campaign_id'
    WHEN octet_length(event.sending_domain) > 1000 THEN 'sending_domain'
    WHEN octet_length(event.sending_node) > 1000 THEN 'sending_node'
    WHEN octet_length(event.bridge) > 1000 THEN 'bridge'
    WHEN octet_length(event.dedicated_ip) > 1000 THEN 'dedicated_ip'
    WHEN octet_length(event.dedupe_key) > 1000 THEN 'dedupe_key'
  END;
  IF long IS NOT NULL THEN
    RAISE EXCEPTION '% is longer than 1,000 bytes%', long, place
      USING ERRCODE = 'MH003', COLUMN = long, HINT = 'Shorten it, or put it into data.';
  END IF;

  IF event.dedicated_ip IS NOT NULL THEN
    BEGIN
      PERFORM event.dedicated_ip::inet;
    EXCEPTION WHEN data_exception THEN
      RAISE EXCEPTION 'dedicated_ip % is not an IP address%', quote_literal(left(event.dedicated_ip, 100)), place
        USING ERRCODE = 'MH006', COLUMN = 'dedicated_ip', HINT = 'Write an IPv4 or IPv6 address, or leave it out.';
    END;
  END IF;

  IF event.occurred_at < '0001-01-01 00:00+00' OR event.occurred_at >= '10000-01-01 00:00+00' THEN
    RAISE EXCEPTION 'occurred_at % is not in the years 1 to 9999%', event.occurred_at, place
      USING ERRCODE = 'MH004', COLUMN = 'occurred_at', HINT = 'RFC 3339 has four digits for a year. Leave it out for now().';
  END IF;

  IF event.data IS NOT NULL AND json_typeof(event.data) <> 'object' THEN
    IF json_typeof(event.data) <> 'null' THEN
      RAISE EXCEPTION 'data is % %, not an object%', CASE json_typeof(event.data) WHEN 'array' THEN 'an' ELSE 'a' END, json_typeof(event.data), place
        USING ERRCODE = 'MH002', COLUMN = 'data', HINT = 'data must be a JSON object, for example {"link_url": "https://example.com/"}.';
    END IF;
    event.data := NULL;
  END IF;
  IF octet_length(event.data::text) > 262144 THEN
    RAISE EXCEPTION 'data is % bytes long, more than 262,144%', octet_length(event.data::text), place
      USING ERRCODE = 'MH002', COLUMN = 'data', HINT = 'Store large content elsewhere and put a link to it into data.';
  END IF;
  -- \u0000 and 1e999999 are valid json that neither jsonb nor most receivers can read.
  IF event.data::text ~ E'\\\\u0000|[0-9][eE][+-]?[0-9]{4}' THEN
    BEGIN
      PERFORM event.data::jsonb;
    EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
      RAISE EXCEPTION '%', format('data cannot be read back: %s%s', SQLERRM, place)
        USING ERRCODE = 'MH002', COLUMN = 'data', HINT = E'Take out \\u0000 and numbers beyond the range of numeric.';
    END;
  END IF;
  RETURN event;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.check_event IS 'The event with '''' as NULL, or an error of class MH that names the column.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.event_from_jsonb(event jsonb, item bigint DEFAULT NULL) RETURNS mailhook.outbox
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  known  constant text[] := ARRAY['type', 'event_type', 'account_id', 'occurred_at', 'recipient', 'message_id', 'campaign_id',
    'sending_domain', 'sending_node', 'bridge', 'dedicated_ip', 'dedupe_key', 'data'];
  place  text := coalesce(' (event ' || item || ' of emit_many)', '');
  nested text;
  extra  jsonb;
  result mailhook.outbox;
BEGIN
  IF event IS NULL OR jsonb_typeof(event) <> 'object' THEN
    RAISE EXCEPTION '%', format('an event is a JSON object, not %s%s', coalesce(jsonb_typeof(event), 'NULL'), place)
      USING ERRCODE = 'MH005', HINT = 'For example jsonb_build_object(''type'', ''email.delivered'', ''recipient'', ''a@example.com'').';
  END IF;
  SELECT key INTO nested FROM jsonb_each(event) WHERE key = ANY (known) AND key <> 'data' AND jsonb_typeof(value) IN ('object', 'array') LIMIT 1;
  IF nested IS NOT NULL THEN
    RAISE EXCEPTION '% is an %, not a plain value%', nested, jsonb_typeof(event -> nested), place
      USING ERRCODE = 'MH006', COLUMN = nested, HINT = 'Give a string or a number; put anything nested into data.';
  END IF;
  IF jsonb_typeof(event -> 'data') NOT IN ('object', 'null') THEN
    RAISE EXCEPTION 'data is % %, not an object%', CASE jsonb_typeof(event -> 'data') WHEN 'array' THEN 'an' ELSE 'a' END, jsonb_typeof(event -> 'data'), place
      USING ERRCODE = 'MH002', COLUMN = 'data', HINT = 'data must be a JSON object, for example {"link_url": "https://example.com/"}.';
  END IF;
  -- Keys we do not know are data; on a clash the top level wins.
  extra := coalesce(nullif(event -> 'data', 'null'), '{}') || (event - known);

  result.event_type     := coalesce(event ->> 'type', event ->> 'event_type');
  result.account_id     := event ->> 'account_id';
  result.occurred_at    := mailhook.as_time(event ->> 'occurred_at', item);
  result.recipient      := event ->> 'recipient';
  result.message_id     := event ->> 'message_id';
  result.campaign_id    := event ->> 'campaign_id';
  result.sending_domain := event ->> 'sending_domain';
  result.sending_node   := event ->> 'sending_node';
  result.bridge         := event ->> 'bridge';
  result.dedicated_ip   := event ->> 'dedicated_ip';
  result.dedupe_key     := event ->> 'dedupe_key';
  result.data           := nullif(extra, '{}')::json;
  RETURN mailhook.check_event(result, item);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.event_from_jsonb IS 'One event of the jsonb form as an outbox row, checked.';

-- plpgsql, because a SQL function that cannot be inlined is planned anew in each statement that calls it.
-- +goose StatementBegin
CREATE FUNCTION mailhook.insert_event(event mailhook.outbox) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  written record;
BEGIN
  INSERT INTO mailhook.outbox (account_id, event_type, occurred_at, recipient, message_id, campaign_id,
    sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data)
  VALUES (event.account_id, event.event_type, event.occurred_at, event.recipient, event.message_id, event.campaign_id,
    event.sending_domain, event.sending_node, event.bridge, event.dedicated_ip, event.dedupe_key, event.data)
  RETURNING inserted_at, id INTO written;
  RETURN mailhook.event_id(written.inserted_at, written.id);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.insert_event IS 'Writes a checked event and answers its public id.';

CREATE FUNCTION mailhook.is_off() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(current_setting('mailhook.off', true), '') = 'on';
COMMENT ON FUNCTION mailhook.is_off IS 'SET LOCAL mailhook.off = ''on'' silences emit* and the adapters: for imports and restores that are not news.';

-- +goose StatementBegin
CREATE FUNCTION mailhook.emit(event jsonb) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
  IF mailhook.is_off() THEN
    RETURN NULL;
  END IF;
  RETURN mailhook.insert_event(mailhook.event_from_jsonb(event));
END
$$;
-- +goose StatementEnd
CREATE FUNCTION mailhook.emit(event json) RETURNS text LANGUAGE sql VOLATILE RETURN mailhook.emit(mailhook.as_jsonb(event::text));
COMMENT ON FUNCTION mailhook.emit(jsonb) IS 'Writes one event: {"type": "email.clicked", "recipient": …}; keys it does not know go into data. Answers the event id.';
COMMENT ON FUNCTION mailhook.emit(json) IS 'As emit(jsonb).';

-- +goose StatementBegin
CREATE FUNCTION mailhook.emit_many(events jsonb[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  written bigint;
BEGIN
  IF mailhook.is_off() THEN
    RETURN 0;
  END IF;
  -- OFFSET 0 keeps the planner from pulling the subquery up and parsing each event once a column.
  INSERT INTO mailhook.outbox (account_id, event_type, occurred_at, recipient, message_id, campaign_id,
    sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data)
  SELECT (row).account_id, (row).event_type, (row).occurred_at, (row).recipient, (row).message_id, (row).campaign_id,
    (row).sending_domain, (row).sending_node, (row).bridge, (row).dedicated_ip, (row).dedupe_key, (row).data
  FROM (
    SELECT mailhook.event_from_jsonb(event, item) AS row
    FROM unnest(events) WITH ORDINALITY AS given (event, item)
    ORDER BY item
    OFFSET 0
  ) AS parsed;
  GET DIAGNOSTICS written = ROW_COUNT;
  RETURN written;
END
$$;

-- In a DO block, because sqlc takes this for emit_many(jsonb[]) once more.
DO $do$
BEGIN
  EXECUTE $create$
    CREATE FUNCTION mailhook.emit_many(events jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    AS $$
    BEGIN
      IF events IS NULL THEN
        RETURN 0;
      END IF;
      IF jsonb_typeof(events) <> 'array' THEN
        RAISE EXCEPTION 'emit_many takes an array of events, not %', jsonb_typeof(events)
          USING ERRCODE = 'MH005', HINT = 'Give a JSON array or a jsonb[]; for one event call mailhook.emit.';
      END IF;
      RETURN mailhook.emit_many(ARRAY(SELECT event FROM jsonb_array_elements(events) WITH ORDINALITY AS given (event, item) ORDER BY item));
    END
    $$
  $create$;
END
$do$;

CREATE FUNCTION mailhook.emit_many(events text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  parsed jsonb[];
BEGIN
  IF ltrim(events, E' \t\r\n') NOT LIKE '{%' THEN
    RETURN mailhook.emit_many(mailhook.as_jsonb(events));
  END IF;
  BEGIN
    parsed := events;
  EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RAISE EXCEPTION 'emit_many takes an array of events; this text is neither a JSON array nor a jsonb[]'
      USING ERRCODE = 'MH005', HINT = 'Give a JSON array or a jsonb[]; for one event call mailhook.emit.';
  END;
  RETURN mailhook.emit_many(parsed);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.emit_many(jsonb[]) IS 'Writes all events in one INSERT, or none. Answers how many.';
COMMENT ON FUNCTION mailhook.emit_many(jsonb) IS 'As emit_many(jsonb[]), from a JSON array.';
COMMENT ON FUNCTION mailhook.emit_many(text) IS 'As emit_many(jsonb[]): what an untyped parameter or literal resolves to; a JSON array or a jsonb[] literal.';

-- The form with named arguments, once for each type that occurred_at may have: a cast to timestamptz before the
-- call would use the session's zone. data is anycompatible, so that text, json and jsonb are all taken uncast,
-- and an untyped literal or parameter is text.
-- +goose StatementBegin
DO $do$
DECLARE
  time_type text;
BEGIN
  FOREACH time_type IN ARRAY ARRAY['text DEFAULT NULL', 'timestamptz', 'timestamp'] LOOP
    EXECUTE format($create$
      CREATE FUNCTION mailhook.emit(
        event_type     text,
        occurred_at    %s,
        account_id     text DEFAULT NULL,
        recipient      text DEFAULT NULL,
        message_id     text DEFAULT NULL,
        campaign_id    text DEFAULT NULL,
        sending_domain text DEFAULT NULL,
        sending_node   text DEFAULT NULL,
        bridge         text DEFAULT NULL,
        dedicated_ip   text DEFAULT NULL,
        dedupe_key     text DEFAULT NULL,
        data           anycompatible DEFAULT NULL::text
      ) RETURNS text
      LANGUAGE plpgsql VOLATILE
      AS $body$
      BEGIN
        IF mailhook.is_off() THEN
          RETURN NULL;
        END IF;
        -- emit('{"type": …}') and emit($1) resolve to this form.
        IF ltrim(event_type, E' \t\r\n') LIKE '{%%' THEN
          RETURN mailhook.emit(mailhook.as_jsonb(event_type));
        END IF;
        RETURN mailhook.insert_event(mailhook.check_event(ROW(NULL, NULL, account_id, event_type, mailhook.as_time(occurred_at),
          recipient, message_id, campaign_id, sending_domain, sending_node, bridge, dedicated_ip, dedupe_key,
          mailhook.as_json(data::text))::mailhook.outbox));
      END
      $body$
    $create$, time_type);
  END LOOP;
END
$do$;

-- Each emit function gets its _safe twin: the same arguments, but any error becomes a WARNING, a count and NULL.
-- lock_timeout, because an EXCEPTION block alone does not help against a lock that is never granted.
DO $do$
DECLARE
  twin record;
BEGIN
  FOR twin IN
    SELECT p.proname AS name, p.oid::regprocedure AS signature,
      pg_get_function_arguments(p.oid) AS arguments, array_to_string(p.proargnames, ', ') AS names,
      pg_get_function_result(p.oid) AS result
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace AND p.proname IN ('emit', 'emit_many')
  LOOP
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', twin.signature, CASE twin.name
      WHEN 'emit' THEN 'Writes one event and answers its id. Either named arguments, or one object {"type": "email.clicked", "recipient": …} whose unknown keys go into data.'
      ELSE 'Writes all events of the array in one INSERT, or none. Answers how many.' END);
    EXECUTE format($create$
      CREATE FUNCTION mailhook.%1$s_safe(%2$s) RETURNS %3$s
      LANGUAGE plpgsql VOLATILE
      SET lock_timeout = '100ms'
      AS $body$
      BEGIN
        RETURN mailhook.%1$s(%4$s);
      EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'mailhook.%1$s_safe wrote nothing: %% (SQLSTATE %%)', SQLERRM, SQLSTATE;
        -- Counting may fail too: in a read-only transaction, or while somebody alters the sequence.
        BEGIN
          PERFORM mailhook.count_emit_failure();
        EXCEPTION WHEN OTHERS THEN
          NULL;
        END;
        RETURN NULL;
      END
      $body$
    $create$, twin.name, twin.arguments, twin.result, twin.names);
    EXECUTE format('COMMENT ON FUNCTION %s IS %L',
      replace(twin.signature::text, 'mailhook.' || twin.name || '(', 'mailhook.' || twin.name || '_safe('),
      'As ' || twin.name || ', but any error becomes a WARNING, a count in mailhook.emit_failures and NULL. Waits 100 ms for a lock at most.');
  END LOOP;
END
$do$;

DO $$
DECLARE
  signature regprocedure;
BEGIN
  FOR signature IN
    SELECT p.oid FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace
      AND p.proname IN ('emit', 'emit_safe', 'emit_many', 'emit_many_safe', 'as_time', 'as_json', 'as_jsonb', 'check_event',
        'event_from_jsonb', 'insert_event', 'is_off', 'count_emit_failure')
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO mailhook_producer', signature);
  END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- In one statement: some of them depend on others.
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE (
    SELECT 'DROP FUNCTION ' || string_agg(p.oid::regprocedure::text, ', ')
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace
      AND p.proname IN ('emit', 'emit_safe', 'emit_many', 'emit_many_safe', 'as_time', 'as_json', 'as_jsonb', 'check_event',
        'event_from_jsonb', 'insert_event', 'is_off', 'count_emit_failure')
  );
END
$$;
-- +goose StatementEnd
DROP SEQUENCE mailhook.emit_failures;
