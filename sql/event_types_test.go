package sql_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db/dbtest"
)

// hierarchy are the types that can occur, by the design.
const hierarchy = `email.queued email.sent email.received email.delivered email.delayed email.bounced email.bounced.hard email.bounced.soft email.rejected
	email.blocked email.failed email.suppressed email.opened email.opened.newsletter email.opened.transactional email.clicked email.clicked.newsletter
	email.clicked.transactional email.complained email.unsubscribed email.subscribed email.replied email.inbound recipient.deleted form.submitted trigger.fired
	workflow.step subscription.failing subscription.recovered subscription.suspended`

// A field is one of fields of a row of event_types.
type field struct{ Name, Type, Description string }

type eventType struct {
	Name, Description string
	Fields            []field
	Sample            map[string]any
}

func eventTypes(t *testing.T, d *dbtest.DB) []eventType {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), "SELECT name, description, fields, sample FROM mailhook.event_types ORDER BY name")
	found, err := pgx.CollectRows(rows, pgx.RowToStructByName[eventType])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Every type of the hierarchy has a description, fields, and a sample with all of them, each of the JSON type that it is said to
// have. What is left out makes a parent of the type: dispatch must not take the sample for that of a leaf.
func TestTheCatalogueIsComplete(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	left := strings.Fields(hierarchy)
	for _, e := range eventTypes(t, d) {
		at := slices.Index(left, e.Name)
		if at < 0 || e.Description == "" || len(e.Fields) == 0 {
			t.Errorf("%+v", e)
			continue
		}
		left = slices.Delete(left, at, at+1)
		for _, f := range e.Fields {
			value, ok := e.Sample[f.Name]
			delete(e.Sample, f.Name)
			classes := map[string]string{"email.bounced": "bounce_type", "email.opened": "message_class", "email.clicked": "message_class"}
			early := (e.Name == "email.queued" || e.Name == "email.suppressed") && f.Name == "provider_message_id" // no server has had it
			if ok != (classes[e.Name] != f.Name && !early) {
				t.Errorf("%s: %s is in the sample: %v", e.Name, f.Name, ok)
			}
			if ok && jsonType(value) != f.Type || f.Description == "" || value == "" {
				t.Errorf("%s: %+v has the value %v", e.Name, f, value)
			}
			if parent, leaf, isLeaf := cutLast(e.Name); isLeaf && classes[parent] == f.Name && value != leaf {
				t.Errorf("%s: %s is %v", e.Name, f.Name, value)
			}
		}
		if len(e.Sample) > 0 {
			t.Errorf("%s: %v are in the sample and in no field", e.Name, e.Sample)
		}
	}
	if len(left) > 0 {
		t.Errorf("not in the catalogue: %v", left)
	}
}

func cutLast(name string) (parent, leaf string, ok bool) {
	at := strings.LastIndexByte(name, '.')
	if at < 0 {
		return "", "", false
	}
	return name[:at], name[at+1:], true
}

func jsonType(value any) string {
	switch value.(type) {
	case string:
		return "string"
	case float64:
		return "number"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return fmt.Sprintf("%T", value)
}

func TestEventWords(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for given, want := range map[string]string{
		"Received (by mail server)": "received by mail server", "form_submit": "form submit", "FORM-Submit": "form submit", " a__ -[b]{c}\t": "a b c",
		"email.delivery_delayed": "email.delivery delayed", "()": "", "İstanbul": "İstanbul",
	} {
		if got := dbtest.QueryOne[string](t, d, "SELECT mailhook.event_word($1)", given); got != want {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
	// A name that is registered means itself, so none may be a word as well; and no word of a format stands alone, which would
	// mean nothing elsewhere.
	if n := dbtest.QueryOne[int](t, d, `SELECT count(*)::int FROM mailhook.event_type_aliases AS a
		WHERE EXISTS (SELECT FROM mailhook.event_types AS t WHERE mailhook.event_word(t.name) = a.normalized OR split_part(t.name, '.', 1) = a.word)
		OR (a.format <> '' AND NOT EXISTS (SELECT FROM mailhook.event_type_aliases AS b WHERE b.normalized = a.normalized AND b.format = ''))`); n != 0 {
		t.Errorf("%d words are names, or mean nothing without their format", n)
	}
}

const invoice = `SELECT mailhook.register_event_type('invoice.paid', 'An invoice was paid.', sample => '{"recipient": "r@example.com", "amount": 12.50}',
	fields => '[{"name": "amount", "type": "number", "description": "in EUR"}, {"type": "string", "name": "recipient"}]', aliases => '{Invoice Paid,invoice-paid,paid}')`

func TestHostsRegisterTheirTypes(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	state := func() string {
		return dbtest.QueryOne[string](t, d, `SELECT string_agg(row, E'\n' ORDER BY row) FROM (
			SELECT concat_ws(' | ', name, description, fields, sample, origin) AS row FROM mailhook.event_types WHERE origin = 'host'
			UNION ALL SELECT concat_ws(' | ', word, format, event_type) FROM mailhook.event_type_aliases WHERE event_type LIKE 'invoice%') AS rows`)
	}
	for range 2 { // the second changes nothing
		host.exec(t, invoice)
		want := `Invoice Paid |  | invoice.paid
invoice.paid | An invoice was paid. | [{"name" : "amount", "type" : "number", "description" : "in EUR"}, {"name" : "recipient", "type" : "string", "description" : ""}] | {"recipient": "r@example.com", "amount": 12.50} | host
paid |  | invoice.paid`
		if got := state(); got != want {
			t.Fatalf("got\n%s\nwant\n%s", got, want)
		}
	}
	// Each type that an argument may have; what is left out is empty.
	for _, arguments := range []string{`sample => jsonb_build_object('a', 1)`, `sample => json_build_object('a', 1)`, `sample => '{"a": 1}'::text`, `sample => NULL`, `aliases => ARRAY['x']`, ``} {
		host.exec(t, strings.TrimSuffix("SELECT mailhook.register_event_type('invoice.paid', 'Paid.', "+arguments, ", ")+")")
	}
	if got, want := state(), "invoice.paid | Paid. | [] | {} | host"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := dbtest.QueryOne[int](t, d, "SELECT count(*)::int FROM mailhook.event_types WHERE origin = 'mailhook'"); got != len(strings.Fields(hierarchy)) {
		t.Errorf("%d types of ours", got)
	}
	for _, want := range []bool{true, false} {
		if got := one[bool](t, host, "SELECT mailhook.unregister_event_type('invoice.paid')"); got != want {
			t.Errorf("unregistered: %v", got)
		}
	}
	for _, role := range []string{"mailhook_worker", "mailhook_api"} {
		if _, err := connect(t, d, login(t, d, role)).Exec(t.Context(), invoice); sqlState(err) != "42501" {
			t.Errorf("%s registers: %v", role, err)
		}
	}
	for _, sql := range []string{
		"SELECT FROM mailhook.event_types", "DELETE FROM mailhook.event_type_aliases", "SELECT mailhook.set_aliases('email.sent', '{}')",
		"SELECT mailhook.check_own_event_type('a')", "SELECT mailhook.event_word('a')",
	} {
		if _, err := host.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("a host may %s: %v", sql, err)
		}
	}
}

// A type of the host's may have a cast to text that is a function of the host's: it runs with the host's rights, not with ours.
func TestRegisteringRunsNothingOfTheHostsAsOurs(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	user := producer(t, d)
	host := connect(t, d, user)
	host.exec(t, `CREATE TYPE pg_temp.sneaky AS (x int);
		CREATE FUNCTION pg_temp.told(pg_temp.sneaky) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$;
		CREATE CAST (pg_temp.sneaky AS text) WITH FUNCTION pg_temp.told(pg_temp.sneaky)`)
	_, err := host.Exec(t.Context(), "SELECT mailhook.register_event_type('a.b', 'd', sample => ROW(1)::pg_temp.sneaky)")
	if err == nil || !strings.Contains(err.Error(), "ran as "+user.Username()) {
		t.Error(err)
	}
	host.exec(t, "DROP TYPE pg_temp.sneaky CASCADE") // or the role could not be dropped
}

// What is wrong is refused with the argument's name, and nothing of it stays.
func TestRegisteringRefuses(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	host.exec(t, invoice)
	count := func() string {
		return dbtest.QueryOne[string](t, d, "SELECT (SELECT count(*) FROM mailhook.event_types) || ' ' || (SELECT count(*) FROM mailhook.event_type_aliases)")
	}
	before := count()
	long := strings.Repeat("x", 101)
	for _, c := range []struct{ arguments, column, says string }{
		{`NULL, 'd'`, "name", "NULL"},
		{`'', 'd'`, "name", "''"},
		{`'Invoice.Paid', 'd'`, "name", "Invoice.Paid"},
		{`'invoice.', 'd'`, "name", "not valid"},
		{`'` + long + `', 'd'`, "name", "not valid"},
		{`'email.delivered', 'd'`, "name", "mailhook"},
		{`'email.bounced', 'd'`, "name", "mailhook"},
		{`'email', 'd'`, "name", "mailhook"},
		{`'subscription', 'd'`, "name", "mailhook"},
		{`'subscription.failing', 'd'`, "name", "mailhook"},
		{`'subscription.mine', 'd'`, "name", "mailhook"},
		{`'open', 'd'`, "name", "email.opened"},
		{`'form_submit', 'd'`, "name", "form.submitted"},
		{`'paid', 'd'`, "name", "invoice.paid"},
		{`'a.b', NULL`, "description", "empty"},
		{`'a.b', ' '`, "description", "empty"},
		{`'a.b', repeat('x', 2001)`, "description", "2,000"},
		{`'a.b', 'd', sample => '{"a": '`, "sample", "not JSON"},
		{`'a.b', 'd', sample => '[]'`, "sample", "not a JSON object"},
		{`'a.b', 'd', sample => '{"a": "\u0000"}'`, "sample", "can be read"},
		{`'a.b', 'd', sample => '{"a": 1e999999}'`, "sample", "can be read"},
		{`'a.b', 'd', sample => '{"a": "` + strings.Repeat("x", 262144) + `"}'`, "sample", "262,144"},
		{`'a.b', 'd', fields => '{}'`, "fields", "not a JSON array"},
		{`'a.b', 'd', fields => '[1]'`, "fields", "has 1 "},
		{`'a.b', 'd', fields => '[{"type": "number"}]'`, "fields", "number"},
		{`'a.b', 'd', fields => '[{"name": "x"}]'`, "fields", `"x"`},
		{`'a.b', 'd', fields => '[{"name": "x", "type": "int"}]'`, "fields", "int"},
		{`'a.b', 'd', fields => '[{"name": 1, "type": "number"}]'`, "fields", "1"},
		{`'a.b', 'd', fields => '[{"name": "x", "type": "number", "nope": "y"}]'`, "fields", "nope"},
		{`'a.b', 'd', fields => '[{"name": "x", "type": "number"}, {"name": "x", "type": "string"}]'`, "fields", "'x' twice"},
		{`'a.b', 'd', aliases => '{NULL}'`, "aliases", "NULL"},
		{`'a.b', 'd', aliases => '{fine,"( )"}'`, "aliases", "'( )'"},
		{`'a.b', 'd', aliases => '{` + long + `}'`, "aliases", long},
		{`'a.b', 'd', aliases => ARRAY[E'a\nb']`, "aliases", "a\nb"},
		{`'a.b', 'd', aliases => '{OPEN}'`, "aliases", "email.opened"},
		{`'a.b', 'd', aliases => '{email.sent}'`, "aliases", "email.sent"},
		{`'a.b', 'd', aliases => '{invoice.paid}'`, "aliases", "invoice.paid"},
		{`'a.b', 'd', aliases => '{invoice_PAID}'`, "aliases", "invoice.paid"},
	} {
		_, err := host.Exec(t.Context(), "SELECT mailhook.register_event_type("+c.arguments+")")
		refusal, ok := err.(*pgconn.PgError) //nolint:errorlint // of pgx, as it is
		if !ok || refusal.Code != "MH007" || refusal.ColumnName != c.column || !strings.HasPrefix(refusal.Message, c.column+" ") ||
			!strings.Contains(refusal.Message, c.says) || refusal.Hint == "" {
			t.Errorf("%.100s: %+v", c.arguments, err)
		}
	}
	for _, name := range []string{"email.sent", "subscription.failing"} {
		if _, err := host.Exec(t.Context(), "SELECT mailhook.unregister_event_type($1)", name); sqlState(err) != "MH007" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := count(); after != before {
		t.Errorf("%s after %s", after, before)
	}
}

// A host's session may read strings in the old way, and have a search path of its own.
func TestRegisteringInAnySession(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	host := connect(t, d, producer(t, d))
	host.exec(t, "SET standard_conforming_strings = off; SET escape_string_warning = off; SET search_path = pg_temp")
	host.exec(t, invoice)
	if _, err := host.Exec(t.Context(), "SELECT mailhook.register_event_type('a.b', 'd', aliases => '{paid}')"); sqlState(err) != "MH007" {
		t.Error(err)
	}
}
