package sql_test

import (
	"testing"

	"mailhook/db/dbtest"
)

// What the roles of the worker and the API may not do. What they need they have: the tests of worker and httpapi run as them.
func TestRolesMayDoNothingElse(t *testing.T) {
	t.Parallel()
	denied := map[string][]string{
		"mailhook_worker": {
			"SELECT FROM mailhook.api_keys", "INSERT INTO mailhook.api_keys (key_hash) VALUES ('')", "DELETE FROM mailhook.api_keys",
			"INSERT INTO mailhook.subscriptions (account_id, url, event_types) VALUES ('a', 'https://example.com', '{*}')",
			"UPDATE mailhook.subscriptions SET url = 'https://example.com'", "UPDATE mailhook.subscriptions SET account_id = 'a'",
			"INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES (gen_random_uuid(), '', '')",
			"UPDATE mailhook.subscription_secrets SET sealed = ''", "DELETE FROM mailhook.subscription_credentials",
			"INSERT INTO mailhook.subscription_event_types VALUES ('a', '*', gen_random_uuid())",
			"SELECT before FROM mailhook.audit_log", "DELETE FROM mailhook.audit_log", "DELETE FROM mailhook.events", "DELETE FROM mailhook.attempts", "DELETE FROM mailhook.event_counts", "UPDATE mailhook.audit_log SET before = NULL", "INSERT INTO mailhook.audit_log (actor, action) VALUES ('command', 'a')",
			"UPDATE mailhook.accounts SET status = 'active'", "INSERT INTO mailhook.accounts (id) VALUES ('a')",
			"UPDATE mailhook.installation SET delivery_enabled = false", "UPDATE mailhook.attempts SET outcome = 'ok'", "UPDATE mailhook.events SET account_id = 'a'",
			"UPDATE mailhook.outbox SET account_id = 'a'", "SELECT nextval('mailhook.outbox_id_seq')", "SELECT setval('mailhook.emit_failures', 1)",
		},
		"mailhook_api": {
			"SELECT sealed FROM mailhook.subscription_secrets", "SELECT * FROM mailhook.subscription_secrets", "UPDATE mailhook.subscription_secrets SET sealed = ''",
			"DELETE FROM mailhook.subscription_secrets RETURNING sealed", "COPY mailhook.subscription_secrets TO STDOUT",
			"SELECT sealed FROM mailhook.subscription_credentials", "UPDATE mailhook.subscription_credentials SET kind = 'auth' RETURNING sealed",
			"INSERT INTO mailhook.api_keys (key_hash) VALUES ('')", "UPDATE mailhook.api_keys SET account_id = NULL", "UPDATE mailhook.api_keys SET revoked_at = NULL", "UPDATE mailhook.api_keys SET revoked_at = now()", "UPDATE mailhook.api_keys SET key_hash = ''",
			"SELECT pattern FROM mailhook.erasures", "SELECT * FROM mailhook.erasures", "DELETE FROM mailhook.erasures", "DELETE FROM mailhook.api_keys", "DELETE FROM mailhook.deliveries", "UPDATE mailhook.deliveries SET account_id = 'a'",
			"INSERT INTO mailhook.dead_letters (id) VALUES (gen_random_uuid())", "UPDATE mailhook.replays SET rate_per_second = 9", "INSERT INTO mailhook.audit_log (actor, action, changed_at) VALUES ('command', 'a', now())",
			"SELECT FROM mailhook.audit_log", "DELETE FROM mailhook.audit_log", "UPDATE mailhook.audit_log SET before = NULL",
			"DELETE FROM mailhook.subscriptions", "DELETE FROM mailhook.events", "DELETE FROM mailhook.attempts", "UPDATE mailhook.attempts SET outcome = 'ok'",
			"INSERT INTO mailhook.events DEFAULT VALUES", "INSERT INTO mailhook.attempts DEFAULT VALUES", "DELETE FROM mailhook.outbox", "UPDATE mailhook.outbox SET data = NULL",
			"UPDATE mailhook.installation SET delivery_enabled = false", "INSERT INTO mailhook.workers (id, hostname, pid, version) VALUES (gen_random_uuid(), '', 1, '')",
			"SELECT setval('mailhook.wakeup', 1)", "SELECT mailhook.create_partition('events', '2000-01-01')", "SELECT mailhook.detach_day('2000-01-01')",
			"SELECT mailhook.count_day('2000-01-01', 1)", "SELECT mailhook.drop_attempts('2000-01-01')", "SELECT mailhook.emit('email.sent')",
		},
	}
	d := dbtest.New(t)
	d.Exec(t, "INSERT INTO mailhook.api_keys (key_hash, scope, revoked_at) VALUES ('', 'write', now()); INSERT INTO mailhook.audit_log (actor, action) VALUES ('command', 'a')")
	tables := columnOf(t, d, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'mailhook'::regnamespace AND relkind IN ('r', 'p')")
	for role, statements := range denied {
		session := connect(t, d, login(t, d, role))
		for _, table := range tables {
			statements = append(statements, "TRUNCATE "+table, "DROP TABLE "+table, "CREATE INDEX ON "+table+" ((1))",
				"CREATE TRIGGER mine AFTER INSERT ON "+table+" EXECUTE FUNCTION mailhook.wake_workers()")
		}
		for _, sql := range append(statements, "CREATE TABLE mailhook.mine (id int)", "DROP SCHEMA mailhook CASCADE", "DROP FUNCTION mailhook.uuid7") {
			if _, err := session.Exec(t.Context(), sql); sqlState(err) != "42501" {
				t.Errorf("%s: %s: %v", role, sql, err)
			}
		}
	}
}

// A partition is reached through its parent, and by itself by nobody.
func TestPartitionsAreForTheirParents(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	partitions := columnOf(t, d, "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid WHERE c.relkind = 'r' AND c.relname !~ '_default$'")
	if len(partitions) == 0 {
		t.Fatal("no partitions")
	}
	for _, role := range []string{"mailhook_producer", "mailhook_worker", "mailhook_api"} {
		session := connect(t, d, login(t, d, role))
		for _, table := range partitions {
			if _, err := session.Exec(t.Context(), "SELECT FROM "+table); sqlState(err) != "42501" {
				t.Errorf("%s reads %s: %v", role, table, err)
			}
		}
	}
}
