package httpapi

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// audited are the lines of the audit log, in their order, with "it" for the id given.
func (b *bundle) audited(t *testing.T, it string) []string {
	t.Helper()
	rows, _ := b.Pool.Query(t.Context(), `
		SELECT replace(concat_ws(' ', l.action, l.object_id, l.before, '=>', l.after), $1, 'it')
		FROM mailhook.audit_log AS l JOIN mailhook.api_keys AS k ON k.id = l.actor_key_id AND l.actor = 'key' AND l.account_id = 'acme'
		ORDER BY l.changed_at, l.id`, it)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// Every change is written down: what it was and is, and nothing that nobody should read there.
func TestAuditOfASubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const canary = "canary"
	id := b.create(t, b.acme, object{
		"secret": canary + "-secret-0123456789", "event_types": []string{"email.sent"}, "filters": object{"bridge": []string{"b"}},
		"channel": object{"url": "https://example.com/hook?token=" + canary, "headers": object{"X-Token": canary}},
	})
	one := "/v1/subscriptions/" + id
	b.must(t, 200, b.acme, "PATCH", one, object{"name": "new", "filters": object{"bridge": []string{"c"}}})
	b.must(t, 200, b.acme, "PATCH", one, object{"channel": object{"url": "https://example.com/hook?token=2" + canary}})
	b.must(t, 200, b.acme, "PATCH", one, object{"channel": object{"headers": object{"X-Token": canary + "2"}}})
	b.mustFail(t, 422, "name", "too_long", b.acme, "PATCH", one, object{"name": strings.Repeat("x", 201)})
	b.must(t, 200, b.admin, "POST", one+"/pause", nil)
	b.must(t, 200, b.acme, "POST", one+"/resume", nil)
	b.must(t, 200, b.acme, "POST", one+"/rotate-secret", object{"secret": canary + "-secret-9876543210"})
	b.must(t, 504, b.acme, "POST", one+"/test", nil)
	b.must(t, 200, b.acme, "POST", one+"/deactivate", nil)
	b.must(t, 204, b.acme, "DELETE", one, nil)
	b.must(t, 404, b.acme, "DELETE", one, nil)

	settings := `{"batch":null,"channel":{"auth_type":null,"header_names":["X-Token"],"type":"web","url":"https://example.com/hook"},"event_types":["email.sent"],` +
		`"filters":{"bridge":["b"],"dedicated_ip":[],"sending_domain":[],"sending_node":[]},"format":"standard","max_in_flight":32,"name":"",` +
		`"ordering":"none","rate_limit_per_second":null,"retry_schedule":"standard","status":"active","status_reason":null,"success":"2xx","timeout":"15s"}`
	last := strings.NewReplacer(`"bridge":["b"]`, `"bridge":["c"]`, `"name":""`, `"name":"new"`, `"status":"active","status_reason":null`, `"status":"inactive","status_reason":"user"`).Replace(settings)
	want := []string{
		`subscription.create it => ` + settings,
		`subscription.update it {"filters":{"bridge":["b"]},"name":""} => {"filters":{"bridge":["c"]},"name":"new"}`,
		`subscription.update it {"channel":{"url":"https://example.com/hook"}} => {"channel":{"url":"https://example.com/hook"}}`,
		`subscription.update_credentials it =>`,
		`subscription.pause it {"status":"active","status_reason":null} => {"status":"paused","status_reason":"operator"}`,
		`subscription.resume it {"status":"paused","status_reason":"operator"} => {"status":"active","status_reason":null}`,
		`subscription.rotate_secret it =>`,
		`subscription.test it =>`,
		`subscription.deactivate it {"status":"active","status_reason":null} => {"status":"inactive","status_reason":"user"}`,
		`subscription.delete it ` + last + ` =>`,
	}
	got := b.audited(t, id)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("line %d:\n%q\nnot\n%q", i, got[min(i, len(got)):], want[min(i, len(want)):])
		}
	}
	if text := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(l::text, ' ') FROM mailhook.audit_log AS l"); strings.Contains(text, canary) {
		t.Errorf("the audit log has a secret: %s", text)
	}
	if by := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.audit_log AS l JOIN mailhook.api_keys AS k ON k.id = l.actor_key_id AND k.account_id IS NULL"); by != 1 {
		t.Errorf("%d lines are by the admin; the pause is", by)
	}
}

func TestAuditOfAllElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.settle(t, "acme", b.acme, 3)
	b.Exec(t, "TRUNCATE mailhook.audit_log")
	retried := b.must(t, 201, b.acme, "POST", "/v1/deliveries/"+b.deadLetter(t, e)+"/retry", nil)["id"].(string)
	b.must(t, 200, b.acme, "POST", "/v1/deliveries/"+retried+"/retry", nil)
	b.must(t, 200, b.acme, "POST", "/v1/quarantine/"+e.quarantined+"/release", nil)
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+e.subscription+"/replay", object{"since": "2024-01-01T00:00:00Z", "dry_run": true})
	replay := b.must(t, 202, b.acme, "POST", "/v1/subscriptions/"+e.subscription+"/replay", object{"since": "2024-01-01T00:00:00Z"})["id"].(string)
	for range 2 { // the second changes nothing
		b.must(t, 200, b.acme, "DELETE", "/v1/replays/"+replay, nil)
	}
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": 5, "status": "suspended"})
	b.must(t, 204, b.admin, "DELETE", "/v1/accounts/acme", nil)
	lines := b.audited(t, e.subscription)
	for i, want := range []string{
		`delivery.retry dlv_…`, `delivery.retry ` + retried + ` => {"delivery_id":"` + retried + `"}`, `event.release ` + e.quarantined + ` =>`,
		`replay.create ` + replay + ` => {"done":0,"event_types":null,"matched":`, `replay.cancel ` + replay + ` {"state":"running"} => {"state":"cancelled"}`,
		`account.update acme {"limit":null,"status":"active"} => {"limit":5,"status":"suspended"}`,
		`account.delete acme {"allow_insecure_http":false,"limit":5,"status":"suspended"} =>`,
	} {
		beginning, _, _ := strings.Cut(want, "…")
		if i >= len(lines) || !strings.HasPrefix(lines[i], beginning) {
			t.Fatalf("%q\nhas no line %d %s", lines, i, want)
		}
	}
	if len(lines) != 7 {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

// deadLetter is an exhausted delivery of a pair without an unfinished one.
func (b *bundle) deadLetter(t *testing.T, e estate) string {
	t.Helper()
	delivery := b.delivery(t, b.event(t, e.account, "email.sent", "x@example.com", time.Now()), e.subscription)
	b.end(t, delivery, "exhausted", "http_5xx", 503)
	return delivery
}

// A change and its line are one: without the line there is no change.
func TestNoChangeWithoutItsLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.settle(t, "acme", b.acme, 3)
	dead := b.deadLetter(t, e)
	b.Exec(t, "ALTER TABLE mailhook.audit_log ADD CONSTRAINT no CHECK (false) NOT VALID")
	before := b.stateOfAcme(t)
	var changing []string
	for _, op := range b.operations(t) {
		if op.changesNothing() {
			continue
		}
		key := b.acme
		if op.adminOnly() {
			key = b.admin
		}
		path := e.routes(t, op)[0]
		if op.id == "retry-delivery" {
			path = "/v1/deliveries/" + dead + "/retry"
		}
		if r := b.send(t, key, op.method, path, op.body(t)); r.status != 500 {
			t.Errorf("%s %s without a line in the audit log: %d %s", op.method, path, r.status, r.text)
		}
		changing = append(changing, op.id)
	}
	if len(changing) < 14 || !slices.Contains(changing, "cancel-replay") {
		t.Errorf("only %v", changing)
	}
	if after := b.stateOfAcme(t); after != before {
		t.Errorf("changed from\n%s\nto\n%s", before, after)
	}
	b.logs.Reset() // of the errors
}

func TestOfAURLTheAuditLogHasNoCredentials(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://u:p@example.com:8443/a%2Fb?x=y#z": "https://example.com:8443/a%2Fb", "https://example.com": "https://example.com", "https://%zz@": "",
	} {
		_, is, err := changedFields(nil, object{"channel": object{"url": given}})
		if err != nil || is.(object)["channel"].(object)["url"] != want {
			t.Errorf("%s: %v %v", given, is, err)
		}
	}
}

// The query of docs/operations.md is one that works.
func TestTheDocumentedAuditQuery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	account := "42"
	b.create(t, b.addKey(t, &account), nil)
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(string(text), "```sql\nSELECT l.changed_at")
	query, _, _ = strings.Cut(query, "```")
	rows, err := b.Pool.Query(t.Context(), "SELECT l.changed_at"+query)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil || len(found) != 1 || found[0]["action"] != "subscription.create" {
		t.Errorf("%v %v", found, err)
	}
}

func TestAuditRowsNameTheKeyAfterItsEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(t, b.acme, nil)
	b.must(t, 204, b.admin, "DELETE", "/v1/accounts/acme", nil)
	if n := dbtest.QueryOne[int64](t, b.DB, `SELECT count(*) FROM mailhook.audit_log AS l JOIN mailhook.api_keys AS k ON k.id = l.actor_key_id
		WHERE l.action = 'subscription.create' AND k.revoked_at IS NOT NULL`); n != 1 {
		t.Error("the key that made it is forgotten")
	}
	if _, err := db.New(b.Pool).FindAPIKey(t.Context(), db.HashAPIKey(b.acme)); err != nil {
		t.Error(err)
	}
}
