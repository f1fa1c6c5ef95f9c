package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// An operation is a route as the OpenAPI document describes it.
type operation struct {
	id, method, path string
	query            []string
	needsBody        bool
}

// operations are all that is served under /v1: a new route is in the matrix by itself.
func (b *bundle) operations(t *testing.T) (all []operation) {
	t.Helper()
	for path, methods := range b.must(t, 200, "", "GET", "/openapi.json", nil)["paths"].(object) {
		for method, described := range methods.(object) {
			op := operation{id: described.(object)["operationId"].(string), method: strings.ToUpper(method), path: path}
			parameters, _ := described.(object)["parameters"].([]any)
			for _, p := range parameters {
				if p := p.(object); p["in"] == "query" {
					op.query = append(op.query, p["name"].(string))
				}
			}
			body, _ := described.(object)["requestBody"].(object)
			op.needsBody = body != nil && body["required"] == true
			all = append(all, op)
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.id, b.id) })
	return all
}

// bodies are valid ones of the operations that need one.
func bodies() map[string]any {
	return map[string]any{
		"create-subscription":  subscription(nil),
		"patch-subscription":   object{"name": "x"},
		"create-replay":        object{"since": "2024-01-01T00:00:00Z"},
		"put-account":          object{"limit": 1},
		"explain-subscription": object{"event_type": "email.sent"},
		"preview-subscription": object{"event_types": []string{"email"}},
		"erase-recipient":      object{"recipient": "nobody@example.com"},
	}
}

// An estate is one account with some of everything.
type estate struct {
	account, key                                                         string
	subscription, delivery, dead, event, undispatched, quarantined, repl string
	erasure                                                              string
	// canaries occur in what the account owns, and in nothing else.
	canaries []string
}

// manyRows are more than a list looks at for a page of one: between rows of others they are its horizon.
const manyRows = 10

// settle gives an account so many of everything that is listed, three or more, so that lists have cursors.
func (b *bundle) settle(t *testing.T, account, key string, count int) estate {
	t.Helper()
	mark := "canary-" + account
	e := estate{account: account, key: key}
	for n := range count {
		e.subscription = b.create(t, key, object{
			"name": mark, "secret": mark + "-secret-0123456789", "channel": object{"url": "https://" + mark + ".example.com/", "headers": object{"X-Token": mark + "-header"}},
		})
		e.event = b.event(t, account, "email.delivered", fmt.Sprintf("%s-%d@example.com", mark, n), time.Now())
		e.delivery = b.delivery(t, e.event, e.subscription)
		b.attempt(t, e.delivery)
		for _, as := range []string{"exhausted", "delivered"} {
			e.dead = b.delivery(t, e.event, e.subscription)
			b.attempt(t, e.dead)
			b.end(t, e.dead, as, "http_5xx", 503)
		}
		e.quarantined = b.quarantined(t, account, int64(1000*len(account)+n))
		b.must(t, 202, key, "POST", "/v1/subscriptions/"+e.subscription+"/replay", object{"since": "2024-01-01T00:00:00Z"})
	}
	e.undispatched = dbtest.QueryOne[string](t, b.DB, `INSERT INTO mailhook.outbox (account_id, event_type, recipient) VALUES ($1, 'email.sent', $2 || '@example.com')
		RETURNING mailhook.event_id(inserted_at, id)`, account, mark)
	b.Exec(t, "UPDATE mailhook.quarantine SET recipient = $2 || '@example.com' WHERE account_id = $1", account, mark)
	b.Exec(t, "UPDATE mailhook.attempts SET response_excerpt = convert_to($2, 'UTF8') WHERE account_id = $1", account, mark)
	e.repl = db.FormatID(db.ReplayPrefix, dbtest.QueryOne[[16]byte](t, b.DB, "SELECT id FROM mailhook.replays WHERE account_id = $1 ORDER BY id LIMIT 1", account))
	e.erasure = b.must(t, 202, key, "POST", "/v1/recipients/erase", object{"recipient": "nobody@example.com"})["id"].(string)
	b.Exec(t, "UPDATE mailhook.erasures SET state = 'done', pattern = NULL, ended_at = now()") // while it runs, nothing is released
	rows, _ := b.Pool.Query(t.Context(), `
		SELECT replace(id::text, '-', '') FROM (
			SELECT id FROM mailhook.subscriptions WHERE account_id = $1 UNION SELECT id FROM mailhook.deliveries WHERE account_id = $1
			UNION SELECT id FROM mailhook.attempts WHERE account_id = $1 UNION SELECT delivery_id FROM mailhook.attempts WHERE account_id = $1
			UNION SELECT id FROM mailhook.dead_letters WHERE account_id = $1 UNION SELECT id FROM mailhook.replays WHERE account_id = $1
			UNION SELECT id FROM mailhook.erasures WHERE account_id = $1 UNION SELECT id FROM mailhook.api_keys WHERE account_id = $1) AS of_account
		UNION ALL SELECT mailhook.event_id(inserted_at, id) FROM mailhook.events WHERE account_id = $1
		UNION ALL SELECT mailhook.event_id(inserted_at, id) FROM mailhook.quarantine WHERE account_id = $1
		UNION ALL SELECT (extract(epoch FROM inserted_at) * 1000000)::bigint::text FROM mailhook.events WHERE account_id = $1
		UNION ALL SELECT (extract(epoch FROM quarantined_at) * 1000000)::bigint::text FROM mailhook.quarantine WHERE account_id = $1`, account)
	var err error
	if e.canaries, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(e.canaries) < 30 {
		t.Fatal(err, len(e.canaries))
	}
	e.canaries = append(e.canaries, mark, e.undispatched)
	return e
}

// routes are the paths of an operation about what the estate owns, its query parameters that name a thing included.
func (e estate) routes(t *testing.T, op operation) []string {
	t.Helper()
	path, found := op.path, []string{}
	if strings.Contains(path, "{") {
		things := map[string][]string{
			"/v1/subscriptions/{id}": {e.subscription}, "/v1/deliveries/{id}": {e.delivery, e.dead}, "/v1/events/{id}": {e.event, e.undispatched, e.quarantined},
			"/v1/quarantine/{id}": {e.quarantined}, "/v1/replays/{id}": {e.repl}, "/v1/erasures/{id}": {e.erasure}, "/v1/accounts/{id}": {e.account},
			"/v1/event-types/{name}": {"email.delivered"},
		}
		head, rest, _ := strings.Cut(path, "}")
		for _, id := range things[head+"}"] {
			found = append(found, head[:strings.LastIndexByte(head, '{')]+id+rest)
		}
		if len(found) == 0 || strings.Contains(rest, "{") {
			t.Fatalf("%s %s: the matrix has nothing of an account to put in: give it some", op.method, op.path)
		}
	} else {
		found = []string{path}
	}
	if op.id == "explain-event" {
		for i := range found {
			found[i] += "?subscription_id=" + e.subscription
		}
	}
	return found
}

func (op operation) body(t *testing.T) any {
	t.Helper()
	body, ok := bodies()[op.id]
	if op.needsBody && !ok {
		t.Fatalf("%s %s: the matrix has no body for it: give it one", op.method, op.path)
	}
	return body
}

// changesNothing are the routes that take a body to ask by.
func (op operation) changesNothing() bool {
	return op.method == "GET" || op.id == "preview-subscription" || op.id == "explain-subscription"
}

// adminOnly are the routes that an account key may not take about its own account either.
func (op operation) adminOnly() bool { return op.id == "put-account" || op.id == "delete-account" }

// isShared are the routes about what belongs to no account.
func (op operation) isShared() bool { return op.id == "get-event-type" }

// tellsNothing fails the test if an answer has anything of the estate in it, or its cursor has, as it is or decoded.
func (e estate) tellsNothing(t *testing.T, what string, r response) {
	t.Helper()
	cursor, _ := r.body["next_cursor"].(string)
	decoded, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Errorf("%s: the cursor %q is no base64url: look into it otherwise", what, cursor)
	}
	for _, canary := range e.canaries {
		binary, err := hex.DecodeString(canary[strings.LastIndexByte(canary, '_')+1:])
		if len(binary) > 0 && err == nil && bytes.Contains(decoded, binary) || bytes.Contains(decoded, []byte(canary)) {
			t.Errorf("%s tells %q of %s in its cursor: %q", what, canary, e.account, decoded)
		}
		if strings.Contains(r.text, canary) || strings.Contains(fmt.Sprint(r.header), canary) {
			t.Errorf("%s tells %q of %s: %d %s", what, canary, e.account, r.status, r.text)
		}
	}
}

// refused sends a request that must be refused so, and must tell nothing.
func (b *bundle) refused(t *testing.T, e estate, status int, key, method, path string, body any) {
	t.Helper()
	r := b.send(t, key, method, path, body)
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s %s: got %d, want %d: %s", method, path, r.status, status, r.text)
	}
	e.tellsNothing(t, method+" "+path, r)
}

// stateOfAcme is all that acme owns, to see whether it has changed.
func (b *bundle) stateOfAcme(t *testing.T) string {
	t.Helper()
	return dbtest.QueryOne[string](t, b.DB, `SELECT string_agg(row, E'\n' ORDER BY row) FROM (
		SELECT s::text AS row FROM mailhook.subscriptions AS s WHERE account_id = $1
		UNION ALL SELECT x::text FROM mailhook.subscription_secrets AS x JOIN mailhook.subscriptions AS s ON s.id = x.subscription_id WHERE account_id = $1
		UNION ALL SELECT d::text FROM mailhook.deliveries AS d WHERE account_id = $1 UNION ALL SELECT l::text FROM mailhook.dead_letters AS l WHERE account_id = $1
		UNION ALL SELECT r::text FROM mailhook.replays AS r WHERE account_id = $1 UNION ALL SELECT q::text FROM mailhook.quarantine AS q WHERE account_id = $1
		UNION ALL SELECT x::text FROM mailhook.erasures AS x WHERE account_id = $1
		UNION ALL SELECT a::text FROM mailhook.accounts AS a WHERE id = $1 UNION ALL SELECT o::text FROM mailhook.outbox AS o WHERE account_id = $1
		UNION ALL SELECT id::text || revoked_at FROM mailhook.api_keys WHERE account_id = $1 UNION ALL SELECT l::text FROM mailhook.audit_log AS l WHERE account_id = $1
		UNION ALL SELECT c::text FROM mailhook.subscription_credentials AS c JOIN mailhook.subscriptions AS s ON s.id = c.subscription_id WHERE account_id = $1
		UNION ALL SELECT t::text FROM mailhook.test_deliveries AS t WHERE account_id = $1) AS rows`, "acme")
}

// Every route, with every key that may not take it.
func TestEveryRouteRefusesEveryKeyThatMayNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acme, evil := b.settle(t, "acme", b.acme, 3), b.settle(t, "evil", b.evil, 3)
	b.Exec(t, "INSERT INTO mailhook.accounts (id, subscription_limit) VALUES ('acme', 77)")
	expired, id := b.addKeyWith(t, db.InsertAPIKeyParams{Scope: "write"})
	b.Exec(t, "UPDATE mailhook.api_keys SET expires_at = now() WHERE id = $1", id)
	revoked, id := b.addKeyWith(t, db.InsertAPIKeyParams{AccountID: &acme.account, Scope: "write"})
	b.Exec(t, "UPDATE mailhook.api_keys SET revoked_at = now() WHERE id = $1", id)
	reader, _ := b.addKeyWith(t, db.InsertAPIKeyParams{AccountID: &acme.account, Scope: "read"})
	adminReader, _ := b.addKeyWith(t, db.InsertAPIKeyParams{Scope: "read"})
	unknown, _ := db.NewAPIKey()
	before := b.stateOfAcme(t)

	all := b.operations(t)
	if len(all) < 25 {
		t.Fatalf("only %d operations", len(all))
	}
	for _, op := range all {
		body := op.body(t)
		for _, path := range acme.routes(t, op) {
			for _, key := range []string{"", "x", "mhk_", unknown, b.acme + "x", strings.ToUpper(b.acme), expired, revoked} {
				b.refused(t, acme, 401, key, op.method, path, body)
			}
			for _, key := range []string{reader, adminReader} {
				if op.method != http.MethodGet {
					b.refused(t, acme, 403, key, op.method, path, body)
				} else if r := b.send(t, key, op.method, path, nil); r.status != 200 {
					t.Errorf("%s %s with a read-only key: %d %s", op.method, path, r.status, r.text)
				}
			}
			if strings.Contains(op.path, "{") && !op.isShared() {
				b.refused(t, acme, 404, b.evil, op.method, path, body)
			}
			if op.adminOnly() {
				b.refused(t, evil, 403, b.acme, op.method, path, body)
			}
		}
	}
	if r := b.send(t, "", "GET", "/v1/events", nil); r.header.Get("WWW-Authenticate") != "Bearer" {
		t.Error(r.header)
	}
	if after := b.stateOfAcme(t); after != before {
		t.Errorf("what acme owns has changed from\n%s\nto\n%s", before, after)
	}
}

// Every query parameter and every account_id in a body that could name another account's thing.
func TestNoParameterReachesAnotherAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acme, evil := b.settle(t, "acme", b.acme, manyRows), b.settle(t, "evil", b.evil, 3)
	before := b.stateOfAcme(t)
	for _, op := range b.operations(t) {
		own := strings.Split(evil.routes(t, op)[0], "?")[0]
		for _, name := range op.query {
			switch name {
			case "account_id":
				b.refused(t, acme, 404, b.evil, op.method, own+"?account_id=acme", nil)
			case "subscription_id":
				b.refused(t, acme, 404, b.evil, op.method, own+"?subscription_id="+acme.subscription, nil)
			case "cursor":
				b.foreignCursors(t, op, acme, evil)
			case "recipient":
				r := b.send(t, b.evil, op.method, own+"?recipient=canary-acme-1@example.com", nil)
				if r.status != 200 || len(r.body["data"].([]any)) != 0 {
					t.Errorf("%s by acme's recipient: %d %s", own, r.status, r.text)
				}
			case "limit", "status", "event_type", "since", "until":
				for _, value := range map[string][]string{
					"limit": {"200"}, "status": {"pending", "sending", "held", "delivered", "exhausted", "cancelled"}, "event_type": {"email", "email.delivered"},
					"since": {"2024-01-01T00:00:00Z"}, "until": {"2100-01-01T00:00:00Z"},
				}[name] {
					r := b.send(t, b.evil, op.method, own+"?"+name+"="+value, nil)
					if r.status != 200 {
						t.Errorf("%s?%s=%s: %d %s", own, name, value, r.status, r.text)
					}
					acme.tellsNothing(t, own+"?"+name+"="+value, r)
				}
			default:
				t.Errorf("%s %s: the matrix does not know what %s may name", op.method, op.path, name)
			}
		}
	}
	b.refused(t, acme, 404, b.evil, "POST", "/v1/subscriptions", subscription(object{"account_id": "acme"}))
	// The other way round: acme's event against evil's own subscription.
	b.refused(t, acme, 404, b.evil, "GET", "/v1/events/"+acme.event+"/explain?subscription_id="+evil.subscription, nil)
	if after := b.stateOfAcme(t); after != before {
		t.Errorf("what acme owns has changed from\n%s\nto\n%s", before, after)
	}
}

// foreignCursors walks a list of each account, and sends evil's requests with the cursors of acme and of an admin.
func (b *bundle) foreignCursors(t *testing.T, op operation, acme, evil estate) {
	t.Helper()
	if !slices.Contains(op.query, "account_id") { // the same for all
		return
	}
	first := b.send(t, b.acme, "GET", op.path+"?limit=1", nil)
	shown := slices.ContainsFunc(acme.canaries, func(c string) bool { return strings.Contains(first.text, c) })
	if !shown {
		t.Errorf("%s shows acme nothing of its own, so it proves nothing: %s", op.path, first.text)
	}
	for _, page := range []response{first, b.send(t, b.admin, "GET", op.path+"?limit=1", nil), b.send(t, b.admin, "GET", op.path+"?limit=1&account_id=acme", nil)} {
		cursor, _ := page.body["next_cursor"].(string)
		if cursor == "" {
			t.Fatalf("%s has no second page: %s", op.path, page.text)
		}
		b.refused(t, acme, 422, b.evil, "GET", op.path+"?limit=1&cursor="+cursor, nil)
	}
	acme.tellsNothing(t, op.path, b.send(t, b.evil, "GET", op.path+"?limit=200", nil))
	// With acme's rows as the horizons, which are positions of evil's cursors.
	for path := op.path + "?limit=1"; path != ""; {
		page := b.send(t, b.evil, "GET", path, nil)
		acme.tellsNothing(t, path, page)
		path = ""
		if next, _ := page.body["next_cursor"].(string); next != "" {
			path = op.path + "?limit=1&cursor=" + next
		}
	}
	if n := len(b.walk(t, b.evil, op.path, "1")); n < 3 {
		t.Errorf("%s shows evil %d of its own", op.path, n)
	}
	evil.tellsNothing(t, op.path, b.send(t, b.admin, "GET", op.path+"?account_id=acme&limit=200", nil))
}
