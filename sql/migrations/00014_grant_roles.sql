-- +goose Up
-- What the two processes may do, on one page; what the host may do is granted where the outbox and emit are made. Neither owns
-- a table: what makes and drops partitions is SECURITY DEFINER. Partitions are reached through their parents.

-- The worker: takes events, matches, delivers, records, and keeps the tables small.
GRANT SELECT ON mailhook.goose_db_version, mailhook.installation, mailhook.accounts, mailhook.event_types, mailhook.subscription_event_types,
  mailhook.detached_days TO mailhook_worker;
GRANT UPDATE (secret_key_id) ON mailhook.installation TO mailhook_worker;
GRANT SELECT, INSERT, DELETE ON mailhook.outbox TO mailhook_worker;
GRANT SELECT, INSERT ON mailhook.events, mailhook.attempts TO mailhook_worker;
GRANT SELECT, DELETE ON mailhook.events_default, mailhook.attempts_default TO mailhook_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON mailhook.deliveries, mailhook.dead_letters, mailhook.quarantine, mailhook.dedupe_keys, mailhook.subscription_health,
  mailhook.workers, mailhook.task_leases TO mailhook_worker;
GRANT SELECT, UPDATE, DELETE ON mailhook.replays, mailhook.test_deliveries TO mailhook_worker;
GRANT SELECT, INSERT, UPDATE ON mailhook.event_counts TO mailhook_worker;
-- The end of a dead letter changes when its subscription is deleted; nothing else in an attempt does.
GRANT UPDATE (ended_as, ended_reason) ON mailhook.attempts TO mailhook_worker;
-- FOR UPDATE asks for UPDATE of any column; id is GENERATED ALWAYS.
GRANT UPDATE (id) ON mailhook.outbox TO mailhook_worker;
GRANT SELECT, UPDATE (status, status_reason), DELETE ON mailhook.subscriptions TO mailhook_worker;
GRANT SELECT, UPDATE (expires_at), DELETE ON mailhook.subscription_secrets TO mailhook_worker;
GRANT SELECT ON mailhook.subscription_credentials TO mailhook_worker;
-- An erasure, which empties what it finds.
GRANT SELECT, UPDATE, DELETE ON mailhook.erasures TO mailhook_worker;
GRANT UPDATE (recipient, message_id, campaign_id, sending_node, bridge, dedicated_ip, dedupe_key, data, erased_at) ON mailhook.events TO mailhook_worker;
GRANT UPDATE (response_excerpt) ON mailhook.attempts TO mailhook_worker;
-- The end of its retention.
GRANT SELECT (id, changed_at), DELETE ON mailhook.audit_log TO mailhook_worker;
GRANT SELECT, UPDATE ON SEQUENCE mailhook.wakeup TO mailhook_worker;
GRANT SELECT ON SEQUENCE mailhook.emit_failures TO mailhook_worker;

-- The API: manages subscriptions and reads history. It writes sealed secrets and cannot read them, and makes no keys.
GRANT SELECT ON mailhook.goose_db_version, mailhook.installation, mailhook.event_types, mailhook.event_type_aliases, mailhook.outbox, mailhook.events, mailhook.attempts, mailhook.workers,
  mailhook.unfinished_deliveries TO mailhook_api;
GRANT UPDATE (secret_key_id) ON mailhook.installation TO mailhook_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON mailhook.accounts, mailhook.subscription_health TO mailhook_api;
GRANT SELECT, INSERT, UPDATE (next_attempt_at, batch_id) ON mailhook.deliveries TO mailhook_api;
GRANT SELECT, DELETE ON mailhook.dead_letters, mailhook.quarantine TO mailhook_api;
GRANT SELECT, INSERT, UPDATE (state) ON mailhook.replays TO mailhook_api;
GRANT SELECT, INSERT, DELETE ON mailhook.test_deliveries TO mailhook_api;
GRANT SELECT, INSERT, UPDATE ON mailhook.subscriptions TO mailhook_api;
GRANT SELECT (id, subscription_id, key_id, created_at, expires_at), INSERT, UPDATE (expires_at), DELETE ON mailhook.subscription_secrets TO mailhook_api;
GRANT SELECT (subscription_id, kind, key_id), INSERT, UPDATE (key_id, sealed), DELETE ON mailhook.subscription_credentials TO mailhook_api;
GRANT SELECT, UPDATE (last_used_at, revoked_at) ON mailhook.api_keys TO mailhook_api;
GRANT INSERT (actor, actor_key_id, account_id, action, object_id, before, after) ON mailhook.audit_log TO mailhook_api;
-- Whom an erasure is about only workers read.
GRANT INSERT (account_id, pattern, is_dry_run), SELECT (id, account_id, is_dry_run, state, phase, scanned_count, outbox_count, event_count, delivery_count,
  attempt_count, dead_letter_count, quarantine_count, dedupe_key_count, test_delivery_count, created_at, ended_at) ON mailhook.erasures TO mailhook_api;
GRANT INSERT (turn), SELECT (turn) ON mailhook.erasures TO mailhook_api;
-- A quarantined event goes back to the outbox.
GRANT INSERT ON mailhook.outbox TO mailhook_api;
-- Other platforms' words for event types.
GRANT EXECUTE ON FUNCTION mailhook.event_word(text) TO mailhook_api;

-- +goose StatementBegin
DO $$
DECLARE
  signature regprocedure;
BEGIN
  FOR signature IN
    SELECT p.oid FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace
      AND p.proname IN ('installation_code', 'event_id', 'uuid7', 'address_of', 'is_readable', 'event_type_ancestors', 'is_about', 'fields_of', 'passes_filters',
        'condition_places', 'condition_of', 'filter_of', 'leaf_type', 'refusal_of', 'in_flight_remainder', 'in_flight_share', 'in_flight_excess', 'slowed_cap', 'count_key', 'recipient_domain', 'day_needed_by', 'keep_event', 'order_key')
  LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO mailhook_worker, mailhook_api', signature);
  END LOOP;
END
$$;
-- +goose StatementEnd
GRANT EXECUTE ON FUNCTION mailhook.create_partition(text, date), mailhook.detach_day(date), mailhook.count_day(date, integer), mailhook.drop_attempts(date),
  mailhook.mentions(text, text, text, text, text, json), mailhook.erase_detached(uuid, integer),
  mailhook.await_urgent(bigint, integer, interval), mailhook.urgent_reserve(integer, text[])
  TO mailhook_worker;

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
  name text;
BEGIN
  FOR name IN
    SELECT c.oid::regclass FROM pg_catalog.pg_class AS c WHERE c.relnamespace = 'mailhook'::regnamespace AND c.relacl::text ~ 'mailhook_(worker|api)='
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM mailhook_worker, mailhook_api', name);
  END LOOP;
  FOR name IN
    SELECT p.oid::regprocedure FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = 'mailhook'::regnamespace AND p.proacl::text ~ 'mailhook_(worker|api)='
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM mailhook_worker, mailhook_api', name);
  END LOOP;
END
$$;
-- +goose StatementEnd
