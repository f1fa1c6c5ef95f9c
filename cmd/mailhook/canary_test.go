package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/localpg"
)

// The canaries: each is a secret of one kind, and is looked for in everything that comes out.
const (
	canarySecret   = "canary-signing-secret-0123"
	canarySecret2  = "canary-second-secret-4567"
	canaryHeader   = "canary-header-value"
	canaryPassword = "canary-basic-password"
	canaryToken    = "canary-bearer-token"
	canaryDatabase = "canary-database-password"
	canaryURL      = "canary-url-token"
)

// A haunt is an installation whose secrets are canaries, on a server of its own whose log and statistics are read, too.
type haunt struct {
	server    *localpg.Server
	serverLog lockedBuffer
	url       string // with the password of the database
	conn      *pgx.Conn
	keys      []string // master keys, newest first
	inUse     string   // those of the processes
	apiKey    string
	api       string
	receivers map[string]string // what becomes of a subscription → its URL
	output    lockedBuffer      // of all processes: standard output and error
	answers   lockedBuffer      // of the API, but for those to create and rotate, and subscriptions with their URL
	ids       map[string]string
	echo      string   // the services behind channels
	chats     []string // ids of subscriptions of channels
}

func TestCanariesStayInside(t *testing.T) {
	t.Parallel()
	h := newHaunt(t)
	h.install(t)
	serve := h.serve(t)
	h.subscribe(t)
	h.deliver(t)
	h.chat(t)
	h.misuse(t)
	h.readAll(t)
	h.rotate(t, serve)
	h.chatAgain(t)
	h.breakURLs(t)

	places := map[string]string{
		"output of processes": h.output.String(), "answers of the API": h.answers.String(), "server log": h.serverLog.String(),
		"pg_stat_statements": h.statements(t), "pg_dump": h.dump(t),
	}
	for name, min := range map[string]int{"output of processes": 5000, "answers of the API": 20_000, "server log": 50_000, "pg_dump": 10_000} {
		if len(places[name]) < min {
			t.Errorf("%s: only %d bytes", name, len(places[name]))
		}
	}
	secrets := append([]string{canarySecret, canarySecret2, canaryHeader, canaryPassword, canaryToken, canaryDatabase, canaryUserKey, canaryAPIToken, canaryHook, h.apiKey}, h.keys...)
	for place, text := range places {
		for _, secret := range secrets {
			for form, written := range map[string]string{"as it is": secret, "in hexadecimal": hex.EncodeToString([]byte(secret)), "in base64": middleOfBase64(secret)} {
				if i := strings.Index(text, written); i >= 0 {
					t.Errorf("%s has %s %s: …%s…", place, secret, form, text[max(0, i-200):min(len(text), i+100)])
				}
			}
		}
		// A URL may hold a secret, too. It is a setting that its owner can read: the column and the parameter that writes it have it,
		// and nothing else has.
		if place != "pg_dump" && place != "server log" && strings.Contains(text, canaryURL) {
			t.Errorf("%s has the URL", place)
		}
	}
	for line := range strings.Lines(places["pg_dump"]) {
		columns := strings.Split(line, "\t") // url is the seventh of subscriptions
		if strings.Contains(line, canaryURL) && (len(columns) < 20 || strings.Contains(strings.Join(slices.Delete(columns, 6, 7), " "), canaryURL)) {
			t.Errorf("the URL is in %.200s", line)
		}
	}
}

// middleOfBase64 is what the base64 of any text that has the secret at an offset of three has in common.
func middleOfBase64(secret string) string {
	return base64.StdEncoding.EncodeToString([]byte(secret[:len(secret)/3*3]))
}

func newHaunt(t *testing.T) *haunt {
	t.Helper()
	h := &haunt{keys: []string{db.NewMasterKey(), db.NewMasterKey()}, ids: map[string]string{}}
	h.inUse = h.keys[1]
	var err error
	h.server, err = localpg.Start(t.Context(), localpg.Options{Log: &h.serverLog, Settings: map[string]string{
		"fsync": "off", "log_statement": "all", "log_min_duration_statement": "0", "log_parameter_max_length": "-1", "log_parameter_max_length_on_error": "-1", "log_connections": "on",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.server.Stop() })
	h.connect(t)
	if h.has(t, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements')") {
		h.exec(t, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
		h.conn.Close(t.Context())
		if err := h.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.connect(t)
		h.exec(t, "CREATE EXTENSION pg_stat_statements")
	}
	h.exec(t, "CREATE ROLE haunted LOGIN SUPERUSER") // the server trusts everybody: the password is only on our side
	h.url = strings.Replace(h.server.URL("postgres"), "postgres@", "haunted:"+canaryDatabase+"@", 1)

	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, password, _ := r.BasicAuth()
		fmt.Fprintf(w, "%v %s", r.Header, password)
	}))
	t.Cleanup(echo.Close)
	h.echo = newEcho(t).URL
	h.receivers = map[string]string{
		"ok": echo.URL + "/works", "http_5xx": echo.URL + "/fails", "dns": "http://no-such-host.invalid/", "refused": "http://127.0.0.1:1/",
		"tls": strings.Replace(echo.URL, "http:", "https:", 1) + "/", "blocked_address": "http://[::1]:1/",
	}
	return h
}

func (h *haunt) connect(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	h.conn = conn
	t.Cleanup(func() { conn.Close(context.Background()) })
}

func (h *haunt) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := h.conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(sql, err)
	}
}

func (h *haunt) has(t *testing.T, sql string, args ...any) (yes bool) {
	t.Helper()
	if err := h.conn.QueryRow(t.Context(), sql, args...).Scan(&yes); err != nil {
		t.Fatal(sql, err)
	}
	return yes
}

func (h *haunt) env() []string {
	return []string{"MAILHOOK_DATABASE_URL=" + h.url, "MAILHOOK_SECRET_KEY=" + h.inUse, "MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8", "MAILHOOK_LOG_LEVEL=debug", "MAILHOOK_PUSHOVER_URL=" + h.echo + "/pushover"}
}

// run keeps what a command writes.
func (h *haunt) run(t *testing.T, env []string, args ...string) (stdout string, code int) {
	t.Helper()
	stdout, stderr, code := mailhook(t, env, args...)
	fmt.Fprintf(&h.output, "%s%s", stdout, stderr)
	return stdout, code
}

func (h *haunt) install(t *testing.T) {
	t.Helper()
	h.run(t, h.env(), "migrate", "up")
	out, _, code := mailhook(t, h.env(), "key", "create") // the one place that shows it
	words := strings.Fields(out)
	if code != 0 || len(words) == 0 {
		t.Fatal(out)
	}
	h.apiKey = words[len(words)-1]
}

func (h *haunt) serve(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := command(t, h.env(), "serve", "--listen", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = &h.output, &h.output
	before := len(h.output.String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dbtest.Eventually(t, "it listens", func() bool {
		_, after, ok := strings.Cut(h.output.String()[before:], "address=")
		h.api, _, _ = strings.Cut(after, "\n")
		return ok && strings.Contains(after, "\n")
	})
	return cmd
}

// ask sends a request. What it answers is kept for the search, without the values of url that are allowed there.
func (h *haunt) ask(t *testing.T, method, path string, body any, mayTell ...string) (answer map[string]any, status int) {
	t.Helper()
	text, isText := body.(string)
	if !isText && body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		text = string(encoded)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+h.api+path, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+h.apiKey)
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(content, &answer) // not all is JSON
	kept := string(content)
	for _, allowed := range mayTell {
		kept = strings.ReplaceAll(kept, allowed, "-")
	}
	fmt.Fprintf(&h.answers, "%s %s %v %s\n", method, path, response.Header, kept)
	return answer, response.StatusCode
}

func (h *haunt) must(t *testing.T, status int, method, path string, body any, mayTell ...string) map[string]any {
	t.Helper()
	answer, got := h.ask(t, method, path, body, mayTell...)
	if got != status {
		t.Fatalf("%s %s: %d %v", method, path, got, answer)
	}
	return answer
}

type anyMap = map[string]any

func (h *haunt) subscribe(t *testing.T) {
	t.Helper()
	for i, outcome := range h.outcomes() {
		auth := anyMap{"type": "basic", "username": "haunt", "password": canaryPassword}
		if i%2 == 0 {
			auth = anyMap{"type": "bearer", "token": canaryToken}
		}
		url := h.receivers[outcome] + "?token=" + canaryURL
		given := url
		if outcome == "blocked_address" { // the API refuses it: it comes by another way
			given = "http://127.0.0.1/?token=" + canaryURL
		}
		created := h.must(t, http.StatusCreated, "POST", "/v1/subscriptions", anyMap{
			"account_id": "acme", "event_types": []string{"email"}, "secret": canarySecret, "retry_schedule": []string{"1s"},
			"channel": anyMap{"url": given, "headers": anyMap{"X-Canary": canaryHeader}, "auth": auth},
		}, canarySecret, canaryURL)
		h.ids[outcome] = created["id"].(string)
		id, err := db.ParseID(db.SubscriptionPrefix, h.ids[outcome])
		if err != nil {
			t.Fatal(err)
		}
		h.exec(t, "UPDATE mailhook.subscriptions SET url = $2 WHERE id = $1", id, url)
	}
}

func (h *haunt) outcomes() []string {
	var names []string
	for name := range h.receivers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// deliver waits until each subscription has failed for good, or delivered, in its own way; test sends do the same.
func (h *haunt) deliver(t *testing.T) {
	t.Helper()
	h.run(t, h.env(), "emit", "email.sent", "--account", "acme")
	dbtest.Eventually(t, "every delivery ends", func() bool {
		return h.has(t, "SELECT count(*) FILTER (WHERE ended_as IS NOT NULL) = $1 FROM mailhook.attempts", len(h.ids))
	})
	for _, outcome := range h.outcomes() {
		id, _ := db.ParseID(db.SubscriptionPrefix, h.ids[outcome])
		if !h.has(t, "SELECT bool_and(outcome = $2) FROM mailhook.attempts WHERE subscription_id = $1", id, outcome) {
			t.Errorf("attempts of %s ended otherwise", outcome)
		}
		answer := h.must(t, http.StatusOK, "POST", "/v1/subscriptions/"+h.ids[outcome]+"/test", "{}", canaryURL)
		if answer["outcome"] != outcome {
			t.Errorf("test send: %v, want %s", answer, outcome)
		}
	}
	if !h.has(t, "SELECT bool_or(response_excerpt LIKE '%X-Canary%') FROM mailhook.attempts") {
		t.Error("the receiver did not echo the headers: the test shows less than it means to")
	}
}

func (h *haunt) readAll(t *testing.T) {
	t.Helper()
	h.must(t, http.StatusOK, "GET", "/v1/subscriptions", nil, canaryURL)
	paths := []string{"/v1/deliveries", "/v1/events", "/v1/quarantine", "/v1/event-types", "/v1/accounts/acme", "/openapi.json", "/metrics", "/healthz", "/readyz", "/v1/no-such-path"}
	for _, list := range []string{"deliveries", "events"} {
		for _, row := range h.must(t, http.StatusOK, "GET", "/v1/"+list, nil)["data"].([]any) {
			paths = append(paths, "/v1/"+list+"/"+row.(anyMap)["id"].(string))
			if list == "events" {
				for _, id := range h.ids {
					paths = append(paths, "/v1/events/"+row.(anyMap)["id"].(string)+"/explain?subscription_id="+id)
				}
			}
		}
	}
	for _, path := range paths {
		if _, status := h.ask(t, "GET", path, nil); status != http.StatusOK && path != "/v1/no-such-path" {
			t.Errorf("%s: %d", path, status)
		}
	}
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"worker", "--help"}, {"serve", "--help"}, {"api", "--help"}, {"keys", "rotate", "--help"}} {
		h.run(t, h.env(), args...)
	}
}

// rotate ends the process with SIGQUIT, at which Go writes the stacks of all goroutines as in a panic, and goes on with a
// new master key.
func (h *haunt) rotate(t *testing.T, serve *exec.Cmd) {
	t.Helper()
	h.exec(t, "SELECT mailhook.emit('email.sent', account_id => 'acme') FROM generate_series(1, 50)")
	if err := serve.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	serve.Wait()
	if !strings.Contains(h.output.String(), "SIGQUIT") || !strings.Contains(h.output.String(), "\ngoroutine 1 ") {
		t.Error("no stacks were written")
	}
	h.exec(t, "DELETE FROM mailhook.workers") // the dead one, which others would find dead after 15 s
	if _, code := h.run(t, append(h.env(), "MAILHOOK_SECRET_KEY="+strings.Join(h.keys, ",")), "keys", "rotate"); code != 0 {
		t.Errorf("rotation: exit %d", code)
	}
	if _, code := h.run(t, h.env(), "worker"); code != 1 {
		t.Errorf("a worker with the old key alone: exit %d", code)
	}
	h.inUse = h.keys[0]
	h.serve(t)
	if answer := h.must(t, http.StatusOK, "POST", "/v1/subscriptions/"+h.ids["ok"]+"/test", "{}", canaryURL); answer["outcome"] != "ok" {
		t.Error(answer)
	}
}
