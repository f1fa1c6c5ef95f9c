-- +goose Up
-- In index predicates, so whoever inserts must be able to call it: granted, whatever the default privileges are.
CREATE FUNCTION mailhook.is_urgent(event_type text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN event_type IN ('email.complained', 'email.unsubscribed', 'email.bounced', 'email.bounced.hard');
COMMENT ON FUNCTION mailhook.is_urgent IS 'The one list of event types that go by the urgent lane. email.bounced: dispatch may find that it is a hard one.';
GRANT EXECUTE ON FUNCTION mailhook.is_urgent(text) TO PUBLIC;

CREATE TABLE mailhook.outbox (
  id             bigint GENERATED ALWAYS AS IDENTITY,
  inserted_at    timestamptz DEFAULT clock_timestamp(),
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
  CONSTRAINT outbox_id_pkey PRIMARY KEY (id)
) WITH (
  -- Rows live for milliseconds: vacuum by number, not by share, and never truncate (truncation takes an
  -- ACCESS EXCLUSIVE lock that the host's INSERT would wait for).
  autovacuum_vacuum_scale_factor = 0.0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0.0,
  autovacuum_vacuum_insert_threshold = 100000,
  autovacuum_analyze_scale_factor = 0.0,
  autovacuum_analyze_threshold = 1000000,
  vacuum_truncate = off
);
-- The urgent lane. id + 0, and not id: an order that the primary key cannot give, for a plan that was made while the table was
-- empty would read all of it by that.
CREATE INDEX outbox_urgent_id_idx ON mailhook.outbox ((id + 0)) WHERE mailhook.is_urgent(event_type);

COMMENT ON TABLE mailhook.outbox IS 'Where the host writes events, in its own transaction. Dispatch takes the rows away. Never partitioned: a missing partition would fail the host.';
COMMENT ON COLUMN mailhook.outbox.id IS 'Written by the database. Gaps are rolled back transactions.';
COMMENT ON COLUMN mailhook.outbox.inserted_at IS 'Written by the database; with id it is the identity of the event. NULL (an ORM''s explicit NULL) means the time of dispatch.';
COMMENT ON COLUMN mailhook.outbox.account_id IS 'The customer of the host whose subscriptions see this event. NULL or '''' means ''default''.';
COMMENT ON COLUMN mailhook.outbox.event_type IS 'Dotted lower-case name, at most 100 bytes: email.delivered. The only column a host must write.';
COMMENT ON COLUMN mailhook.outbox.occurred_at IS 'When it happened, by the host''s account. NULL means inserted_at.';
COMMENT ON COLUMN mailhook.outbox.bridge IS 'The SMTP credential the message came in by.';
COMMENT ON COLUMN mailhook.outbox.dedicated_ip IS 'The address the message was sent from; text here, parsed at dispatch, so that a bad one never fails the host.';
COMMENT ON COLUMN mailhook.outbox.dedupe_key IS 'Events of one account with the same key within the dedupe window are delivered once. Decided at dispatch.';
COMMENT ON COLUMN mailhook.outbox.data IS 'Everything else: a JSON object of at most 256 KiB. json, not jsonb: keys keep their order, and bytes are passed through.';

GRANT INSERT (account_id, event_type, occurred_at, recipient, message_id, campaign_id, sending_domain,
  sending_node, bridge, dedicated_ip, dedupe_key, data) ON mailhook.outbox TO mailhook_producer;
GRANT SELECT (id, inserted_at) ON mailhook.outbox TO mailhook_producer;

-- Until when a worker sleeps and wants a NOTIFY. 0: no one does, or the watcher is awake. A sequence and not a row, because
-- reading it takes no snapshot (a host in REPEATABLE READ sees the current value) and no row lock. Only workers set it. A
-- time and not a flag: of workers that are gone it asks nothing for long.
CREATE SEQUENCE mailhook.wakeup MINVALUE 0 START 0;
COMMENT ON SEQUENCE mailhook.wakeup IS 'Armed: until this time, in Unix seconds, a worker wants to be notified of the next insert into outbox; it arms anew each poll. 0: none does.';

-- The trigger's condition reads it with the rights of whoever inserts. It tells nobody more than whether a worker sleeps.
GRANT SELECT ON SEQUENCE mailhook.wakeup TO PUBLIC;

-- The queue check keeps a host from failing at commit because some other program of this cluster left the notification
-- queue to fill up: workers also poll.
-- +goose StatementBegin
CREATE FUNCTION mailhook.wake_workers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF pg_notification_queue_usage() < 0.5 THEN
    PERFORM pg_notify('mailhook_wakeup', '');
  END IF;
  RETURN NULL;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.wake_workers IS 'Notifies the channel mailhook_wakeup. Its trigger calls it only while a worker sleeps: a NOTIFY in every commit would cut the host''s commit rate to a third.';
REVOKE ALL ON FUNCTION mailhook.wake_workers() FROM PUBLIC;

-- WHEN, not an IF in the function: a call of it cost a host that inserts one row a fifth of its commit rate.
CREATE TRIGGER outbox_wake_workers
AFTER INSERT ON mailhook.outbox
FOR EACH STATEMENT
WHEN (pg_sequence_last_value('mailhook.wakeup'::regclass) > date_part('epoch', clock_timestamp()))
EXECUTE FUNCTION mailhook.wake_workers();

-- A loop here, and not in the worker: a look takes some µs, and a round trip some ten times as much on either side.
-- +goose StatementBegin
CREATE FUNCTION mailhook.await_urgent(after_id bigint, max_rows integer, patience interval) RETURNS bigint[]
LANGUAGE plpgsql
AS $$
DECLARE
  patient_until timestamptz := clock_timestamp() + patience;
  ids           bigint[];
BEGIN
  LOOP
    -- What another worker has just taken would be found again and again without the lock.
    SELECT array_agg(f.id) INTO ids
    FROM (
      SELECT o.id FROM mailhook.outbox AS o
      WHERE mailhook.is_urgent(o.event_type) AND o.id + 0 > after_id
      ORDER BY o.id + 0
      LIMIT max_rows
      FOR UPDATE SKIP LOCKED
    ) AS f;
    IF ids IS NOT NULL OR clock_timestamp() >= patient_until THEN
      RETURN ids;
    END IF;
    PERFORM pg_sleep(0.001);
  END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.await_urgent IS 'The first urgent rows above after_id that nobody has locked, as soon as there are some; NULL if there are none for so long.';
REVOKE ALL ON FUNCTION mailhook.await_urgent(bigint, integer, interval) FROM PUBLIC;

-- +goose Down
DROP TABLE mailhook.outbox;
DROP FUNCTION mailhook.await_urgent, mailhook.wake_workers, mailhook.is_urgent;
DROP SEQUENCE mailhook.wakeup;
