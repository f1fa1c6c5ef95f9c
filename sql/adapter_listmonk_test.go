package sql_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/sql"
	"mailhook/worker"
)

// The columns and foreign keys of listmonk's that matter here.
const listmonkTables = `
	CREATE TYPE subscriber_status AS ENUM ('enabled', 'disabled', 'blocklisted');
	CREATE TYPE subscription_status AS ENUM ('unconfirmed', 'confirmed', 'unsubscribed');
	CREATE TYPE list_optin AS ENUM ('single', 'double');
	CREATE TYPE bounce_type AS ENUM ('soft', 'hard', 'complaint');
	CREATE TABLE subscribers (
		id serial PRIMARY KEY, uuid uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), email text NOT NULL UNIQUE, name text NOT NULL DEFAULT '',
		attribs jsonb NOT NULL DEFAULT '{}', status subscriber_status NOT NULL DEFAULT 'enabled',
		created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE lists (
		id serial PRIMARY KEY, uuid uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), name text NOT NULL, type text NOT NULL DEFAULT 'public',
		optin list_optin NOT NULL DEFAULT 'single', status text NOT NULL DEFAULT 'active', tags text[]);
	CREATE TABLE subscriber_lists (
		subscriber_id integer REFERENCES subscribers ON DELETE CASCADE, list_id integer REFERENCES lists ON DELETE CASCADE,
		meta jsonb NOT NULL DEFAULT '{}', status subscription_status NOT NULL DEFAULT 'unconfirmed',
		created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (subscriber_id, list_id));
	CREATE TABLE campaigns (
		id serial PRIMARY KEY, uuid uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), name text NOT NULL, subject text NOT NULL DEFAULT '',
		from_email text NOT NULL, body text NOT NULL DEFAULT '', tags text[]);
	CREATE TABLE campaign_views (
		id bigserial PRIMARY KEY, campaign_id integer NOT NULL REFERENCES campaigns ON DELETE CASCADE,
		subscriber_id integer REFERENCES subscribers ON DELETE SET NULL, created_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE links (id serial PRIMARY KEY, uuid uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), url text NOT NULL UNIQUE);
	CREATE TABLE link_clicks (
		id bigserial PRIMARY KEY, campaign_id integer REFERENCES campaigns ON DELETE CASCADE, link_id integer NOT NULL REFERENCES links ON DELETE CASCADE,
		subscriber_id integer REFERENCES subscribers ON DELETE SET NULL, created_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE bounces (
		id serial PRIMARY KEY, subscriber_id integer NOT NULL REFERENCES subscribers ON DELETE CASCADE,
		campaign_id integer REFERENCES campaigns ON DELETE SET NULL, type bounce_type NOT NULL DEFAULT 'hard', source text NOT NULL DEFAULT '',
		meta jsonb NOT NULL DEFAULT '{}', created_at timestamptz NOT NULL DEFAULT now());
	CREATE INDEX campaign_views_subscriber_id_idx ON campaign_views (subscriber_id);
	CREATE INDEX link_clicks_subscriber_id_idx ON link_clicks (subscriber_id);
	CREATE INDEX bounces_subscriber_id_idx ON bounces (subscriber_id);

	INSERT INTO campaigns (uuid, name, from_email, body) VALUES
		('00000000-0000-4000-8000-0000000000c1', 'January Newsletter', 'Example News <news@Mail.Example.com>', repeat('<p>', 50000)),
		('00000000-0000-4000-8000-0000000000c2', 'Bare', 'bare@bare.example.com', '');
	INSERT INTO lists (uuid, name, optin) VALUES
		('00000000-0000-4000-8000-0000000000a1', 'Single', 'single'), ('00000000-0000-4000-8000-0000000000a2', 'Double', 'double');
	INSERT INTO links (uuid, url) VALUES ('00000000-0000-4000-8000-0000000000b1', 'https://example.com/?a=1&b=2');
	INSERT INTO subscribers (uuid, email, attribs)
	SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 's' || n || '@example.com', '{"crm_id": 4711, "nothing": null, "tags": ["a"]}'
	FROM generate_series(1, 20) AS n;`

// How listmonk writes. Each is one statement, as there.
const (
	view          = "INSERT INTO campaign_views (campaign_id, subscriber_id) SELECT id, (SELECT id FROM subscribers WHERE uuid = nullif($2, '')::uuid) FROM campaigns WHERE uuid = $1::uuid"
	click         = "WITH target AS (SELECT id, url FROM links WHERE uuid = $1::uuid) INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES ((SELECT id FROM campaigns WHERE uuid = $2::uuid), (SELECT id FROM subscribers WHERE uuid = nullif($3, '')::uuid), (SELECT id FROM target)) RETURNING (SELECT url FROM target)"
	unsubscribe   = "WITH who AS (UPDATE subscribers SET status = CASE WHEN $2 THEN 'blocklisted' ELSE status END WHERE uuid = $1::uuid RETURNING id) UPDATE subscriber_lists SET status = 'unsubscribed', updated_at = now() WHERE subscriber_id = (SELECT id FROM who) AND status <> 'unsubscribed'"
	setList       = "INSERT INTO subscriber_lists (subscriber_id, list_id, status) VALUES ($1, $2, $3::text::subscription_status) ON CONFLICT (subscriber_id, list_id) DO UPDATE SET updated_at = now(), status = EXCLUDED.status"
	confirm       = "UPDATE subscriber_lists SET status = 'confirmed', meta = meta || jsonb_build_object('optin_ip', '192.0.2.7'), updated_at = now() WHERE subscriber_id = $1 AND list_id = $2"
	setStatus     = "UPDATE subscribers SET status = $2::text::subscriber_status, updated_at = now() WHERE id = ANY ($1::integer[])"
	deletePerson  = "DELETE FROM subscribers WHERE id = ANY ($1::integer[])"
	importPerson  = "WITH who AS (INSERT INTO subscribers AS s (uuid, email, name, attribs) VALUES ($1, $2, $3, $4) ON CONFLICT (email) DO UPDATE SET name = $3, attribs = $4, updated_at = now() RETURNING id) INSERT INTO subscriber_lists (subscriber_id, list_id, status) SELECT id, 1, 'unconfirmed' FROM who ON CONFLICT (subscriber_id, list_id) DO UPDATE SET updated_at = now(), status = EXCLUDED.status"
	manyViews     = "INSERT INTO campaign_views (campaign_id, subscriber_id) SELECT 1 + n % 2, 1 + n % 20 FROM generate_series(1, 20000) AS n"
	recordBounces = `
		WITH who AS (SELECT id, status FROM subscribers WHERE email = $1),
		blocked AS (UPDATE subscribers SET status = 'blocklisted' WHERE $6 = 'blocklist' AND id = (SELECT id FROM who) AND status <> 'blocklisted'),
		left_lists AS (UPDATE subscriber_lists SET status = 'unsubscribed' WHERE $6 = 'unsubscribe' AND subscriber_id = (SELECT id FROM who)),
		recorded AS (
			INSERT INTO bounces (subscriber_id, campaign_id, type, source, meta, created_at)
			SELECT id, (SELECT id FROM campaigns WHERE uuid = nullif($2, '')::uuid), $3::text::bounce_type, $4, '{"code": "550 5.1.1"}', $5
			FROM who WHERE status <> 'blocklisted')
		DELETE FROM subscribers WHERE $6 = 'delete' AND id = (SELECT id FROM who)`

	link, campaign, bare = "00000000-0000-4000-8000-0000000000b1", "00000000-0000-4000-8000-0000000000c1", "00000000-0000-4000-8000-0000000000c2"
)

// A listmonk is a database with listmonk's tables and mailhook, and a pool with listmonk's own role, which has no right
// in schema mailhook.
type listmonk struct {
	*dbtest.DB
	host *pgxpool.Pool

	mu       sync.Mutex
	warnings []string
}

func newListmonk(t *testing.T) *listmonk {
	t.Helper()
	l, role := &listmonk{}, "listmonk_"+strings.ToLower(rand.Text()[:12])
	// Registered first, so that it runs last: after the database with the role's tables is gone.
	t.Cleanup(func() { dropRole(t, l.URL, role) })
	l.DB = dbtest.New(t)
	l.Exec(t, "CREATE ROLE "+role)
	l.Exec(t, "GRANT USAGE, CREATE ON SCHEMA public TO "+role)
	config, err := pgxpool.ParseConfig(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["role"] = role
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.warnings = append(l.warnings, n.Message)
	}
	if l.host, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.host.Close)
	l.do(t, listmonkTables)
	return l
}

func dropRole(t *testing.T, url, role string) {
	conn, err := pgx.Connect(context.Background(), dbtest.WithDatabase(url, "postgres"))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(context.Background()) // nothing to do about it
	if _, err := conn.Exec(context.Background(), "DROP ROLE IF EXISTS "+role); err != nil {
		t.Error(err)
	}
}

// do runs a statement as listmonk.
func (l *listmonk) do(t *testing.T, statement string, args ...any) {
	t.Helper()
	if _, err := l.host.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("the host's statement failed: %s: %v", statement, err)
	}
}

// adapter runs the adapter's SQL as an operator does.
func (l *listmonk) adapter(t *testing.T, uninstall bool) {
	t.Helper()
	text, err := sql.Adapter("listmonk", uninstall)
	if err != nil {
		t.Fatal(err)
	}
	l.Exec(t, text)
}

func (l *listmonk) triggers(t *testing.T) int64 {
	t.Helper()
	return dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE t.tgname LIKE 'mailhook%' AND c.relnamespace <> 'mailhook'::regnamespace")
}

// emitted counts the events, dispatched or not.
func (l *listmonk) emitted(t *testing.T) int64 {
	t.Helper()
	return dbtest.QueryOne[int64](t, l.DB, "SELECT (SELECT count(*) FROM mailhook.outbox) + (SELECT count(*) FROM mailhook.events)")
}

func (l *listmonk) failures(t *testing.T) int64 {
	t.Helper()
	return dbtest.QueryOne[int64](t, l.DB, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mailhook.emit_failures")
}

// An inbox is a verifying receiver that a worker delivers all events of a listmonk to.
type inbox struct {
	mu       sync.Mutex
	receipts []receiver.Receipt
	arrived  chan struct{} // closed and replaced at each receipt
}

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func (l *listmonk) deliver(t *testing.T) *inbox {
	t.Helper()
	in := &inbox{arrived: make(chan struct{})}
	server := httptest.NewServer(&receiver.Receiver{
		Secret: func(string) string { return secret },
		Answer: func(_ http.ResponseWriter, r receiver.Receipt) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.receipts = append(in.receipts, r)
			close(in.arrived)
			in.arrived = make(chan struct{})
		},
	})
	t.Cleanup(server.Close)
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7())
	l.Exec(t, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)", id, keyring.First().ID, keyring.First().Seal(db.SealedSecret, id, []byte(secret)))
	l.Exec(t, "INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, max_in_flight) VALUES ($1, 'default', $2, '{*}', 1000)", id, server.URL)

	c := worker.DefaultConfig()
	c.DatabaseURL, c.Keyring, c.Version = l.URL, keyring, "test"
	c.AllowInsecureHTTP, c.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	c.Registry, c.Log = prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	w, err := worker.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return in
}

// after waits until want receipts are in beyond the first n, and answers all of those.
func (in *inbox) after(t *testing.T, n, want int) []message {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		in.mu.Lock()
		receipts, arrived := in.receipts, in.arrived // what is appended later is not seen here
		in.mu.Unlock()
		if len(receipts) >= n+want {
			return messages(t, receipts[n:])
		}
		select {
		case <-arrived:
		case <-deadline:
			t.Fatalf("%d of %d requests came", len(receipts)-n, want)
		}
	}
}

// A message is a request's body.
type message struct {
	Type      string         `json:"type"`
	Timestamp string         `json:"timestamp"`
	Data      map[string]any `json:"data"`
}

func messages(t *testing.T, receipts []receiver.Receipt) []message {
	t.Helper()
	var all []message
	for _, r := range receipts {
		if r.Problem != nil {
			t.Fatal(r.Problem)
		}
		var m message
		if err := json.Unmarshal(r.Body, &m); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// event is a message as it should be; at "" is about now.
func event(eventType, at string, fields ...map[string]any) message {
	data := map[string]any{}
	for _, f := range fields {
		for k, v := range f {
			data[k] = v
		}
	}
	return message{eventType, at, data}
}

func personUUID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func person(n int) map[string]any {
	return map[string]any{
		"recipient": fmt.Sprintf("s%d@example.com", n), "subscriber_id": fmt.Sprint(n), "subscriber_uuid": personUUID(n),
		"meta_data": map[string]any{"crm_id": 4711.0, "nothing": nil, "tags": []any{"a"}},
	}
}

type fields = map[string]any

var (
	inCampaign = fields{"campaign_id": "1", "campaign_uuid": campaign, "broadcast_name": "January Newsletter", "sending_domain": "mail.example.com"}
	inBare     = fields{"campaign_id": "2", "campaign_uuid": bare, "broadcast_name": "Bare", "sending_domain": "bare.example.com"}
	newsletter = fields{"message_class": "newsletter"}
	clicked    = fields{"message_class": "newsletter", "link_url": "https://example.com/?a=1&b=2"}
	bounceMeta = fields{"source": "ses", "bounce_meta": map[string]any{"code": "550 5.1.1"}}
	hard       = fields{"bounce_type": "hard"}
	single     = fields{"list_id": "1", "list_uuid": "00000000-0000-4000-8000-0000000000a1", "list_name": "Single"}
	double     = fields{"list_id": "2", "list_uuid": "00000000-0000-4000-8000-0000000000a2", "list_name": "Double"}
	optinIP    = fields{"ip_address": "192.0.2.7"}
)

func status(s string) fields { return fields{"subscription_status": s} }

// TestListmonkEvents drives the tables as listmonk does, and looks at what arrives.
func TestListmonkEvents(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, false)
	l.adapter(t, false) // again: nothing changes
	in := l.deliver(t)

	const at, arrives = "2024-01-15T11:30:00.123456+01:00", "2024-01-15T10:30:00.123Z"
	suppressed := fields{"reason": "blocklisted"}
	left := status("unsubscribed")
	steps := []struct {
		name      string
		statement string
		args      []any
		want      []message
	}{
		{"view", view, []any{campaign, personUUID(1)}, []message{event("email.opened.newsletter", "", person(1), inCampaign, newsletter)}},
		{"view without individual tracking", view, []any{bare, ""}, []message{event("email.opened.newsletter", "", inBare, newsletter)}},
		{"view of an unknown campaign", view, []any{personUUID(1), personUUID(1)}, nil},
		{"view at its time", "INSERT INTO campaign_views (campaign_id, subscriber_id, created_at) VALUES (1, 1, $1::text::timestamptz)", []any{at}, []message{event("email.opened.newsletter", arrives, person(1), inCampaign, newsletter)}},
		{"several views", "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 1), (2, NULL), (1, 2)", nil, []message{
			event("email.opened.newsletter", "", person(1), inCampaign, newsletter), event("email.opened.newsletter", "", inBare, newsletter), event("email.opened.newsletter", "", person(2), inCampaign, newsletter),
		}},
		{"click", click, []any{link, campaign, personUUID(1)}, []message{event("email.clicked.newsletter", "", person(1), inCampaign, clicked)}},
		{"click without campaign and subscriber", click, []any{link, personUUID(1), ""}, []message{event("email.clicked.newsletter", "", clicked)}},
		{"click at its time", "INSERT INTO link_clicks (campaign_id, subscriber_id, link_id, created_at) VALUES (1, 1, 1, $1::text::timestamptz)", []any{at}, []message{event("email.clicked.newsletter", arrives, person(1), inCampaign, clicked)}},

		{"single opt-in", setList, []any{3, 1, "unconfirmed"}, []message{event("email.subscribed", "", person(3), single, status("unconfirmed"))}},
		{"the same again", setList, []any{3, 1, "unconfirmed"}, nil},
		{"unsubscribe", unsubscribe, []any{personUUID(3), false}, []message{event("email.unsubscribed", "", person(3), single, left)}},
		{"unsubscribe again", unsubscribe, []any{personUUID(3), false}, nil},
		{"resubscribe", setList, []any{3, 1, "unconfirmed"}, []message{event("email.subscribed", "", person(3), single, status("unconfirmed"))}},
		{"unsubscribe for the second time", unsubscribe, []any{personUUID(3), false}, []message{event("email.unsubscribed", "", person(3), single, left)}},
		{"double opt-in, not yet", setList, []any{4, 2, "unconfirmed"}, nil},
		{"double opt-in", confirm, []any{4, 2}, []message{event("email.subscribed", "", person(4), double, status("confirmed"), optinIP)}},
		{"double opt-in again", confirm, []any{4, 2}, nil},
		{"confirmed beforehand", setList, []any{5, 2, "confirmed"}, []message{event("email.subscribed", "", person(5), double, status("confirmed"))}},
		{"no longer confirmed", setList, []any{5, 2, "unconfirmed"}, nil},
		{"inserted as unsubscribed", setList, []any{5, 1, "unsubscribed"}, nil},
		{"no-op update", "UPDATE subscriber_lists SET updated_at = now(), status = status", nil, nil},

		{"blocklist", setStatus, []any{[]int{6, 7}, "blocklisted"}, []message{event("email.suppressed", "", person(6), suppressed), event("email.suppressed", "", person(7), suppressed)}},
		{"blocklist again", setStatus, []any{[]int{6, 7}, "blocklisted"}, nil},
		{"no-op update of subscribers", "UPDATE subscribers SET updated_at = now(), name = 'x'", nil, nil},
		{"enable", setStatus, []any{[]int{6}, "enabled"}, nil},
		{"blocklist for the second time", setStatus, []any{[]int{6}, "blocklisted"}, []message{event("email.suppressed", "", person(6), suppressed)}},
		{"unsubscribe from everything", unsubscribe, []any{personUUID(4), true}, []message{
			event("email.unsubscribed", "", person(4), double, left), event("email.suppressed", "", person(4), suppressed),
		}},
		{"delete", deletePerson, []any{[]int{7, 6}}, []message{event("recipient.deleted", "", person(6)), event("recipient.deleted", "", person(7))}},
		{"delete nobody", deletePerson, []any{[]int{7, 6}}, nil},

		{"soft bounce", recordBounces, []any{"s8@example.com", campaign, "soft", "ses", at, "none"}, []message{event("email.bounced.soft", arrives, person(8), inCampaign, bounceMeta, fields{"bounce_type": "soft"})}},
		{"hard bounce without campaign", recordBounces, []any{"s8@example.com", "", "hard", "ses", at, "none"}, []message{event("email.bounced.hard", arrives, person(8), bounceMeta, hard)}},
		{"complaint", recordBounces, []any{"s8@example.com", campaign, "complaint", "ses", at, "none"}, []message{event("email.complained", arrives, person(8), inCampaign, bounceMeta)}},
		{"bounce of an unknown address", recordBounces, []any{"nobody@example.com", campaign, "hard", "ses", at, "delete"}, nil},
		{"on two lists", "INSERT INTO subscriber_lists (subscriber_id, list_id, status) VALUES (9, 1, 'confirmed'), (9, 2, 'unconfirmed')", nil, []message{event("email.subscribed", "", person(9), single, status("confirmed"))}},
		{"bounce that unsubscribes", recordBounces, []any{"s9@example.com", campaign, "hard", "ses", at, "unsubscribe"}, []message{
			event("email.bounced.hard", arrives, person(9), inCampaign, bounceMeta, hard), event("email.unsubscribed", "", person(9), single, left), event("email.unsubscribed", "", person(9), double, left),
		}},
		{"bounce that blocklists", recordBounces, []any{"s9@example.com", campaign, "hard", "ses", at, "blocklist"}, []message{
			event("email.bounced.hard", arrives, person(9), inCampaign, bounceMeta, hard), event("email.suppressed", "", person(9), suppressed),
		}},
		{"bounce of a blocklisted", recordBounces, []any{"s9@example.com", campaign, "hard", "ses", at, "blocklist"}, nil},
		{"bounce that deletes", recordBounces, []any{"s10@example.com", campaign, "hard", "ses", at, "delete"}, []message{
			event("email.bounced.hard", arrives, person(10), inCampaign, bounceMeta, hard), event("recipient.deleted", "", person(10)),
		}},
		{"complaint that deletes", recordBounces, []any{"s11@example.com", "", "complaint", "ses", at, "delete"}, []message{
			event("email.complained", arrives, person(11), bounceMeta), event("recipient.deleted", "", person(11)),
		}},

		{"large attributes", "UPDATE subscribers SET attribs = jsonb_build_object('x', repeat('x', 300000)) WHERE id = 12", nil, nil},
		{"view by one with large attributes", "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 12), (1, 1)", nil, []message{
			event("email.opened.newsletter", "", inCampaign, newsletter, fields{"recipient": "s12@example.com", "subscriber_id": "12", "subscriber_uuid": personUUID(12)}),
			event("email.opened.newsletter", "", person(1), inCampaign, newsletter),
		}},
	}
	for _, s := range steps {
		before := l.emitted(t)
		l.do(t, s.statement, s.args...)
		if emitted := l.emitted(t) - before; emitted != int64(len(s.want)) {
			t.Fatalf("%s: %d events, want %d", s.name, emitted, len(s.want))
		}
		compare(t, s.name, in.after(t, int(before), len(s.want)), s.want)
	}
	if n := l.failures(t); n != 0 {
		t.Errorf("%d emit failures: %v", n, l.warnings)
	}
	if n := dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM mailhook.quarantine"); n != 0 {
		t.Errorf("%d events in quarantine", n)
	}
	if id := dbtest.QueryOne[string](t, l.DB, "SELECT string_agg(DISTINCT account_id, ',') FROM mailhook.events"); id != "default" {
		t.Errorf("account_id is %s", id)
	}
}

// compare takes the messages in any order.
func compare(t *testing.T, step string, got, want []message) {
	t.Helper()
	for i := range got {
		at, err := time.Parse("2006-01-02T15:04:05.000Z", got[i].Timestamp)
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if time.Since(at).Abs() < time.Minute {
			got[i].Timestamp = ""
		}
	}
	byKey := func(a, b message) int { return strings.Compare(a.key(), b.key()) }
	slices.SortFunc(got, byKey)
	want = slices.SortedFunc(slices.Values(want), byKey)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", step, got, want)
	}
}

func (m message) key() string { return fmt.Sprint(m.Type, m.Timestamp, m.Data) }

// TestListmonkDedupe: a row that a restore brings once more is one event, the same id of a new installation is another.
func TestListmonkDedupe(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, false)
	in := l.deliver(t)
	for _, table := range []struct{ name, insert string }{
		{"campaign_views", "INSERT INTO campaign_views (id, campaign_id, created_at) VALUES (17, 1, $1::text::timestamptz)"},
		{"link_clicks", "INSERT INTO link_clicks (id, link_id, created_at) VALUES (17, 1, $1::text::timestamptz)"},
		{"bounces", "INSERT INTO bounces (id, subscriber_id, created_at) VALUES (17, 1, $1::text::timestamptz)"},
	} {
		for _, at := range []string{"2024-01-15T10:30:00Z", "2024-01-15T10:30:00Z", "2024-01-16T10:30:00Z"} {
			l.do(t, table.insert, at)
			l.do(t, "DELETE FROM "+table.name)
		}
	}
	in.after(t, 0, 6)
	dbtest.Eventually(t, "all dispatched", func() bool {
		return dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM mailhook.outbox") == 0
	})
	rows, _ := l.Pool.Query(t.Context(), "SELECT dedupe_key || CASE WHEN duplicate_of IS NULL THEN '' ELSE ' again' END FROM mailhook.events ORDER BY id") // CollectRows answers it
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, table := range []string{"campaign_views", "link_clicks", "bounces"} {
		first := "listmonk:" + table + ":17:1705314600.000000"
		want = append(want, first, first+" again", "listmonk:"+table+":17:1705401000.000000")
	}
	if !slices.Equal(keys, want) {
		t.Errorf("dedupe keys\n got %q\nwant %q", keys, want)
	}
}

// TestListmonkImport: 5,000 subscribers in one transaction, half of them for the second time.
func TestListmonkImport(t *testing.T) {
	t.Parallel()
	const people = 5000
	l := newListmonk(t)
	imports := func(prefix string, from, to int) {
		started := time.Now()
		tx, err := l.host.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background()) // committed below
		for n := from; n < to; n++ {
			if _, err := tx.Exec(t.Context(), importPerson, uuid.New(), fmt.Sprintf("%s%d@example.com", prefix, n), "", "{}"); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("import of %d subscribers (%s): %v", to-from, prefix, time.Since(started))
	}
	imports("without", 0, people)
	l.adapter(t, false)
	in := l.deliver(t)
	imports("with", 0, people)
	imports("with", people/2, people+people/2)
	got := in.after(t, 0, people+people/2)
	recipients := map[any]bool{}
	for _, m := range got {
		if m.Type != "email.subscribed" || m.Data["list_name"] != "Single" {
			t.Fatalf("got %v", m)
		}
		recipients[m.Data["recipient"]] = true
	}
	if len(recipients) != people+people/2 || l.emitted(t) != people+people/2 {
		t.Errorf("%d recipients in %d events, want %d", len(recipients), l.emitted(t), people+people/2)
	}
}

// TestListmonkNeverBreaks: whatever is wrong with the adapter, the host's statement succeeds, and waits for no lock longer than
// lock_timeout. With a count, except where even counting is blocked; and where only a description is gone, with an event.
func TestListmonkNeverBreaks(t *testing.T) {
	t.Parallel()
	leave := "UPDATE subscriber_lists SET status = 'unsubscribed' WHERE subscriber_id = $1"
	for _, c := range []struct {
		name             string
		harm             string // as superuser, in a transaction that stays open if blocked
		blocked          bool
		statement        string
		events, failures int64
	}{
		{"email renamed", "ALTER TABLE subscribers RENAME COLUMN email TO address", false, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 0, 1},
		{"url dropped", "ALTER TABLE links DROP COLUMN url", false, "INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES (1, $1, 1)", 0, 1},
		{"links dropped", "DROP TABLE links CASCADE", false, "INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES (1, $1, 1)", 0, 1},
		{"bounce type renamed", "ALTER TABLE bounces RENAME COLUMN type TO kind", false, "INSERT INTO bounces (subscriber_id) VALUES ($1)", 0, 1},
		{"subscription status renamed", "ALTER TABLE subscriber_lists RENAME COLUMN status TO state", false, "UPDATE subscriber_lists SET state = 'unsubscribed' WHERE subscriber_id = $1", 0, 1},
		{"subscriber status renamed", "ALTER TABLE subscribers RENAME COLUMN status TO state", false, "UPDATE subscribers SET state = 'blocklisted' WHERE id = $1", 0, 1},
		{"opt-in renamed", "ALTER TABLE lists RENAME COLUMN optin TO opt_in", false, "INSERT INTO subscriber_lists (subscriber_id, list_id, status) VALUES ($1, 2, 'confirmed')", 0, 1},
		{"key renamed", "ALTER TABLE subscribers RENAME COLUMN email TO address", false, "DELETE FROM subscribers WHERE id = $1", 0, 1},
		{"outbox gone", "DROP TABLE mailhook.outbox CASCADE", false, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 0, 1},
		{"outbox locked", "LOCK TABLE mailhook.outbox", true, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 0, 1},
		{"outbox and counter locked", "LOCK TABLE mailhook.outbox; ALTER SEQUENCE mailhook.emit_failures CACHE 1", true, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 0, 0},
		{"a look-up locked", "LOCK TABLE lists", true, leave, 0, 1},
		{"descriptions of a campaign gone", "ALTER TABLE campaigns DROP COLUMN from_email, DROP COLUMN name, DROP COLUMN uuid", false, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 1, 0},
		{"descriptions of a view gone", "ALTER TABLE campaign_views DROP COLUMN id, DROP COLUMN created_at", false, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, $1)", 1, 0},
		{"descriptions of a click gone", "ALTER TABLE link_clicks DROP COLUMN id, DROP COLUMN created_at", false, "INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES (1, $1, 1)", 1, 0},
		{"descriptions of a bounce gone", "ALTER TABLE bounces DROP COLUMN id, DROP COLUMN source, DROP COLUMN meta, DROP COLUMN created_at", false, "INSERT INTO bounces (subscriber_id) VALUES ($1)", 1, 0},
		{"descriptions of a list gone", "ALTER TABLE lists DROP COLUMN uuid, DROP COLUMN name; ALTER TABLE subscriber_lists DROP COLUMN meta", false, leave, 1, 0},
		{"descriptions of a subscriber gone", "ALTER TABLE subscribers DROP COLUMN uuid, DROP COLUMN attribs", false, "DELETE FROM subscribers WHERE id = $1", 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newListmonk(t)
			l.adapter(t, false)
			l.do(t, "SET mailhook.off = 'on'; INSERT INTO subscriber_lists SELECT id, 1 FROM subscribers; RESET mailhook.off")
			tx, err := l.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background()) // a lock is held by it
			if _, err := tx.Exec(t.Context(), c.harm); err != nil {
				t.Fatal(err)
			}
			if !c.blocked {
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			l.thrice(t, c.statement)
			if c.blocked {
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			const runs = 3
			if n := l.failures(t); n != runs*c.failures {
				t.Errorf("%d emit failures, want %d: %q", n, runs*c.failures, l.warnings)
			}
			if c.events == 0 && len(l.warnings) != runs {
				t.Errorf("warnings: %q", l.warnings)
			}
			if c.name != "outbox gone" && l.emitted(t) != runs*c.events {
				t.Errorf("%d events, want %d", l.emitted(t), runs*c.events)
			}
		})
	}
}

// thrice runs a statement as listmonk for three subscribers. How long it waits for a lock at most is PostgreSQL's to keep.
func (l *listmonk) thrice(t *testing.T, statement string) {
	t.Helper()
	for n := 1; n <= 3; n++ {
		started := time.Now()
		l.do(t, statement, n)
		t.Logf("the host's statement took %v", time.Since(started))
	}
	if !dbtest.QueryOne[bool](t, l.DB, `SELECT bool_and('lock_timeout=100ms' = ANY (coalesce(p.proconfig, '{}')))
		FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE t.tgname LIKE 'mailhook_%' AND t.tgrelid::regclass::text NOT LIKE 'mailhook.%'`) {
		t.Error("a trigger's function has another lock_timeout")
	}
}

// TestListmonkPlans: plans are kept for the session, so neither a large statement nor an empty table may leave one behind that
// reads whole tables for a single row.
func TestListmonkPlans(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, false)
	// An autovacuum between the two runs would have the host's own statements planned anew.
	for _, table := range []string{"subscribers", "lists", "subscriber_lists", "campaigns", "campaign_views", "links", "link_clicks", "bounces"} {
		l.Exec(t, "ALTER TABLE public."+table+" SET (autovacuum_enabled = off)")
	}
	conn, err := l.host.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	scans := func(off string, statements ...string) int64 {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background()) // meant
		count := func() (n int64) {
			if err := tx.QueryRow(t.Context(), "SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_xact_user_tables WHERE schemaname = 'public'").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := count() // of earlier transactions that are not yet reported
		for _, s := range append([]string{"SET LOCAL mailhook.off = '" + off + "'"}, statements...) {
			if _, err := tx.Exec(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		return count() - before
	}
	statements := []string{
		manyViews, "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 1)",
		"INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) SELECT 1, 1, 1 FROM generate_series(1, 2000)",
		"INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES (1, 1, 1)",
		"INSERT INTO subscriber_lists SELECT id, 1 FROM subscribers",
		"UPDATE subscriber_lists SET status = 'unsubscribed'",
		"UPDATE subscriber_lists SET status = 'confirmed' WHERE subscriber_id = 1",
		"UPDATE subscribers SET status = 'blocklisted'",
		"INSERT INTO bounces (subscriber_id, campaign_id) SELECT id, 1 FROM subscribers",
		"DELETE FROM subscribers WHERE id = 1",
	}
	scans("on", statements...) // makes the plans of the foreign keys
	without, with := scans("on", statements...), scans("", statements...)
	if with != without {
		t.Errorf("%d sequential scans of listmonk's tables with the adapter, %d without", with, without)
	}
}

func TestListmonkOff(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, false)
	tx, err := l.host.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background()) // committed below
	for _, s := range []string{
		"SET LOCAL mailhook.off = 'on'",
		"INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 1)",
		"INSERT INTO link_clicks (campaign_id, subscriber_id, link_id) VALUES (1, 1, 1)",
		"INSERT INTO bounces (subscriber_id) VALUES (1)",
		"INSERT INTO subscriber_lists (subscriber_id, list_id, status) VALUES (1, 1, 'confirmed')",
		"UPDATE subscriber_lists SET status = 'unsubscribed'",
		"UPDATE subscribers SET status = 'blocklisted'",
		"DELETE FROM subscribers",
	} {
		if _, err := tx.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := l.emitted(t) + l.failures(t); n != 0 {
		t.Errorf("%d events or failures while off", n)
	}
}

func TestListmonkUninstall(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, true) // what is not there
	l.adapter(t, false)
	if n := l.triggers(t); n != 7 {
		t.Errorf("%d triggers, want 7", n)
	}
	if open := dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'mailhook'::regnamespace AND proname LIKE 'listmonk%' AND has_function_privilege('public', oid, 'EXECUTE')"); open != 0 {
		t.Errorf("%d functions may be called by everyone", open)
	}
	if _, err := db.MigrateDown(t.Context(), l.URL, 0); err == nil || !strings.Contains(err.Error(), "--uninstall") {
		t.Errorf("migrate down to zero with the adapter installed: %v", err)
	}
	l.adapter(t, true)
	l.adapter(t, true)
	left := dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'mailhook'::regnamespace AND proname LIKE 'listmonk%'")
	if left += l.triggers(t); left != 0 {
		t.Errorf("%d functions or triggers are left", left)
	}
	l.do(t, view, campaign, personUUID(1))
	if n := l.emitted(t); n != 0 {
		t.Errorf("%d events after the adapter was removed", n)
	}
	if _, err := db.MigrateDown(t.Context(), l.URL, 0); err != nil {
		t.Error(err)
	}
	l.do(t, view, campaign, personUUID(1))
}

func TestListmonkDropSchema(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	l.adapter(t, false)
	l.do(t, view, campaign, personUUID(1))
	l.Exec(t, "DROP SCHEMA mailhook CASCADE")
	if n := dbtest.QueryOne[int64](t, l.DB, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'mailhook%'"); n != 0 {
		t.Errorf("%d triggers are left", n)
	}
	l.do(t, view, campaign, personUUID(1))
	l.do(t, deletePerson, []int{1})
}

// TestListmonkInstall: the adapter refuses what is not listmonk, and takes tables in another schema as its comment says.
func TestListmonkInstall(t *testing.T) {
	t.Parallel()
	text, err := sql.Adapter("listmonk", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, prepare, names string }{
		{"another host", "CREATE TABLE public.subscribers (id integer, email text)", "public.subscribers.status"},
		{"no mailhook", "DROP SCHEMA mailhook CASCADE", "mailhook is not installed"},
	} {
		d := dbtest.New(t)
		d.Exec(t, c.prepare)
		if _, err := d.Pool.Exec(t.Context(), text); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	d := dbtest.New(t)
	d.Exec(t, "CREATE SCHEMA other; SET search_path = other;"+listmonkTables+"RESET search_path")
	d.Exec(t, strings.ReplaceAll(text, "public.", "other."))
	d.Exec(t, "INSERT INTO other.campaign_views (campaign_id, subscriber_id) VALUES (1, 1)")
	if recipient := dbtest.QueryOne[string](t, d, "SELECT recipient FROM mailhook.outbox"); recipient != "s1@example.com" {
		t.Errorf("recipient is %s", recipient)
	}
}

func TestAdapter(t *testing.T) {
	t.Parallel()
	if hosts := sql.Adapters(); !slices.Contains(hosts, "listmonk") || slices.Contains(hosts, "listmonk_uninstall") {
		t.Errorf("hosts: %v", hosts)
	}
	for _, host := range []string{"", "nope", "listmonk_uninstall", "../migrations/00001_create_installation"} {
		if _, err := sql.Adapter(host, false); err == nil || !strings.Contains(err.Error(), "listmonk") {
			t.Errorf("%q: %v", host, err)
		}
	}
}

// TestListmonkCost prints what 20,000 views in one INSERT cost: the fastest of five with and without the adapter.
func TestListmonkCost(t *testing.T) {
	t.Parallel()
	l := newListmonk(t)
	measure := func(runs int, statement string) time.Duration {
		fastest := time.Hour
		for range runs {
			started := time.Now()
			l.do(t, statement)
			fastest = min(fastest, time.Since(started))
		}
		return fastest
	}
	const one = "INSERT INTO campaign_views (campaign_id, subscriber_id) VALUES (1, 1)"
	without, oneWithout := measure(5, manyViews), measure(200, one)
	l.adapter(t, false)
	with, oneWith := measure(5, manyViews), measure(200, one)
	t.Logf("20,000 campaign_views in one INSERT: %v without the adapter, %v with: %v an event; a single one: %v, %v",
		without, with, (with-without)/20_000, oneWithout, oneWith)
	if n := l.emitted(t); n != 5*20_000+200 {
		t.Errorf("%d events", n)
	}
}
