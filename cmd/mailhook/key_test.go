package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

// The life of a key: made, used, listed, revoked, refused, and every step in the audit log.
func TestTheLifeOfAKey(t *testing.T) {
	t.Parallel()
	f := newField(t)
	env := f.env()
	create := func(args ...string) (key, id string) {
		t.Helper()
		out, stderr, code := mailhook(t, env, append([]string{"key", "create"}, args...)...)
		words := strings.Fields(out)
		if code != 0 || len(words) < 2 {
			t.Fatal(code, out, stderr)
		}
		return words[len(words)-1], regexp.MustCompile(`key_[0-9a-f]{32}`).FindString(out)
	}
	reader, readerID := create("--account", "acme", "--scope", "read", "--expires", "90d", "--name", "the dashboard \x1b[31m")
	admin, adminID := create()
	brief, _ := create("--expires", "1h")
	f.Exec(t, "UPDATE mailhook.api_keys SET expires_at = now() WHERE expires_at < now() + interval '2 hours'")

	api := command(t, env, "api", "--listen", "127.0.0.1:0")
	address := "http://" + started(t, api) + "/v1/subscriptions"
	request(t, reader, http.MethodGet, address, "", http.StatusOK, nil)
	request(t, reader, http.MethodPost, address, "{}", http.StatusForbidden, nil)
	request(t, admin, http.MethodGet, address, "", http.StatusOK, nil)
	request(t, brief, http.MethodGet, address, "", http.StatusUnauthorized, nil)
	dbtest.Eventually(t, "the uses of two keys are noted", func() bool {
		return dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.api_keys WHERE last_used_at IS NOT NULL") == 2
	})

	for _, says := range []string{"revoked " + adminID, adminID + " was revoked before"} {
		out, stderr, code := mailhook(t, env[1:], "key", "revoke", adminID, "--database-url", f.URL)
		if code != 0 || !strings.Contains(out, says) {
			t.Fatal(code, out, stderr)
		}
	}
	request(t, admin, http.MethodGet, address, "", http.StatusUnauthorized, nil)

	var keys []listedKey
	text, _, _ := mailhook(t, env, "key", "list", "--json")
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		t.Fatal(err, text)
	}
	var states []string
	for _, k := range keys {
		states = append(states, k.Scope+" "+k.State)
	}
	if want := []string{"write expired", "write revoked", "read active"}; !slices.Equal(states, want) || keys[2].ID != readerID || keys[2].LastUsedAt == nil {
		t.Errorf("%q: %s", states, text)
	}
	if days := keys[2].ExpiresAt.Sub(keys[2].CreatedAt).Hours() / 24; days < 89.9 || days > 90.1 {
		t.Errorf("it is good for %v days", days)
	}
	table, _, _ := mailhook(t, env, "key", "list", "--account", "acme")
	if !strings.Contains(table, readerID) || strings.Contains(table, adminID) || strings.Contains(table, "\x1b") {
		t.Errorf("%q", table)
	}
	if strings.Contains(text+table, strings.TrimPrefix(reader, "mhk_")) || strings.Contains(text, "hash") {
		t.Error("the list has a key, or its hash")
	}
}

func TestCommandsAreInTheAuditLog(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL}
	out, _, _ := mailhook(t, env, "key", "create", "--account", "acme", "--name", "n")
	id := regexp.MustCompile(`key_[0-9a-f]{32}`).FindString(out)
	for _, args := range [][]string{{"key", "revoke", id}, {"key", "revoke", id}, {"delivery", "off"}, {"delivery", "on"}} {
		if out, stderr, code := mailhook(t, env, args...); code != 0 {
			t.Fatal(args, out, stderr)
		}
	}
	got := dbtest.QueryOne[[]string](t, d, `
		SELECT array_agg(concat_ws(' ', action, account_id, object_id, before, after) ORDER BY changed_at) FROM mailhook.audit_log
		WHERE actor = 'command' AND actor_key_id IS NULL AND database_user = current_user`)
	want := []string{
		`key.create acme ` + id + ` {"expires_at":null,"name":"n","scope":"write"}`,
		`key.revoke acme ` + id + ` {"name":"n"}`,
		`delivery.off {"delivery_enabled":true} {"delivery_enabled":false}`,
		`delivery.on {"delivery_enabled":false} {"delivery_enabled":true}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
