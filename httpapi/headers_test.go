package httpapi

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// sealedAt opens what is stored of a kind for a subscription, with the key that it names; empty: nothing is.
func (b *bundle) sealedAt(t *testing.T, ring *db.Keyring, public, kind string) string {
	t.Helper()
	id, err := db.ParseID(db.SubscriptionPrefix, public)
	if err != nil {
		t.Fatal(err)
	}
	var keyID string
	var sealed []byte
	err = b.Pool.QueryRow(t.Context(), "SELECT key_id, sealed FROM mailhook.subscription_credentials WHERE subscription_id = $1 AND kind = $2", id, kind).Scan(&keyID, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ring.Open(kind, id, keyID, sealed)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

func newRing(t *testing.T, keys ...string) *db.Keyring {
	t.Helper()
	ring, err := db.NewKeyring(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestReservedAndMalformedHeaders(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"Host", "HOST", "Connection", "Upgrade", "TE", "Trailer", "Transfer-Encoding", "Keep-Alive", "Expect", "Cookie", "Proxy-Authorization", "Proxy-Connection", "proxy-x",
		"Content-Type", "Content-Length", "Content-Encoding", "content-anything", "Webhook-Id", "WEBHOOK-signature", "webhook-timestamp", "User-Agent", "X-Signature",
		"x-SIGNATURE", "Accept-Encoding", "HTTP2-Settings", "Idempotency-Key",
	} {
		if found := checkHeaders("h", map[string]string{name: "v"}); len(found) != 1 || found[0].Code != "reserved_header" || found[0].Field != "h."+name {
			t.Errorf("%s: %v", name, found)
		}
	}
	for _, name := range []string{"", " ", "a b", "a:", ":path", ":authority", "a\r\nb", "a\x00", "a\tb", "ä", "(a)", "a,b", "a;b", "a=b", `a"b`, `a\b`, "a/b", "a@b", "a[b]", "a{b}", "a<b>", "a?b", "Ηost"} {
		if found := checkHeaders("h", map[string]string{name: "v"}); len(found) != 1 || found[0].Code != "invalid_header" || found[0].Field != "h" {
			t.Errorf("%q: %v", name, found)
		}
	}
	for _, value := range []string{"a\r\nHost: b", "a\nb", "a\rb", "a\x00b", "a\tb", "\x7f", "a\u0085b", " a", "a ", "\xff"} {
		if found := checkHeaders("h", map[string]string{"X-A": value}); len(found) != 1 || found[0].Code != "invalid_header" || found[0].Field != "h.X-A" {
			t.Errorf("%q: %v", value, found)
		}
	}
	if found := checkHeaders("h", map[string]string{"X-A": "1", "x-a": "2"}); len(found) != 1 || found[0].Code != "duplicate_header" {
		t.Error(found)
	}
	// What must be allowed.
	full := map[string]string{"Authorization": "Digest x", "X-Empty": "", "x_under": "ümlaut", "Accept": "*/*", "X!#$%&'*+.^`|~": "v", "Contented": "v", "Hostname": "v", "Proxied": "v", "Webhooks": "v"}
	for n := len(full); n < maxHeaders; n++ {
		full[fmt.Sprintf("X-%d", n)] = "v"
	}
	bytes := 0
	for name, value := range full {
		bytes += len(name) + len(value)
	}
	full["Accept"] = strings.Repeat("a", maxHeaderBytes-bytes+len(full["Accept"]))
	if found := checkHeaders("h", full); found != nil {
		t.Errorf("%d headers of %d bytes: %v", len(full), maxHeaderBytes, found)
	}
	full["Accept"] += "a"
	if found := checkHeaders("h", full); len(found) != 1 || found[0].Code != "too_long" {
		t.Error(found)
	}
}

func TestAuth(t *testing.T) {
	t.Parallel()
	key := db.NewMasterKey()
	ring := newRing(t, key)
	b := setup(t, func(c *Config) { c.Keyring = ring })
	const url = "https://example.com/hook"
	id := b.create(t, b.acme, object{"channel": object{"url": url, "headers": object{"X-A": "1"}, "auth": object{"type": "basic", "username": "Aladdin", "password": "open sesame"}}})
	path := "/v1/subscriptions/" + id
	stands := func(authType, auth, headers string) {
		t.Helper()
		answer := b.send(t, b.acme, "GET", path, nil)
		channel := answer.body["channel"].(object)
		if fmt.Sprint(channel["auth_type"]) != authType || strings.Contains(answer.text, "Aladdin") || strings.Contains(answer.text, "sesame") {
			t.Error(answer.text)
		}
		if got := b.sealedAt(t, ring, id, db.SealedAuth); got != auth {
			t.Errorf("auth %q, want %q", got, auth)
		}
		if got := b.sealedAt(t, ring, id, db.SealedHeaders); got != headers {
			t.Errorf("headers %q, want %q", got, headers)
		}
	}
	patch := func(channel object) { t.Helper(); b.must(t, 200, b.acme, "PATCH", path, object{"channel": channel}) }
	// RFC 7617, section 2, has this very credential.
	stands("basic", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", `{"X-A":"1"}`)
	patch(object{"url": "https://example.com/2"})
	stands("basic", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", `{"X-A":"1"}`)
	patch(object{"headers": nil})
	stands("basic", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "")
	patch(object{"auth": object{"type": "bearer", "token": "mF_9.B5f-4.1JqM=="}, "headers": object{"X-B": "2"}})
	stands("bearer", "Bearer mF_9.B5f-4.1JqM==", `{"X-B":"2"}`)
	patch(object{"auth": nil})
	stands("<nil>", "", `{"X-B":"2"}`)
	patch(object{"headers": object{"authorization": "Digest x"}})
	b.mustFail(t, 422, "channel.auth", "reserved_header", b.acme, "PATCH", path, object{"channel": object{"auth": object{"type": "bearer", "token": "x"}}})
	stands("<nil>", "", `{"authorization":"Digest x"}`)
	patch(object{"auth": object{"type": "basic", "username": "", "password": ""}, "headers": object{}})
	stands("basic", "Basic Og==", "")
	b.mustFail(t, 422, "channel.headers.AUTHORIZATION", "reserved_header", b.acme, "PATCH", path, object{"channel": object{"headers": object{"AUTHORIZATION": "x"}}})

	for _, c := range []struct {
		auth        any
		field, code string
	}{
		{object{}, "channel.auth.type", "required"},
		{"Basic abc", "channel.auth", "wrong_type"},
		{object{"type": "digest"}, "channel.auth.type", "not_allowed"},
		{object{"type": nil}, "channel.auth.type", "wrong_type"},
		{object{"type": "basic", "username": "u"}, "channel.auth.password", "required"},
		{object{"type": "basic", "password": "p"}, "channel.auth.username", "required"},
		{object{"type": "basic", "username": nil, "password": "p"}, "channel.auth.username", "required"},
		{object{"type": "basic", "username": "a:b", "password": "p"}, "channel.auth.username", "invalid_credentials"},
		{object{"type": "basic", "username": "a\nb", "password": "p"}, "channel.auth.username", "invalid_credentials"},
		{object{"type": "basic", "username": "a", "password": "p\x00"}, "channel.auth.password", "invalid_credentials"},
		{object{"type": "basic", "username": "a", "password": "p", "token": "t"}, "channel.auth.token", "not_allowed"},
		{object{"type": "basic", "username": "a", "password": strings.Repeat("p", 3100)}, "channel.auth", "too_long"},
		{object{"type": "basic", "username": 1, "password": "p"}, "channel.auth.username", "wrong_type"},
		{object{"type": "bearer"}, "channel.auth.token", "required"},
		{object{"type": "bearer", "token": ""}, "channel.auth.token", "invalid_credentials"},
		{object{"type": "bearer", "token": "a b"}, "channel.auth.token", "invalid_credentials"},
		{object{"type": "bearer", "token": "a\r\nX: y"}, "channel.auth.token", "invalid_credentials"},
		{object{"type": "bearer", "token": "ä"}, "channel.auth.token", "invalid_credentials"},
		{object{"type": "bearer", "token": "t", "username": "u"}, "channel.auth.token", "not_allowed"},
		{object{"type": "bearer", "token": "t", "nope": "u"}, "channel.auth.nope", "unknown_field"},
		{object{"type": "bearer", "token": strings.Repeat("t", 4096)}, "channel.auth", "too_long"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "PATCH", path, object{"channel": object{"auth": c.auth}})
		b.mustFail(t, 422, c.field, c.code, b.acme, "POST", "/v1/subscriptions", subscription(object{"channel": object{"url": url, "auth": c.auth}}))
	}
	b.mustFail(t, 422, "channel.auth_type", "unknown_field", b.acme, "PATCH", path, object{"channel": object{"auth_type": "basic"}})
	stands("basic", "Basic Og==", "")
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_credentials"); n != 1 {
		t.Errorf("%d rows of credentials", n)
	}
}

// A role with the rights that the API needs stores, replaces and removes what it cannot read.
func TestCredentialsAreStoredByARoleThatCannotReadThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	role := "api_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	tx, err := b.Pool.Begin(t.Context()) // rolled back, with the role
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for _, sql := range []string{
		"CREATE ROLE " + role,
		"GRANT USAGE ON SCHEMA mailhook TO " + role,
		"GRANT SELECT ON mailhook.installation TO " + role,
		"GRANT UPDATE (singleton) ON mailhook.installation TO " + role, // for SELECT … FOR SHARE; no other value passes its CHECK
		"GRANT EXECUTE ON FUNCTION mailhook.uuid7(timestamptz) TO " + role,
		"GRANT SELECT (subscription_id, kind), INSERT, UPDATE (key_id, sealed), DELETE ON mailhook.subscription_credentials TO " + role,
		"GRANT SELECT (id, subscription_id, created_at, expires_at), INSERT (subscription_id, key_id, sealed), UPDATE (expires_at), DELETE ON mailhook.subscription_secrets TO " + role,
		"SET LOCAL ROLE " + role,
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	q, id := db.New(tx), uuid.New()
	for _, store := range []func() error{
		func() error { _, err := q.HoldMasterKey(t.Context()); return err },
		func() error {
			return q.InsertSecret(t.Context(), db.InsertSecretParams{SubscriptionID: id, KeyID: "k", Sealed: []byte("1")})
		},
		func() error { return q.ExpireSecrets(t.Context(), db.ExpireSecretsParams{SubscriptionID: id, Kept: 1}) },
		func() error {
			return q.PutCredentials(t.Context(), db.PutCredentialsParams{SubscriptionID: id, Kind: "auth", KeyID: "k", Sealed: []byte("1")})
		},
		func() error {
			return q.PutCredentials(t.Context(), db.PutCredentialsParams{SubscriptionID: id, Kind: "auth", KeyID: "k", Sealed: []byte("2")})
		},
		func() error {
			return q.DeleteCredentials(t.Context(), db.DeleteCredentialsParams{SubscriptionID: id, Kind: "auth"})
		},
	} {
		if err := store(); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"subscription_credentials", "subscription_secrets"} {
		nested, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nested.Exec(t.Context(), "SELECT sealed FROM mailhook."+table); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s: %v", table, err)
		}
		if err := nested.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A rotation of the secret that holds the row when a deletion comes leaves nothing behind.
func TestADeletionWipesWhatIsBeingStored(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/v1/subscriptions/", "/v1/accounts/acme"} {
		b := setup(t)
		public := b.create(t, b.acme, nil)
		id, err := db.ParseID(db.SubscriptionPrefix, public)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "/") {
			path += public
		}
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		q := db.New(tx)
		if _, err := q.LockSubscription(t.Context(), db.LockSubscriptionParams{ID: id}); err != nil {
			t.Fatal(err)
		}
		if err := q.InsertSecret(t.Context(), db.InsertSecretParams{SubscriptionID: id, KeyID: "k", Sealed: []byte("late")}); err != nil {
			t.Fatal(err)
		}
		answered := make(chan response, 1)
		go func() { answered <- b.send(t, b.admin, "DELETE", path, nil) }()
		dbtest.Eventually(t, "the deletion waits", func() bool {
			return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
		})
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := <-answered; r.status != 204 {
			t.Errorf("%d %s", r.status, r.text)
		}
		if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets"); n != 0 {
			t.Errorf("%s: %d secrets are left", path, n)
		}
	}
}

// An API process that was not restarted before a rotation stores nothing that it would seal with the old key, and goes
// on with all else.
func TestAnAPIWithoutTheMasterKeyAnswers503(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil)
	b.Exec(t, "UPDATE mailhook.installation SET secret_key_id = '12345678'")
	b.mustFail(t, 503, "", "unavailable", b.acme, "POST", "/v1/subscriptions", subscription(nil))
	b.mustFail(t, 503, "", "unavailable", b.acme, "POST", path+"/rotate-secret", nil)
	b.mustFail(t, 503, "", "unavailable", b.acme, "PATCH", path, object{"name": "x", "channel": object{"headers": object{"X-A": "1"}}})
	if got := b.must(t, 200, b.acme, "GET", path, nil); got["name"] != "" {
		t.Errorf("half of it was stored: %v", got)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"name": "y", "channel": object{"headers": nil}})
	if !strings.Contains(b.logs.String(), "12345678") {
		t.Error("the log does not name the key")
	}
	b.logs.Reset() // an error was to come
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets"); n != 1 {
		t.Errorf("%d secrets", n)
	}
}
