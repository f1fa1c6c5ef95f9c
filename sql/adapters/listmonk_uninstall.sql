-- Removes mailhook's adapter for listmonk: the triggers on listmonk's tables and their functions. Events that are written
-- already stay and are sent. It can be run any number of times; it is one transaction.
--
--   mailhook adapter listmonk --uninstall | psql -v ON_ERROR_STOP=1 "$MAILHOOK_DATABASE_URL"
--
-- As whom: the owner of schema mailhook.

BEGIN;
-- Rather give up, and be run again, than let listmonk's statements queue up behind a waiting lock.
SET LOCAL lock_timeout = '500ms';
SET LOCAL client_min_messages = warning;

-- CASCADE takes the triggers along, in whatever schema their tables are.
DROP FUNCTION IF EXISTS
  mailhook.listmonk_campaign_viewed(), mailhook.listmonk_link_clicked(), mailhook.listmonk_bounced(),
  mailhook.listmonk_list_joined(), mailhook.listmonk_list_changed(),
  mailhook.listmonk_subscriber_changed(), mailhook.listmonk_subscriber_deleted()
CASCADE;
DROP FUNCTION IF EXISTS
  mailhook.listmonk_subscriber(bigint), mailhook.listmonk_campaign(bigint), mailhook.listmonk_list(bigint),
  mailhook.listmonk_give_up(text, text, text);
COMMIT;
