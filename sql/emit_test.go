package sql_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// outboxRows is the outbox as JSON, oldest first, without id and inserted_at and without what is absent; times in UTC.
const outboxRows = `
	SELECT coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(o) - ARRAY['id', 'inserted_at']
		|| jsonb_build_object('occurred_at', o.occurred_at AT TIME ZONE 'UTC')) ORDER BY o.id), '[]')
	FROM mailhook.outbox AS o`

// An emitCase is a statement that emits, and the rows that it writes beside account_id 'default'.
type emitCase struct {
	name, sql string
	args      []any
	want      string // an object, or an array of objects
}

func emitCases() []emitCase {
	delivered := `{"event_type": "email.delivered", "recipient": "a@example.com"}`
	timed := `{"event_type": "email.sent", "occurred_at": "2024-01-15T10:30:00"}`
	linked := `{"event_type": "email.sent", "data": {"link": "x"}}`
	two := `[{"event_type": "email.sent"}, {"event_type": "email.opened", "data": {"x": 1}}]`
	return []emitCase{
		{name: "type only", sql: `SELECT mailhook.emit('email.sent')`, want: `{"event_type": "email.sent"}`},
		{name: "named", sql: `SELECT mailhook.emit('email.sent', account_id => '7', recipient => 'r', message_id => 'm', campaign_id => 'c',
				sending_domain => 'd', sending_node => 'n', bridge => 'b', dedicated_ip => '192.0.2.1', dedupe_key => 'k', data => '{"x": 1}')`,
			want: `{"account_id": "7", "event_type": "email.sent", "recipient": "r", "message_id": "m", "campaign_id": "c", "sending_domain": "d",
				"sending_node": "n", "bridge": "b", "dedicated_ip": "192.0.2.1", "dedupe_key": "k", "data": {"x": 1}}`},
		{name: "named parameters", sql: `SELECT mailhook.emit($1, recipient => $2)`, args: []any{"email.delivered", "a@example.com"}, want: delivered},
		{name: "empty strings are absent", sql: `SELECT mailhook.emit('email.delivered', account_id => '', recipient => 'a@example.com', message_id => '',
				campaign_id => '', sending_domain => '', sending_node => '', bridge => '', dedicated_ip => '', dedupe_key => '', data => '', occurred_at => '')`,
			want: delivered},
		{name: "nulls are absent", sql: `SELECT mailhook.emit('email.delivered', account_id => NULL, recipient => 'a@example.com', message_id => NULL,
				dedicated_ip => NULL, data => NULL, occurred_at => NULL)`, want: delivered},
		{name: "data literal", sql: `SELECT mailhook.emit('email.sent', data => '{"link": "x"}')`, want: linked},
		{name: "data text", sql: `SELECT mailhook.emit('email.sent', data => '{"link": "x"}'::text)`, want: linked},
		{name: "data varchar", sql: `SELECT mailhook.emit('email.sent', data => '{"link": "x"}'::varchar)`, want: linked},
		{name: "data json", sql: `SELECT mailhook.emit('email.sent', data => '{"link": "x"}'::json)`, want: linked},
		{name: "data jsonb", sql: `SELECT mailhook.emit('email.sent', data => '{"link": "x"}'::jsonb)`, want: linked},
		{name: "data parameter", sql: `SELECT mailhook.emit('email.sent', data => $1)`, args: []any{`{"link": "x"}`}, want: linked},
		{name: "data jsonb parameter", sql: `SELECT mailhook.emit('email.sent', data => $1::jsonb)`, args: []any{map[string]string{"link": "x"}}, want: linked},
		{name: "data JSON null", sql: `SELECT mailhook.emit('email.sent', data => 'null')`, want: `{"event_type": "email.sent"}`},
		{name: "data of exactly 256 KiB", sql: `SELECT mailhook.emit('email.sent', data => '{"x":"' || repeat('a', 262144 - 8) || '"}')`,
			want: `{"event_type": "email.sent", "data": {"x": "` + strings.Repeat("a", 262144-8) + `"}}`},
		{name: "columns of exactly 1,000 bytes", sql: `SELECT mailhook.emit('email.sent', recipient => repeat('é', 500))`,
			want: `{"event_type": "email.sent", "recipient": "` + strings.Repeat("é", 500) + `"}`},
		{name: "type of exactly 100 bytes", sql: `SELECT mailhook.emit('a.' || repeat('b', 98))`, want: `{"event_type": "a.` + strings.Repeat("b", 98) + `"}`},

		{name: "time literal without offset", sql: `SELECT mailhook.emit('email.sent', occurred_at => '2024-01-15 10:30:00')`, want: timed},
		{name: "time literal with offset", sql: `SELECT mailhook.emit('email.sent', occurred_at => '2024-01-15T05:30:00-05:00')`, want: timed},
		{name: "time text", sql: `SELECT mailhook.emit('email.sent', occurred_at => '2024-01-15T10:30:00'::text)`, want: timed},
		{name: "timestamp", sql: `SELECT mailhook.emit('email.sent', occurred_at => timestamp '2024-01-15 10:30:00')`, want: timed},
		{name: "timestamptz", sql: `SELECT mailhook.emit('email.sent', occurred_at => timestamptz '2024-01-15 05:30:00')`, want: timed}, // New York
		{name: "timestamptz parameter", sql: `SELECT mailhook.emit('email.sent', occurred_at => $1::timestamptz)`,
			args: []any{time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)}, want: timed},
		{name: "time text in an object", sql: `SELECT mailhook.emit('{"type": "email.sent", "occurred_at": "2024-01-15 10:30:00"}'::jsonb)`, want: timed},
		{name: "timestamp in an object", sql: `SELECT mailhook.emit(jsonb_build_object('type', 'email.sent', 'occurred_at', timestamp '2024-01-15 10:30:00'))`, want: timed},
		{name: "timestamptz in an object", sql: `SELECT mailhook.emit(jsonb_build_object('type', 'email.sent', 'occurred_at', timestamptz '2024-01-15 05:30:00'))`, want: timed},

		{name: "jsonb", sql: `SELECT mailhook.emit(jsonb_build_object('type', 'email.delivered', 'recipient', 'a@example.com'))`, want: delivered},
		{name: "json", sql: `SELECT mailhook.emit(json_build_object('type', 'email.delivered', 'recipient', 'a@example.com'))`, want: delivered},
		{name: "text literal", sql: `SELECT mailhook.emit('{"type": "email.delivered", "recipient": "a@example.com"}')`, want: delivered},
		{name: "text literal after white space", sql: "SELECT mailhook.emit(E'\\r\\n\\t {\"type\": \"email.delivered\", \"recipient\": \"a@example.com\"}')", want: delivered},
		{name: "text parameter", sql: `SELECT mailhook.emit($1)`, args: []any{`{"type": "email.delivered", "recipient": "a@example.com"}`}, want: delivered},
		{name: "event_type for type", sql: `SELECT mailhook.emit('{"event_type": "email.sent"}'::jsonb)`, want: `{"event_type": "email.sent"}`},
		{name: "every type of key uncast", sql: `SELECT mailhook.emit(jsonb_build_object('type', 'email.sent', 'account_id', 7, 'recipient', 'A@Example.com'::ci,
				'message_id', '00000000-0000-0000-0000-00000000000a'::uuid, 'campaign_id', 9223372036854775807, 'bridge', 'hard'::kind,
				'dedicated_ip', '192.0.2.1'::inet, 'data', jsonb_build_object('smtp_code', 550)))`,
			want: `{"account_id": "7", "event_type": "email.sent", "recipient": "A@Example.com", "message_id": "00000000-0000-0000-0000-00000000000a",
				"campaign_id": "9223372036854775807", "bridge": "hard", "dedicated_ip": "192.0.2.1", "data": {"smtp_code": 550}}`},
		{name: "unknown keys are data, and win", sql: `SELECT mailhook.emit('{"type": "email.sent", "list_id": 7, "data": {"list_id": 8, "url": "u"}}')`,
			want: `{"event_type": "email.sent", "data": {"list_id": 7, "url": "u"}}`},
		{name: "data null in an object", sql: `SELECT mailhook.emit('{"type": "email.sent", "recipient": "", "data": null}')`, want: `{"event_type": "email.sent"}`},

		{name: "many jsonb[]", sql: `SELECT mailhook.emit_many(ARRAY[jsonb_build_object('type', 'email.sent'), '{"type": "email.opened", "x": 1}'])`, want: two},
		{name: "many jsonb", sql: `SELECT mailhook.emit_many('[{"type": "email.sent"}, {"type": "email.opened", "x": 1}]'::jsonb)`, want: two},
		{name: "many jsonb_agg", sql: `SELECT mailhook.emit_many(jsonb_agg(jsonb_build_object('type', t, 'x', x) ORDER BY t DESC)) FROM (VALUES ('email.sent', NULL), ('email.opened', 1)) AS v (t, x)`,
			want: `[{"event_type": "email.sent", "data": {}}, {"event_type": "email.opened", "data": {"x": 1}}]`},
		{name: "many text", sql: `SELECT mailhook.emit_many(E'\n [{"type": "email.sent"}, {"type": "email.opened", "x": 1}]')`, want: two},
		{name: "many array literal", sql: `SELECT mailhook.emit_many(E'{"{\\"type\\": \\"email.sent\\"}","{\\"type\\": \\"email.opened\\", \\"x\\": 1}"}')`, want: two},
		{name: "many text parameter", sql: `SELECT mailhook.emit_many($1)`, args: []any{`[{"type": "email.sent"}, {"type": "email.opened", "x": 1}]`}, want: two},
		{name: "many jsonb[] parameter", sql: `SELECT mailhook.emit_many($1::jsonb[])`,
			args: []any{[]map[string]any{{"type": "email.sent"}, {"type": "email.opened", "x": 1}}}, want: two},
		{name: "many of nothing", sql: `SELECT mailhook.emit_many(NULL)`, want: `[]`},
		{name: "many of an empty array", sql: `SELECT mailhook.emit_many('{}'::jsonb[])`, want: `[]`},
	}
}

// A host's session in New York, and host types: a stand-in for citext, and an enum.
func hostSession(t *testing.T, d *dbtest.DB) *session {
	t.Helper()
	d.Exec(t, `CREATE DOMAIN ci AS text; CREATE TYPE kind AS ENUM ('hard', 'soft')`)
	s := connect(t, d, nil)
	s.exec(t, "SET TimeZone = 'America/New_York'")
	return s
}

func TestEmit(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"strict", "safe"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			host := hostSession(t, d)
			for _, c := range emitCases() {
				if form == "safe" {
					c.sql = safe(c.sql)
				}
				tx := host.begin(t)
				answer := one[any](t, tx, c.sql, c.args...)
				want := c.want
				if strings.HasPrefix(want, "{") {
					want = "[" + want + "]"
				}
				same := one[bool](t, tx, `SELECT (`+outboxRows+`) = (
					SELECT coalesce(jsonb_agg('{"account_id": "default"}'::jsonb || event ORDER BY nth), '[]')
					FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY AS wanted (event, nth))`, want)
				if !same {
					t.Errorf("%s: wrote %.500s", c.name, one[string](t, tx, "SELECT ("+outboxRows+")::text"))
				}
				if strings.Contains(c.sql, "emit_many") {
					if n := one[int64](t, tx, "SELECT count(*) FROM mailhook.outbox"); answer != n {
						t.Errorf("%s: answered %v for %d rows", c.name, answer, n)
					}
				} else {
					checkID(t, tx, c.name, answer)
				}
				rollback(t, tx)
			}
			if len(host.notices) > 0 {
				t.Errorf("%d warnings, the first: %s", len(host.notices), host.notices[0].Message)
			}
		})
	}
}

// checkID wants answer to be the id of the one event in the outbox, in SQL and in Go.
func checkID(t *testing.T, tx pgx.Tx, name string, answer any) {
	t.Helper()
	var id db.EventID
	var inSQL string
	err := tx.QueryRow(t.Context(), `
		SELECT inserted_at, id, mailhook.installation_code(), mailhook.event_id(inserted_at, id) FROM mailhook.outbox`).
		Scan(&id.InsertedAt, &id.ID, &id.Installation, &inSQL)
	if err != nil {
		t.Fatal(err)
	}
	if answer != inSQL || answer != id.String() {
		t.Errorf("%s: answered %v; SQL says %s and Go %s", name, answer, inSQL, id)
	}
}

// The same from a statement that was prepared with PREPARE, and thus without parameter types.
func TestEmitPrepared(t *testing.T) {
	t.Parallel()
	host := connect(t, dbtest.New(t), nil)
	host.exec(t, `
		PREPARE one AS SELECT mailhook.emit($1);
		PREPARE named AS SELECT mailhook.emit($1, recipient => $2, occurred_at => $3, data => $4);
		PREPARE many AS SELECT mailhook.emit_many($1);
		EXECUTE one ('{"type": "email.sent"}');
		EXECUTE one ('email.opened');
		EXECUTE named ('email.clicked', 'r', '2024-01-15', '{"x": 1}');
		EXECUTE many ('[{"type": "email.bounced"}]')`)
	got := one[string](t, host, "SELECT string_agg(event_type || coalesce(data ->> 'x', ''), ' ' ORDER BY id) FROM mailhook.outbox")
	if got != "email.sent email.opened email.clicked1 email.bounced" {
		t.Error(got)
	}
}

// The order of keys within data is the host's where it comes as text or json.
func TestEmitKeepsDataAsWritten(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	data := `{"z":1,  "a":"é", "n":1.50}`
	d.Exec(t, "SELECT mailhook.emit('email.sent', data => $1)", data)
	if got := dbtest.QueryOne[string](t, d, "SELECT data::text FROM mailhook.outbox"); got != data {
		t.Errorf("stored %s", got)
	}
}

// A badEvent is a statement whose event dispatch would quarantine.
type badEvent struct {
	name, sql, code, column, message string
}

func badEvents() []badEvent {
	many := func(second string) string {
		return `SELECT mailhook.emit_many('[{"type": "email.sent"}, ` + second + `, {"type": "email.sent"}]'::jsonb)`
	}
	return []badEvent{
		{"type with capitals", `SELECT mailhook.emit('Email.sent')`, "MH001", "event_type", `'Email.sent'`},
		{"type NULL", `SELECT mailhook.emit(NULL)`, "MH001", "event_type", "NULL"},
		{"type empty", `SELECT mailhook.emit('')`, "MH001", "event_type", "''"},
		{"type ends with a dot", `SELECT mailhook.emit('email.')`, "MH001", "event_type", "'email.'"},
		{"type ends with a newline", `SELECT mailhook.emit(E'email.sent\n')`, "MH001", "event_type", "email.sent"},
		{"type with a hyphen", `SELECT mailhook.emit('email-sent')`, "MH001", "event_type", "'email-sent'"},
		{"type too long", `SELECT mailhook.emit('a.' || repeat('b', 99))`, "MH001", "event_type", "a.bbb"},
		{"type missing", `SELECT mailhook.emit('{"recipient": "r"}')`, "MH001", "event_type", "NULL"},
		{"data array", `SELECT mailhook.emit('email.sent', data => '[1]')`, "MH002", "data", "an array"},
		{"data string", `SELECT mailhook.emit('email.sent', data => '"x"'::json)`, "MH002", "data", "a string"},
		{"data number", `SELECT mailhook.emit('email.sent', data => '5'::jsonb)`, "MH002", "data", "a number"},
		{"data no JSON", `SELECT mailhook.emit('email.sent', data => '{"x": }')`, "MH002", "data", "not JSON"},
		{"data nested beyond reading", `SELECT mailhook.emit('email.sent', data => repeat('[', 200000))`, "MH002", "data", "not JSON"},
		{"data too large", `SELECT mailhook.emit('email.sent', data => '{"x":"' || repeat('a', 262144 - 7) || '"}')`, "MH002", "data", "262145 bytes"},
		{"data with NUL", `SELECT mailhook.emit('email.sent', data => E'{"x": "\\u0000"}')`, "MH002", "data", "read back"},
		{"data json with NUL", `SELECT mailhook.emit('email.sent', data => E'{"x": "\\u0000"}'::json)`, "MH002", "data", "read back"},
		{"data beyond numeric", `SELECT mailhook.emit('email.sent', data => '{"x": 1e999999}')`, "MH002", "data", "read back"},
		{"data array in an object", `SELECT mailhook.emit('{"type": "email.sent", "data": [1]}')`, "MH002", "data", "an array"},
		{"data string in an object", `SELECT mailhook.emit('{"type": "email.sent", "data": "x"}'::jsonb)`, "MH002", "data", "a string"},
		{"data too large in an object", `SELECT mailhook.emit(jsonb_build_object('type', 'email.sent', 'x', repeat('a', 262144)))`, "MH002", "data", "262,144"},
		{"account_id too long", `SELECT mailhook.emit('email.sent', account_id => repeat('a', 1001))`, "MH003", "account_id", "account_id is longer"},
		{"recipient too long", `SELECT mailhook.emit('email.sent', recipient => repeat('é', 501))`, "MH003", "recipient", "recipient is longer"},
		{"dedupe_key too long", `SELECT mailhook.emit(jsonb_build_object('type', 'email.sent', 'dedupe_key', repeat('a', 1001)))`, "MH003", "dedupe_key", "dedupe_key is longer"},
		{"occurred_at no time", `SELECT mailhook.emit('email.sent', occurred_at => 'yesterday at noon')`, "MH004", "occurred_at", "yesterday at noon"},
		{"occurred_at out of range", `SELECT mailhook.emit('email.sent', occurred_at => '2024-02-31')`, "MH004", "occurred_at", "2024-02-31"},
		{"occurred_at infinity", `SELECT mailhook.emit('email.sent', occurred_at => 'infinity')`, "MH004", "occurred_at", "infinity"},
		{"occurred_at timestamp infinity", `SELECT mailhook.emit('email.sent', occurred_at => timestamp '-infinity')`, "MH004", "occurred_at", "infinity"},
		{"occurred_at timestamptz infinity", `SELECT mailhook.emit('email.sent', occurred_at => timestamptz 'infinity')`, "MH004", "occurred_at", "infinity"},
		{"occurred_at in the year 10000", `SELECT mailhook.emit('{"type": "email.sent", "occurred_at": "10000-01-01"}')`, "MH004", "occurred_at", "10000"},
		{"not an object", `SELECT mailhook.emit('[]'::jsonb)`, "MH005", "", "not array"},
		{"not an object, json", `SELECT mailhook.emit('"x"'::json)`, "MH005", "", "not string"},
		{"object NULL", `SELECT mailhook.emit(NULL::jsonb)`, "MH005", "", "not NULL"},
		{"object cut short", `SELECT mailhook.emit('{"type": "email.sent"')`, "MH005", "", "cannot be read"},
		{"object with NUL", `SELECT mailhook.emit(E'{"type": "email.sent", "x": "\\u0000"}')`, "MH005", "", "cannot be read"},
		{"object beyond numeric", `SELECT mailhook.emit('{"type": "email.sent", "x": 1e999999}'::json)`, "MH005", "", "cannot be read"},
		{"dedicated_ip", `SELECT mailhook.emit('email.sent', dedicated_ip => '192.0.2.256')`, "MH006", "dedicated_ip", "192.0.2.256"},
		{"recipient nested", `SELECT mailhook.emit('{"type": "email.sent", "recipient": {"a": 1}}')`, "MH006", "recipient", "recipient is an object"},
		{"message_id an array", `SELECT mailhook.emit('{"type": "email.sent", "message_id": ["a"]}')`, "MH006", "message_id", "message_id is an array"},
		{"many: bad type", many(`{"type": "Email"}`), "MH001", "event_type", "(event 2 of emit_many)"},
		{"many: bad data", many(`{"type": "email.sent", "data": [1]}`), "MH002", "data", "(event 2 of emit_many)"},
		{"many: too long", many(`{"type": "email.sent", "bridge": "` + strings.Repeat("x", 1001) + `"}`), "MH003", "bridge", "(event 2 of emit_many)"},
		{"many: bad time", many(`{"type": "email.sent", "occurred_at": "never"}`), "MH004", "occurred_at", "(event 2 of emit_many)"},
		{"many: infinite time", many(`{"type": "email.sent", "occurred_at": "infinity"}`), "MH004", "occurred_at", "(event 2 of emit_many)"},
		{"many: no object", many(`5`), "MH005", "", "(event 2 of emit_many)"},
		{"many: nested", many(`{"type": "email.sent", "recipient": []}`), "MH006", "recipient", "(event 2 of emit_many)"},
		{"many: bad address", many(`{"type": "email.sent", "dedicated_ip": "x"}`), "MH006", "dedicated_ip", "(event 2 of emit_many)"},
		{"many: NULL element", `SELECT mailhook.emit_many(ARRAY['{"type": "email.sent"}', NULL]::jsonb[])`, "MH005", "", "(event 2 of emit_many)"},
		{"many: one object", `SELECT mailhook.emit_many('{"type": "email.sent"}'::jsonb)`, "MH005", "", "not object"},
		{"many: one object as text", `SELECT mailhook.emit_many('{"type": "email.sent"}')`, "MH005", "", "an array of events"},
		{"many: text with NUL", `SELECT mailhook.emit_many(E'[{"type": "email.sent", "x": "\\u0000"}]')`, "MH005", "", "cannot be read"},
	}
}

func TestEmitRefuses(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, conforming := range []string{"on", "off"} { // the host's old setting must not bend our patterns
		host := connect(t, d, nil)
		host.exec(t, "SET escape_string_warning = off; SET standard_conforming_strings = "+conforming)
		for _, c := range badEvents() {
			_, err := host.Exec(t.Context(), c.sql)
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if pgErr.Code != c.code || pgErr.ColumnName != c.column || pgErr.Hint == "" || !strings.Contains(pgErr.Message, c.message) {
				t.Errorf("%s: code %s, column %q, hint %q, message %q", c.name, pgErr.Code, pgErr.ColumnName, pgErr.Hint, pgErr.Message)
			}
			if len(pgErr.Message) > 400 {
				t.Errorf("%s: a message of %d bytes", c.name, len(pgErr.Message))
			}
		}
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 0 {
		t.Errorf("%d rows were written", n)
	}
}

func TestEmitSafeNeverFails(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, "CREATE TABLE clicks (id int)")
	host := connect(t, d, nil)
	for i, c := range badEvents() {
		host.notices = nil
		tx := host.begin(t)
		if _, err := tx.Exec(t.Context(), "INSERT INTO clicks VALUES ($1)", i); err != nil {
			t.Fatal(err)
		}
		if answer := one[any](t, tx, safe(c.sql)); answer != nil {
			t.Errorf("%s: answered %v", c.name, answer)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Errorf("%s: the host's commit: %v", c.name, err)
		}
		if len(host.notices) != 1 || host.notices[0].Severity != "WARNING" || !strings.Contains(host.notices[0].Message, c.code) || !strings.Contains(host.notices[0].Message, c.message) {
			t.Errorf("%s: notices %+v", c.name, host.notices)
		}
	}
	cases := int64(len(badEvents()))
	if n := one[int64](t, host, "SELECT count(*) FROM clicks"); n != cases {
		t.Errorf("%d of the host's %d rows are there", n, cases)
	}
	if n := one[int64](t, host, "SELECT last_value FROM mailhook.emit_failures"); n != cases {
		t.Errorf("%d failures are counted, not %d", n, cases)
	}
	if n := one[int64](t, host, "SELECT count(*) FROM mailhook.outbox"); n != 0 {
		t.Errorf("%d rows were written", n)
	}
}

// The count stays when the host rolls back, and a transaction that may not write is left alone too.
func TestEmitSafeInEveryTransaction(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, nil)
	host.exec(t, "BEGIN; SELECT mailhook.emit_safe('Bad'); ROLLBACK")
	if got := one[int64](t, host, "SELECT last_value FROM mailhook.emit_failures"); got != 1 {
		t.Errorf("%d failures are counted", got)
	}
	host.exec(t, "BEGIN READ ONLY; SELECT mailhook.emit_safe('email.sent'); SELECT mailhook.emit_many_safe('[]'); COMMIT")
	// Nor does it fail when counting fails.
	locker := connect(t, d, nil).begin(t)
	if _, err := locker.Exec(t.Context(), "ALTER SEQUENCE mailhook.emit_failures CACHE 1"); err != nil {
		t.Fatal(err)
	}
	host.exec(t, "SELECT mailhook.emit_safe('Bad')")
	rollback(t, locker)
	if n := len(host.notices); n != 4 {
		t.Errorf("%d warnings", n)
	}
	if n := one[int64](t, host, "SELECT count(*) FROM mailhook.outbox"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestEmitSafeGivesUpOnALock(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, "CREATE TABLE clicks (id int)")
	locker := connect(t, d, nil).begin(t)
	if _, err := locker.Exec(t.Context(), "LOCK TABLE mailhook.outbox IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	host := connect(t, d, nil)
	for _, call := range []string{`emit_safe('email.sent')`, `emit_safe('{"type": "email.sent"}'::jsonb)`, `emit_many_safe('[{"type": "email.sent"}]')`} {
		started := time.Now()
		if answer := one[any](t, host, "WITH mine AS (INSERT INTO clicks VALUES (1)) SELECT mailhook."+call); answer != nil {
			t.Errorf("%s answered %v", call, answer)
		}
		t.Logf("%s took %v while the lock was held", call, time.Since(started))
	}
	// How long it waits at most is PostgreSQL's to keep.
	if !one[bool](t, host, `SELECT bool_and('lock_timeout=100ms' = ANY (coalesce(proconfig, '{}')))
		FROM pg_proc WHERE pronamespace = 'mailhook'::regnamespace AND proname LIKE 'emit%safe'`) {
		t.Error("a safe function has another lock_timeout")
	}
	for _, n := range host.notices {
		if n.Severity != "WARNING" || !strings.Contains(n.Message, "55P03") {
			t.Errorf("%s: %s", n.Severity, n.Message)
		}
	}
	if got := one[string](t, host, "SHOW lock_timeout"); got != "0" {
		t.Errorf("the host's lock_timeout is now %s", got)
	}
	if n := one[int64](t, host, "SELECT count(*) FROM clicks"); n < 3 {
		t.Errorf("%d of the host's rows", n)
	}
	rollback(t, locker)
}

func TestEmitSafeInTriggers(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, `
		CREATE TABLE clicks (id int PRIMARY KEY, kind text, url text);
		CREATE FUNCTION emit_click() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM mailhook.emit_safe(jsonb_build_object('type', NEW.kind, 'link_url', NEW.url));
			RETURN NULL;
		END $$;
		CREATE TRIGGER emit_click AFTER INSERT ON clicks FOR EACH ROW EXECUTE FUNCTION emit_click();
		CREATE TABLE opens (id int PRIMARY KEY, kind text);
		CREATE FUNCTION emit_opens() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM mailhook.emit_many_safe(ARRAY(SELECT jsonb_build_object('type', kind, 'n', id) FROM inserted ORDER BY id));
			RETURN NULL;
		END $$;
		CREATE TRIGGER emit_opens AFTER INSERT ON opens REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION emit_opens()`)
	d.Exec(t, "INSERT INTO clicks VALUES (1, 'email.clicked', 'a'), (2, 'Not a type', 'b'), (3, 'email.clicked', 'c')")
	d.Exec(t, "INSERT INTO opens SELECT n, 'email.opened' FROM generate_series(1, 3) AS n")
	d.Exec(t, "INSERT INTO opens VALUES (4, 'Not a type'), (5, 'email.opened')")
	got := dbtest.QueryOne[string](t, d, "SELECT string_agg(event_type || coalesce(data ->> 'link_url', data ->> 'n'), ' ' ORDER BY id) FROM mailhook.outbox")
	if got != "email.clickeda email.clickedc email.opened1 email.opened2 email.opened3" {
		t.Errorf("events: %s", got)
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT (SELECT count(*) FROM clicks) + (SELECT count(*) FROM opens)"); n != 8 {
		t.Errorf("%d of the host's 8 rows", n)
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT last_value FROM mailhook.emit_failures"); n != 2 {
		t.Errorf("%d failures are counted", n)
	}
}

func TestEmitOff(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, nil)
	tx := host.begin(t)
	if _, err := tx.Exec(t.Context(), "SET LOCAL mailhook.off = 'on'"); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{
		`emit('email.sent')`, `emit('email.sent', occurred_at => now())`, `emit('{"type": "email.sent"}')`, `emit('{"type": "email.sent"}'::jsonb)`,
		`emit('{"type": "email.sent"}'::json)`, `emit_safe('email.sent')`, `emit_safe('{"type": "email.sent"}'::jsonb)`,
		`nullif(mailhook.emit_many('[{"type": "email.sent"}]'), 0)`, `nullif(mailhook.emit_many_safe('[{"type": "email.sent"}]'), 0)`,
	} {
		if !strings.HasPrefix(call, "nullif") {
			call = "mailhook." + call
		}
		if answer := one[any](t, tx, "SELECT "+call); answer != nil {
			t.Errorf("%s answered %v", call, answer)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	host.exec(t, "SELECT mailhook.emit('email.opened')") // the setting ended with the transaction
	if got := one[string](t, host, "SELECT string_agg(event_type, ' ') FROM mailhook.outbox"); got != "email.opened" {
		t.Errorf("events: %s", got)
	}
	if n := len(host.notices); n != 0 {
		t.Errorf("%d warnings", n)
	}
}

// safe turns calls of emit and emit_many into calls of their twins.
func safe(sql string) string {
	return strings.NewReplacer("mailhook.emit(", "mailhook.emit_safe(", "mailhook.emit_many(", "mailhook.emit_many_safe(").Replace(sql)
}

// A session is one connection, with the notices that came to it.
type session struct {
	*pgx.Conn
	notices []*pgconn.Notice
}

// connect opens a session as user, or as the superuser where that is nil. It is closed at the end of the test.
func connect(t *testing.T, d *dbtest.DB, user *url.Userinfo) *session {
	t.Helper()
	u, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	if user != nil {
		u.User = user
	}
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		t.Fatal(err)
	}
	s := &session{}
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { s.notices = append(s.notices, n) }
	if s.Conn, err = pgx.ConnectConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func (s *session) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.Conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (s *session) begin(t *testing.T) pgx.Tx {
	t.Helper()
	tx, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func rollback(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// one is the one value of a statement's one row, or fails the test.
func one[T any](t *testing.T, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, sql string, args ...any) T {
	t.Helper()
	rows, _ := q.Query(t.Context(), sql, args...)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%.500s: %v", sql, err)
	}
	return value
}

// sqlState is the code of a database error, or what else err says.
func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return fmt.Sprint(err)
}
