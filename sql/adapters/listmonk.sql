-- mailhook adapter for listmonk: triggers on listmonk's tables that write an event for what happens there.
--
--   INSERT campaign_views                      email.opened          (becomes email.opened.newsletter)
--   INSERT link_clicks                         email.clicked         (becomes email.clicked.newsletter)
--   INSERT bounces                             email.bounced         (becomes email.bounced.soft, .hard)
--          of type complaint                   email.complained
--   INSERT subscriber_lists                    email.subscribed      confirmed, or unconfirmed on a single opt-in list
--   UPDATE subscriber_lists.status             email.subscribed      when it becomes that
--                                              email.unsubscribed    when it becomes unsubscribed
--   UPDATE subscribers.status to blocklisted   email.suppressed
--   DELETE subscribers                         recipient.deleted
--
-- Run it after mailhook migrate up, once, and again after listmonk --install or a restore of listmonk's tables, which
-- drop triggers without a word. It can be run any number of times; it is one transaction.
--
--   mailhook adapter listmonk | psql -v ON_ERROR_STOP=1 "$MAILHOOK_DATABASE_URL"
--
-- As whom: the owner of schema mailhook, who needs GRANT SELECT, TRIGGER ON ALL TABLES IN SCHEMA public where the tables are
-- another's. The functions run with that role's rights (SECURITY DEFINER), so listmonk's own role needs no grant at all. Prefer
-- a role that is no superuser: the owner of listmonk's tables could make a look-up in them run code of his.
--
-- Which tables: listmonk knows no schema setting, so they are in public, and are written out as such here: a name that is
-- looked up at run time would follow the search_path of whoever clicks. Are yours elsewhere, say so before you run it:
--
--   mailhook adapter listmonk | sed 's/\bpublic\./other./g' | psql …
--
-- What it costs listmonk: 0.1 ms for a single open or click, 15 µs for each of many rows in one statement, 0.2 ms for each
-- subscriber of an import (PostgreSQL 15, 2 cores). It never makes a statement of listmonk's fail, nor wait longer than 0.1 s for a
-- lock: whatever goes wrong becomes a WARNING and a count in mailhook.emit_failures, and that one statement has no events.
-- To silence it for a transaction, say an import that is not news: SET LOCAL mailhook.off = 'on'.
--
-- To remove it: mailhook adapter listmonk --uninstall | psql …; dropping schema mailhook removes it, too.
--
-- After an upgrade of listmonk that renames columns: what says that something happened, to whom and to what (ids, statuses,
-- types, email, url) is read plainly: without it the events stop, warned about and counted. All else only describes: without it
-- the events go on and lack that field.

BEGIN;
-- Rather give up, and be run again, than let listmonk's statements queue up behind a waiting lock. Shorter than
-- deadlock_timeout, so that in a deadlock with listmonk it is not listmonk that loses.
SET LOCAL lock_timeout = '500ms';
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
  absent text;
BEGIN
  IF to_regclass('mailhook.outbox') IS NULL THEN
    RAISE EXCEPTION 'mailhook is not installed in this database' USING HINT = 'Run mailhook migrate up first.';
  END IF;
  SELECT string_agg(needed.host_table || '.' || needed.host_column, ', ') INTO absent
  FROM (VALUES
    ('public.campaign_views', 'campaign_id'), ('public.campaign_views', 'subscriber_id'),
    ('public.link_clicks', 'campaign_id'), ('public.link_clicks', 'subscriber_id'), ('public.link_clicks', 'link_id'),
    ('public.links', 'id'), ('public.links', 'url'),
    ('public.bounces', 'subscriber_id'), ('public.bounces', 'campaign_id'), ('public.bounces', 'type'),
    ('public.subscriber_lists', 'subscriber_id'), ('public.subscriber_lists', 'list_id'), ('public.subscriber_lists', 'status'),
    ('public.subscribers', 'id'), ('public.subscribers', 'email'), ('public.subscribers', 'status'),
    ('public.lists', 'id'), ('public.lists', 'optin'),
    ('public.campaigns', 'id')
  ) AS needed (host_table, host_column)
  WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = to_regclass(needed.host_table) AND a.attname = needed.host_column AND NOT a.attisdropped
  );
  IF absent IS NOT NULL THEN
    RAISE EXCEPTION 'these are not the tables of a listmonk that this adapter knows: % missing', absent
      USING HINT = 'Is this listmonk''s database, and has listmonk --install been run? Tables in another schema: see the comment at the top.';
  END IF;
END
$$;

-- The look-ups.
--
-- "absent" is what keeps a renamed column from being an error: a name without a table in front is looked for in the host's
-- table first, and only if it is not there in the row of NULLs around it. (to_jsonb(row) ->> 'name' would do the same, but
-- reads the whole row, and the row of a campaign has the body of the mail in it.)
-- LIMIT 1 makes each of them one look-up by key for each row: joined as tables, a session whose first statement had
-- 20,000 rows would keep that plan, and read all subscribers for each click after it.

CREATE OR REPLACE FUNCTION mailhook.listmonk_subscriber(subscriber_id bigint)
RETURNS TABLE (email text, subscriber_uuid text, meta_data jsonb)
LANGUAGE sql STABLE
AS $$
  SELECT found.email, found.subscriber_uuid,
    -- An event has room for 256 KiB.
    CASE WHEN octet_length(found.meta_data::text) <= 100000 THEN found.meta_data END
  FROM (SELECT NULL::uuid AS uuid, NULL::jsonb AS attribs) AS absent
  CROSS JOIN LATERAL (
    SELECT s.email::text AS email, uuid::text AS subscriber_uuid, attribs AS meta_data
    FROM public.subscribers AS s
    WHERE s.id = $1
  ) AS found
  LIMIT 1
$$;
COMMENT ON FUNCTION mailhook.listmonk_subscriber IS 'What events say of a subscriber; no row when there is none. meta_data is left out when it is larger than 100,000 bytes.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_campaign(campaign_id bigint)
RETURNS TABLE (campaign_uuid text, broadcast_name text, sending_domain text)
LANGUAGE sql STABLE
AS $$
  SELECT found.campaign_uuid, found.broadcast_name,
    -- From 'News <news@mail.example.com>' and from 'news@mail.example.com'.
    lower(substring(found.sender FROM '@([^@<>[:space:]]+)>?[[:space:]]*$'))
  FROM (SELECT NULL::uuid AS uuid, NULL::text AS name, NULL::text AS from_email) AS absent
  CROSS JOIN LATERAL (
    SELECT uuid::text AS campaign_uuid, name::text AS broadcast_name, from_email::text AS sender
    FROM public.campaigns AS c
    WHERE c.id = $1
  ) AS found
  LIMIT 1
$$;
COMMENT ON FUNCTION mailhook.listmonk_campaign IS 'What events say of a campaign; no row when there is none.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_list(list_id bigint)
RETURNS TABLE (is_single_optin boolean, list_uuid text, list_name text)
LANGUAGE sql STABLE
AS $$
  SELECT found.is_single_optin, found.list_uuid, found.list_name
  FROM (SELECT NULL::uuid AS uuid, NULL::text AS name) AS absent
  CROSS JOIN LATERAL (
    SELECT l.optin::text = 'single' AS is_single_optin, uuid::text AS list_uuid, name::text AS list_name
    FROM public.lists AS l
    WHERE l.id = $1
  ) AS found
  LIMIT 1
$$;
COMMENT ON FUNCTION mailhook.listmonk_list IS 'What events say of a list; no row when there is none.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_give_up(host_table text, problem text, code text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  -- Whoever holds a lock on outbox may hold one on the counter as well.
  BEGIN
    PERFORM mailhook.count_emit_failure();
  EXCEPTION WHEN OTHERS THEN
    NULL;
  END;
  RAISE WARNING 'mailhook adapter listmonk wrote no event for %: % (SQLSTATE %)', host_table, problem, code;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_give_up IS 'The WARNING and the count of a statement that has no events. Never fails.';

-- The triggers' functions. All have the same frame:
--   SECURITY DEFINER and search_path   so that listmonk's role needs no right, and cannot change what a name means
--   lock_timeout                       for the look-ups too: an EXCEPTION block alone does not help against a lock
--   enable_seqscan, jit                the plan is kept for the session: it must suit one row and many, and a table that was empty
--   one EXCEPTION block                for all of the statement's rows, for each is a subtransaction
-- Events are written with one INSERT and not with mailhook.emit_many, which checks each event: that takes 42 µs an event instead of 5
-- in listmonk's transaction, and one bad row would cost all others their events. Dispatch makes the same checks, and quarantines one.
-- The dedupe_key holds the time of the row: after listmonk --install ids begin at 1 again, and those are other events.

CREATE OR REPLACE FUNCTION mailhook.listmonk_campaign_viewed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (SELECT FROM inserted) THEN
    RETURN NULL;
  END IF;
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, campaign_id, sending_domain, dedupe_key, data)
  SELECT 'email.opened', view.created_at, s.email, view.campaign_id::text, c.sending_domain,
    'listmonk:campaign_views:' || view.id || ':' || extract(epoch FROM view.created_at),
    json_build_object('broadcast_name', c.broadcast_name, 'campaign_uuid', c.campaign_uuid,
      'subscriber_id', view.subscriber_id::text, 'subscriber_uuid', s.subscriber_uuid,
      'message_class', 'newsletter', 'meta_data', s.meta_data)
  FROM (SELECT NULL::bigint AS id, NULL::timestamptz AS created_at) AS absent
  CROSS JOIN LATERAL (SELECT n.campaign_id, n.subscriber_id, id, created_at FROM inserted AS n) AS view
  LEFT JOIN LATERAL mailhook.listmonk_campaign(view.campaign_id) AS c ON true
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(view.subscriber_id) AS s ON true;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_campaign_viewed IS 'INSERT campaign_views: email.opened. Without a subscriber (individual tracking is off) it has no recipient.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_link_clicked() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (SELECT FROM inserted) THEN
    RETURN NULL;
  END IF;
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, campaign_id, sending_domain, dedupe_key, data)
  SELECT 'email.clicked', click.created_at, s.email, click.campaign_id::text, c.sending_domain,
    'listmonk:link_clicks:' || click.id || ':' || extract(epoch FROM click.created_at),
    json_build_object('broadcast_name', c.broadcast_name, 'campaign_uuid', c.campaign_uuid,
      'subscriber_id', click.subscriber_id::text, 'subscriber_uuid', s.subscriber_uuid,
      'message_class', 'newsletter', 'link_url', l.url, 'meta_data', s.meta_data)
  FROM (SELECT NULL::bigint AS id, NULL::timestamptz AS created_at) AS absent
  CROSS JOIN LATERAL (SELECT n.campaign_id, n.subscriber_id, n.link_id, id, created_at FROM inserted AS n) AS click
  LEFT JOIN LATERAL (SELECT links.url FROM public.links WHERE links.id = click.link_id LIMIT 1) AS l ON true
  LEFT JOIN LATERAL mailhook.listmonk_campaign(click.campaign_id) AS c ON true
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(click.subscriber_id) AS s ON true;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_link_clicked IS 'INSERT link_clicks: email.clicked. Without a subscriber (individual tracking is off) it has no recipient.';

-- A bounce with the action delete is one statement: it deletes the subscriber, and the new row of bounces with it, and only
-- then this function runs. The trigger on the deletion runs before it and leaves the subscriber in a setting.
CREATE OR REPLACE FUNCTION mailhook.listmonk_bounced() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
  deleted jsonb;
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (SELECT FROM inserted) THEN
    RETURN NULL;
  END IF;
  deleted := nullif(current_setting('mailhook.listmonk_deleted', true), '');
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, campaign_id, sending_domain, dedupe_key, data)
  SELECT CASE bounce.type WHEN 'complaint' THEN 'email.complained' ELSE 'email.bounced' END,
    bounce.created_at, coalesce(s.email, d.gone ->> 'email'), bounce.campaign_id::text, c.sending_domain,
    'listmonk:bounces:' || bounce.id || ':' || extract(epoch FROM bounce.created_at),
    json_build_object('broadcast_name', c.broadcast_name, 'campaign_uuid', c.campaign_uuid,
      'subscriber_id', bounce.subscriber_id::text, 'subscriber_uuid', coalesce(s.subscriber_uuid, d.gone ->> 'subscriber_uuid'),
      'bounce_type', CASE WHEN bounce.type <> 'complaint' THEN bounce.type END, 'source', bounce.source,
      'bounce_meta', CASE WHEN octet_length(bounce.meta::text) <= 100000 THEN nullif(bounce.meta, '{}') END,
      'meta_data', coalesce(s.meta_data, d.gone -> 'meta_data'))
  FROM (SELECT NULL::bigint AS id, NULL::text AS source, NULL::jsonb AS meta, NULL::timestamptz AS created_at) AS absent
  CROSS JOIN LATERAL (SELECT n.subscriber_id, n.campaign_id, n.type::text, id, source, meta, created_at FROM inserted AS n) AS bounce
  CROSS JOIN LATERAL (SELECT deleted -> bounce.subscriber_id::text AS gone) AS d
  LEFT JOIN LATERAL mailhook.listmonk_campaign(bounce.campaign_id) AS c ON true
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(bounce.subscriber_id) AS s ON true;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_bounced IS 'INSERT bounces: email.bounced or email.complained. bounce_meta is what the provider sent, up to 100,000 bytes.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_list_joined() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (SELECT FROM inserted AS n WHERE n.status::text IN ('confirmed', 'unconfirmed')) THEN
    RETURN NULL;
  END IF;
  -- No rows may be left after the join; the INSERT is then for nothing, as after an opt-in mail that is not yet answered.
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, data)
  SELECT 'email.subscribed', now(), s.email,
    json_build_object('list_id', joined.list_id::text, 'list_uuid', l.list_uuid, 'list_name', l.list_name,
      'subscriber_id', joined.subscriber_id::text, 'subscriber_uuid', s.subscriber_uuid,
      'subscription_status', joined.status, 'ip_address', joined.meta ->> 'optin_ip', 'meta_data', s.meta_data)
  FROM (SELECT NULL::jsonb AS meta) AS absent
  CROSS JOIN LATERAL (SELECT n.subscriber_id, n.list_id, n.status::text, meta FROM inserted AS n) AS joined
  LEFT JOIN LATERAL mailhook.listmonk_list(joined.list_id) AS l ON true
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(joined.subscriber_id) AS s ON true
  WHERE joined.status = 'confirmed' OR (joined.status = 'unconfirmed' AND l.is_single_optin);
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_list_joined IS 'INSERT subscriber_lists: email.subscribed, if the list may be sent to the subscriber: confirmed, or unconfirmed where the list asks for no confirmation.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_list_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (
    SELECT n.subscriber_id, n.list_id, n.status FROM after_update AS n
    EXCEPT
    SELECT o.subscriber_id, o.list_id, o.status FROM before_update AS o
  ) THEN
    RETURN NULL;
  END IF;
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, data)
  -- The two sides of a row are brought together by grouping: a join's plan, kept from a statement with one row, would compare
  -- each of 50,000 rows with each.
  WITH changed AS MATERIALIZED (
    SELECT side.subscriber_id, side.list_id,
      max(side.old_status) AS old_status, max(side.new_status) AS new_status, max(side.optin_ip) AS optin_ip
    FROM (
      SELECT o.subscriber_id, o.list_id, o.status::text AS old_status, NULL::text AS new_status, NULL::text AS optin_ip
      FROM before_update AS o
      UNION ALL
      SELECT a.subscriber_id, a.list_id, NULL, a.status, a.meta ->> 'optin_ip'
      FROM (SELECT NULL::jsonb AS meta) AS absent
      CROSS JOIN LATERAL (SELECT n.subscriber_id, n.list_id, n.status::text, meta FROM after_update AS n) AS a
    ) AS side
    GROUP BY side.subscriber_id, side.list_id
    HAVING max(side.old_status) IS DISTINCT FROM max(side.new_status)
  )
  SELECT CASE changed.new_status WHEN 'unsubscribed' THEN 'email.unsubscribed' ELSE 'email.subscribed' END, now(), s.email,
    json_build_object('list_id', changed.list_id::text, 'list_uuid', l.list_uuid, 'list_name', l.list_name,
      'subscriber_id', changed.subscriber_id::text, 'subscriber_uuid', s.subscriber_uuid,
      'subscription_status', changed.new_status,
      'ip_address', CASE WHEN changed.new_status <> 'unsubscribed' THEN changed.optin_ip END, 'meta_data', s.meta_data)
  FROM changed
  LEFT JOIN LATERAL mailhook.listmonk_list(changed.list_id) AS l ON true
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(changed.subscriber_id) AS s ON true
  WHERE changed.new_status IN ('unsubscribed', 'confirmed')
    -- The way back onto a list that asks for no confirmation.
    OR (changed.new_status = 'unconfirmed' AND changed.old_status = 'unsubscribed' AND l.is_single_optin)
  ORDER BY changed.subscriber_id, changed.list_id;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_list_changed IS 'UPDATE subscriber_lists: email.unsubscribed or email.subscribed where the status has changed to it. No dedupe_key: it may happen any number of times.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_subscriber_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
  blocklisted bigint[];
BEGIN
  IF mailhook.is_off() THEN
    RETURN NULL;
  END IF;
  blocklisted := ARRAY(
    SELECT n.id FROM after_update AS n WHERE n.status::text = 'blocklisted'
    EXCEPT
    SELECT o.id FROM before_update AS o WHERE o.status::text = 'blocklisted'
    ORDER BY id
  );
  IF blocklisted = '{}' THEN
    RETURN NULL;
  END IF;
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, data)
  SELECT 'email.suppressed', now(), s.email,
    json_build_object('subscriber_id', b.id::text, 'subscriber_uuid', s.subscriber_uuid, 'reason', 'blocklisted', 'meta_data', s.meta_data)
  FROM unnest(blocklisted) AS b (id)
  LEFT JOIN LATERAL mailhook.listmonk_subscriber(b.id) AS s ON true;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_subscriber_changed IS 'UPDATE subscribers: email.suppressed where the status has become blocklisted. At now(): listmonk does not always refresh updated_at.';

CREATE OR REPLACE FUNCTION mailhook.listmonk_subscriber_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
  IF mailhook.is_off() OR NOT EXISTS (SELECT FROM deleted) THEN
    RETURN NULL;
  END IF;
  INSERT INTO mailhook.outbox (event_type, occurred_at, recipient, dedupe_key, data)
  SELECT 'recipient.deleted', now(), gone.email, 'listmonk:subscribers:' || gone.uuid || ':deleted',
    json_build_object('subscriber_id', gone.id::text, 'subscriber_uuid', gone.uuid,
      'meta_data', CASE WHEN octet_length(gone.attribs::text) <= 100000 THEN gone.attribs END)
  FROM (SELECT NULL::uuid AS uuid, NULL::jsonb AS attribs) AS absent
  CROSS JOIN LATERAL (SELECT o.id, o.email, uuid, attribs FROM deleted AS o) AS gone;

  -- For listmonk_bounced, until the end of the transaction. It needs one; a large deletion is none of a bounce.
  IF (SELECT count(*) FROM deleted) <= 10 THEN
    PERFORM set_config('mailhook.listmonk_deleted', jsonb_object_agg(gone.id, jsonb_build_object(
        'email', gone.email, 'subscriber_uuid', gone.uuid,
        'meta_data', CASE WHEN octet_length(gone.attribs::text) <= 100000 THEN gone.attribs END))::text, true)
    FROM (SELECT NULL::uuid AS uuid, NULL::jsonb AS attribs) AS absent
    CROSS JOIN LATERAL (SELECT o.id, o.email, uuid, attribs FROM deleted AS o) AS gone;
  END IF;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM mailhook.listmonk_give_up(TG_TABLE_NAME, SQLERRM, SQLSTATE);
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION mailhook.listmonk_subscriber_deleted IS 'DELETE subscribers: recipient.deleted.';

-- A trigger function needs no EXECUTE right of the role whose statement fires it.
REVOKE ALL ON FUNCTION
  mailhook.listmonk_subscriber(bigint), mailhook.listmonk_campaign(bigint), mailhook.listmonk_list(bigint),
  mailhook.listmonk_give_up(text, text, text),
  mailhook.listmonk_campaign_viewed(), mailhook.listmonk_link_clicked(), mailhook.listmonk_bounced(),
  mailhook.listmonk_list_joined(), mailhook.listmonk_list_changed(),
  mailhook.listmonk_subscriber_changed(), mailhook.listmonk_subscriber_deleted()
FROM PUBLIC;

-- For statements, not rows, and without a column list: a column named in a trigger's definition could not be altered in type by
-- listmonk's own migrations any more. INSERT … ON CONFLICT DO UPDATE fires both, each with its own rows.
CREATE OR REPLACE TRIGGER mailhook_campaign_viewed
AFTER INSERT ON public.campaign_views REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_campaign_viewed();

CREATE OR REPLACE TRIGGER mailhook_link_clicked
AFTER INSERT ON public.link_clicks REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_link_clicked();

CREATE OR REPLACE TRIGGER mailhook_bounced
AFTER INSERT ON public.bounces REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_bounced();

CREATE OR REPLACE TRIGGER mailhook_list_joined
AFTER INSERT ON public.subscriber_lists REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_list_joined();

CREATE OR REPLACE TRIGGER mailhook_list_changed
AFTER UPDATE ON public.subscriber_lists REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_list_changed();

CREATE OR REPLACE TRIGGER mailhook_subscriber_changed
AFTER UPDATE ON public.subscribers REFERENCING OLD TABLE AS before_update NEW TABLE AS after_update
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_subscriber_changed();

CREATE OR REPLACE TRIGGER mailhook_subscriber_deleted
AFTER DELETE ON public.subscribers REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION mailhook.listmonk_subscriber_deleted();

COMMIT;
