package sql_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// producer makes a login role that has mailhook_producer and nothing else; it goes at the end of the test.
func producer(t *testing.T, d *dbtest.DB) *url.Userinfo {
	t.Helper()
	return login(t, d, "mailhook_producer")
}

// login makes a login role that has one role of ours and nothing else; it goes at the end of the test.
func login(t *testing.T, d *dbtest.DB, role string) *url.Userinfo {
	t.Helper()
	name, password := "mailhook_login_"+strings.ToLower(rand.Text()[:12]), rand.Text()
	d.Exec(t, "CREATE ROLE "+name+" LOGIN PASSWORD '"+password+"' IN ROLE "+role)
	t.Cleanup(func() {
		if _, err := d.Pool.Exec(context.Background(), "DROP ROLE "+name); err != nil {
			t.Error(err)
		}
	})
	return url.UserPassword(name, password)
}

const optionalColumns = "account_id, occurred_at, recipient, message_id, campaign_id, sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data"

func TestProducerWrites(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	var id int64
	var insertedAt time.Time
	for _, sql := range []string{
		"INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent') RETURNING id, inserted_at",
		"INSERT INTO mailhook.outbox (event_type, " + optionalColumns + ") VALUES ('email.sent'" + strings.Repeat(", NULL", 11) + ") RETURNING id, inserted_at",
		`INSERT INTO mailhook.outbox (event_type, ` + optionalColumns + `) VALUES
			('email.sent', '7', now(), 'r', 'm', 'c', 'd', 'n', 'b', 'no address', 'k', '{"x": 1}') RETURNING id, inserted_at`,
		"INSERT INTO mailhook.outbox (id, inserted_at, event_type) VALUES (DEFAULT, DEFAULT, 'email.sent') RETURNING id, inserted_at",
	} {
		before := id
		if err := host.QueryRow(t.Context(), sql).Scan(&id, &insertedAt); err != nil {
			// The last one names columns that the role may not write.
			if sqlState(err) != "42501" || !strings.Contains(sql, "DEFAULT") {
				t.Errorf("%s: %v", sql, err)
			}
			continue
		}
		if id <= before || time.Since(insertedAt).Abs() > time.Minute {
			t.Errorf("%s: id %d after %d, inserted at %v", sql, id, before, insertedAt)
		}
	}
	written := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox")
	if written != 3 {
		t.Fatalf("%d rows", written)
	}
	host.exec(t, "SET TimeZone = 'America/New_York'")
	for _, c := range emitCases() {
		if strings.Contains(c.sql, "::ci") {
			continue // of types that this host has not
		}
		for _, sql := range []string{c.sql, safe(c.sql)} {
			if answer := one[any](t, host, sql, c.args...); answer == nil {
				t.Errorf("%s: no answer", sql)
			}
		}
	}
	if len(host.notices) > 0 {
		t.Errorf("a warning: %s", host.notices[0].Message)
	}
	for _, c := range badEvents() {
		if _, err := host.Exec(t.Context(), c.sql); sqlState(err) != c.code {
			t.Errorf("%s: %v", c.name, err)
		}
		if answer := one[any](t, host, safe(c.sql)); answer != nil {
			t.Errorf("%s: answered %v", c.name, answer)
		}
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT last_value FROM mailhook.emit_failures"); n != int64(len(badEvents())) {
		t.Errorf("%d failures are counted", n)
	}
}

func TestProducerMayDoNothingElse(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	denied := []string{
		"INSERT INTO mailhook.outbox (id, event_type) OVERRIDING SYSTEM VALUE VALUES (1, 'email.sent')",
		"INSERT INTO mailhook.outbox (inserted_at, event_type) VALUES (now(), 'email.sent')",
		"INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent') RETURNING *",
		"SELECT * FROM mailhook.outbox", "SELECT recipient FROM mailhook.outbox", "SELECT id FROM mailhook.outbox FOR UPDATE",
		"UPDATE mailhook.outbox SET event_type = 'a'", "UPDATE mailhook.outbox SET data = NULL",
		"DELETE FROM mailhook.outbox", "TRUNCATE mailhook.outbox", "COPY mailhook.outbox TO STDOUT",
		"SELECT nextval('mailhook.wakeup')", "SELECT setval('mailhook.wakeup', 1)",
		"SELECT nextval('mailhook.emit_failures')", "SELECT setval('mailhook.emit_failures', 1)", "SELECT setval('mailhook.outbox_id_seq', 1)",
		"CREATE TABLE mailhook.mine (id int)", "CREATE FUNCTION mailhook.mine() RETURNS int LANGUAGE sql RETURN 1",
		"CREATE TRIGGER mine AFTER INSERT ON mailhook.outbox EXECUTE FUNCTION mailhook.wake_workers()",
	}
	for _, table := range columnOf(t, d, `SELECT oid::regclass::text FROM pg_class
			WHERE relnamespace = 'mailhook'::regnamespace AND relkind IN ('r', 'p') AND oid <> 'mailhook.outbox'::regclass`) {
		denied = append(denied, "SELECT FROM "+table, "INSERT INTO "+table+" DEFAULT VALUES", "DELETE FROM "+table)
	}
	denied = append(denied, "SELECT FROM mailhook.unfinished_deliveries")
	// With NULL for each argument: the right is checked before the function runs.
	for _, call := range columnOf(t, d, `
			SELECT p.oid::regproc || '(' || array_to_string(ARRAY(SELECT 'NULL::' || format_type(a, NULL) FROM unnest(p.proargtypes) AS a), ', ') || ')'
			FROM pg_proc AS p
			WHERE p.pronamespace = 'mailhook'::regnamespace AND p.prorettype <> 'trigger'::regtype
				AND p.proname NOT IN ('emit', 'emit_safe', 'emit_many', 'emit_many_safe', 'as_time', 'as_json', 'as_jsonb', 'check_event',
					'event_from_jsonb', 'insert_event', 'is_off', 'count_emit_failure', 'event_id', 'installation_code',
					'register_event_type', 'store_event_type', 'unregister_event_type', 'is_urgent')`) {
		denied = append(denied, "SELECT "+call)
	}
	for _, sql := range denied {
		if _, err := host.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// A role without any grant of ours cannot even see the schema.
func TestOthersMayDoNothing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	user := producer(t, d)
	d.Exec(t, "REVOKE mailhook_producer FROM "+user.Username())
	other := connect(t, d, user)
	for _, sql := range []string{"INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent')", "SELECT mailhook.emit('email.sent')", "SELECT mailhook.emit_safe('email.sent')"} {
		if _, err := other.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestEmitInEveryIsolation(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	other := connect(t, d, nil)
	for _, begin := range []string{"", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE"} {
		if begin != "" {
			host.exec(t, begin)
			one[int](t, host, "SELECT 1")
		}
		// Meanwhile others write, and the gate moves.
		other.exec(t, "SELECT mailhook.emit('email.opened'); SELECT setval('mailhook.wakeup', 1); SELECT setval('mailhook.wakeup', 0)")
		for _, sql := range []string{"SELECT mailhook.emit('email.sent')", "SELECT mailhook.emit_safe('{\"type\": \"email.sent\"}'::jsonb)", "SELECT mailhook.emit_many('[{\"type\": \"email.sent\"}]')",
			"INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent') RETURNING id"} {
			if answer := one[any](t, host, sql); answer == nil {
				t.Errorf("%s: %s: no answer", begin, sql)
			}
		}
		if begin != "" {
			host.exec(t, "COMMIT")
		}
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox WHERE event_type = 'email.sent'"); n != 16 {
		t.Errorf("%d of 16 events", n)
	}
}

func TestRolledBackMeansNothing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	arm(t, d)
	listener := listen(t, d)
	host := connect(t, d, nil)
	host.exec(t, `
		BEGIN;
		INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent');
		SELECT mailhook.emit('email.sent'), mailhook.emit_safe('email.sent'), mailhook.emit_many('[{"type": "email.sent"}]');
		ROLLBACK`)
	host.exec(t, "BEGIN; SAVEPOINT s; SELECT mailhook.emit('email.sent'); ROLLBACK TO s; COMMIT")
	if n := wakeups(t, d, listener); n != 0 {
		t.Errorf("%d notifications", n)
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestNotifyOnlyWhileArmed(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	listener := listen(t, d)
	emit := func() {
		host.exec(t, "SELECT mailhook.emit('email.sent'); INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent')")
	}
	q := db.New(d.Pool)
	expect := func(when string, want int) {
		t.Helper()
		if n := wakeups(t, d, listener); n != want {
			t.Errorf("%s: %d notifications, not %d", when, n, want)
		}
	}

	emit()
	expect("after the installation", 0)
	if armed, err := q.Arm(t.Context(), 60); err != nil || !armed {
		t.Fatalf("arm: %v, %v", armed, err)
	}
	emit()
	expect("armed", 1)
	if _, err := q.Arm(t.Context(), -1); err != nil {
		t.Fatal(err)
	}
	emit()
	expect("armed by a worker that is gone", 0)
	if err := q.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	emit()
	expect("disarmed", 0)

	d.Exec(t, "UPDATE mailhook.installation SET notify_enabled = false")
	if armed, err := q.Arm(t.Context(), 60); err != nil || armed {
		t.Fatalf("arm while notifications are off: %v, %v", armed, err)
	}
	emit()
	expect("notifications off", 0)
	if n := dbtest.QueryOne[int64](t, d, "SELECT last_value FROM mailhook.wakeup"); n != 0 {
		t.Errorf("the gate is at %d", n)
	}
}

func TestNotifyFromAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	for _, isolation := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(isolation), func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			listener := listen(t, d)
			tx, err := connect(t, d, nil).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: isolation})
			if err != nil {
				t.Fatal(err)
			}
			one[int64](t, tx, "SELECT count(*) FROM mailhook.outbox") // the snapshot
			if _, err := db.New(d.Pool).Arm(t.Context(), 60); err != nil {
				t.Fatal(err)
			}
			one[string](t, tx, "SELECT mailhook.emit('email.sent')")
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := wakeups(t, d, listener); n != 1 {
				t.Errorf("%d notifications", n)
			}
		})
	}
}

func TestOneNotificationForATransaction(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	listener := listen(t, d)
	arm(t, d)
	host := connect(t, d, nil)
	tx := host.begin(t)
	// 10,000 statements of the trigger's, and one of 10,000 rows.
	if n := one[int64](t, tx, "SELECT count(mailhook.emit('email.sent', message_id => n::text)) FROM generate_series(1, 10000) AS n"); n != 10000 {
		t.Fatal(n)
	}
	if n := one[int64](t, tx, "SELECT mailhook.emit_many(ARRAY(SELECT jsonb_build_object('type', 'email.sent', 'message_id', n) FROM generate_series(1, 10000) AS n))"); n != 10000 {
		t.Fatal(n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := wakeups(t, d, listener); n != 1 {
		t.Errorf("%d notifications", n)
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 20000 {
		t.Errorf("%d rows", n)
	}
}

// Two-phase commit forbids NOTIFY: a host that uses it needs the gate shut.
func TestPreparedTransaction(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	gid := "mailhook_" + rand.Text()
	host.exec(t, "BEGIN; SELECT mailhook.emit('email.sent'); SELECT mailhook.emit_safe('email.sent'); PREPARE TRANSACTION '"+gid+"'")
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 0 {
		t.Errorf("%d rows before the commit", n)
	}
	host.exec(t, "COMMIT PREPARED '"+gid+"'")
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 2 {
		t.Errorf("%d rows after the commit", n)
	}
	// And this is why it must be.
	arm(t, d)
	host.exec(t, "BEGIN; SELECT mailhook.emit('email.sent')")
	if _, err := host.Exec(t.Context(), "PREPARE TRANSACTION '"+gid+"'"); sqlState(err) != "0A000" {
		t.Errorf("prepared after NOTIFY: %v", err)
	}
}

// Dropping the schema takes triggers on the host's tables along, and the host's writes go on.
func TestDropSchemaTakesTriggersAlong(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, `
		CREATE TABLE clicks (id int);
		CREATE FUNCTION mailhook.on_click() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mailhook.emit_safe('email.clicked'); RETURN NULL; END $$;
		CREATE TRIGGER on_click AFTER INSERT ON clicks FOR EACH ROW EXECUTE FUNCTION mailhook.on_click();
		INSERT INTO clicks VALUES (1);
		DROP SCHEMA mailhook CASCADE;
		INSERT INTO clicks VALUES (2)`)
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM clicks"); n != 2 {
		t.Errorf("%d rows", n)
	}
}

const sentinelChannel = "mailhook_test_sentinel"

// listen makes a session that hears what workers hear, and the sentinel.
func listen(t *testing.T, d *dbtest.DB) *session {
	t.Helper()
	s := connect(t, d, nil)
	s.exec(t, "LISTEN mailhook_wakeup; LISTEN "+sentinelChannel)
	return s
}

// arm has hosts notify for a minute.
func arm(t *testing.T, d *dbtest.DB) {
	t.Helper()
	if armed, err := db.New(d.Pool).Arm(t.Context(), 60); err != nil || !armed {
		t.Fatal(armed, err)
	}
}

// wakeups counts the notifications that came to listener up to now: all before a sentinel, which is sent last.
func wakeups(t *testing.T, d *dbtest.DB, listener *session) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sentinel := strconv.FormatInt(time.Now().UnixNano(), 10)
	d.Exec(t, "SELECT pg_notify($1, $2)", sentinelChannel, sentinel)
	for {
		got, err := listener.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case got.Channel == sentinelChannel && got.Payload == sentinel:
			return n
		case got.Channel == "mailhook_wakeup":
			n++
		}
	}
}

// columnOf is the one column of a query.
func columnOf(t *testing.T, d *dbtest.DB, sql string) []string {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), sql)
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}
