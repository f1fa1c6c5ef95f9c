package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

const canary = "canary.7@erased.example"

// traces are the lines of a text that have something of the canary.
func traces(text string) (found []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(strings.ToLower(line), "canary") {
			found = append(found, line)
		}
	}
	return found
}

// A canary is pushed through a process that has everything in it, to receivers that echo it, fail, and panic, and as rows
// that cannot be dispatched; then it is erased, with half of it by the API. From the first moment on no log and no metric
// has it, and in the end no answer and no dump.
func TestACanaryLeavesNoTrace(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL, "MAILHOOK_SECRET_KEY=" + db.NewMasterKey(), "MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8"}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/fail":
			w.WriteHeader(http.StatusInternalServerError)
		}
		w.Write(append([]byte("you sent: "), body...))
	}))
	t.Cleanup(hook.Close)
	out, _, _ := mailhook(t, env, "key", "create", "--account", "acme")
	words := strings.Fields(out)
	key := words[len(words)-1]
	serve := command(t, env, "serve", "--listen", "127.0.0.1:0", "--log-level", "debug")
	var logs lockedBuffer
	address := "http://" + startedWith(t, serve, &logs)
	post := func(path, body string, want int) (id string) {
		var answer struct{ ID string }
		request(t, key, http.MethodPost, address+path, body, want, &answer)
		return answer.ID
	}
	for _, path := range []string{"/ok", "/fail", "/panic"} {
		post("/v1/subscriptions", fmt.Sprintf(`{"name": "n", "channel": {"type": "web", "url": "%s%s"}, "event_types": ["*"], "retry_schedule": ["24h"]}`, hook.URL, path), http.StatusCreated)
	}
	post("/v1/recipients/erase", `{"recipient": "canary"}`, http.StatusUnprocessableEntity)
	events := emitCanary(t, d)
	dbtest.Eventually(t, "pushed through", func() bool {
		return dbtest.QueryOne[bool](t, d, `SELECT (SELECT count(*) FROM mailhook.attempts) >= 9 AND (SELECT count(*) FROM mailhook.quarantine) = 3 AND (SELECT count(*) FROM mailhook.outbox) = 0
			AND NOT EXISTS (SELECT FROM mailhook.deliveries WHERE lease_id IS NOT NULL)`)
	})
	metrics := func() string {
		return request(t, "", http.MethodGet, address+"/metrics", "", http.StatusOK, nil)
	}
	if found := append(traces(logs.String()), traces(metrics())...); len(found) > 0 {
		t.Errorf("before the erasure, in logs and metrics: %q", found)
	}
	if len(traces(d.Dump(t))) < 10 {
		t.Error("the canary is not in the database: this test shows nothing")
	}
	id := post("/v1/recipients/erase", `{"recipient": "`+strings.ToUpper(canary)+`"}`, http.StatusAccepted)
	answers := ""
	dbtest.Eventually(t, "erased", func() bool {
		answers = request(t, key, http.MethodGet, address+"/v1/erasures/"+id, "", http.StatusOK, nil)
		return strings.Contains(answers, `"state":"done"`)
	})
	for _, event := range events {
		answers += request(t, key, http.MethodGet, address+"/v1/events/"+event, "", http.StatusOK, nil)
	}
	var list struct{ Data []struct{ ID string } }
	answers += request(t, key, http.MethodGet, address+"/v1/deliveries?limit=200", "", http.StatusOK, &list)
	if len(list.Data) != 9 {
		t.Errorf("%d deliveries of 9 are listed", len(list.Data))
	}
	for _, delivery := range list.Data {
		answers += request(t, key, http.MethodGet, address+"/v1/deliveries/"+delivery.ID, "", http.StatusOK, nil)
	}
	for _, path := range []string{"/v1/events", "/v1/quarantine"} {
		answers += request(t, key, http.MethodGet, address+path, "", http.StatusOK, nil)
	}
	for where, text := range map[string]string{"answers": answers, "logs": logs.String(), "metrics": metrics(), "dump": d.Dump(t)} {
		if found := traces(text); len(found) > 0 {
			t.Errorf("in the %s: %q", where, found)
		}
	}
	if !strings.Contains(metrics(), `mailhook_erased_rows_total{table="events"} 3`) {
		t.Error(metrics())
	}
}

// emitCanary writes three events that are delivered and three that are quarantined.
func emitCanary(t *testing.T, d *dbtest.DB) (ids []string) {
	t.Helper()
	for _, data := range []string{`{"note": "from ` + canary + `"}`, `{"link_url": "https://x.example/?e=canary.7%40erased.example"}`, `{}`} {
		ids = append(ids, dbtest.QueryOne[string](t, d, "SELECT mailhook.emit('email.clicked', account_id => 'acme', recipient => $1, message_id => $1, dedupe_key => $1 || $2, data => $2)", canary, data))
	}
	for _, row := range [][]any{{"A type for " + canary, nil, nil}, {"email.sent", canary, nil}, {"email.sent", nil, `{"n": 1e999999, "who": "` + canary + `"}`}} {
		d.Exec(t, "INSERT INTO mailhook.outbox (account_id, event_type, dedicated_ip, data) VALUES ('acme', $1, $2, $3)", row...)
	}
	return ids
}

// startedWith is started, with all that the process writes kept.
func startedWith(t *testing.T, cmd *exec.Cmd, logs *lockedBuffer) (address string) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dbtest.Eventually(t, "it listens", func() bool {
		_, rest, _ := strings.Cut(logs.String(), "address=")
		line, _, ok := strings.Cut(rest, "\n")
		address = strings.Fields(line + " -")[0]
		return ok
	})
	return address
}

// mailhook erase without any worker: a dry run, one that is killed again and again, and the rest.
func TestTheCommandErase(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL}
	d.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, data)
		SELECT now() - n * interval '1 millisecond', n, 'acme', 'email.sent', now(), now(), CASE WHEN n % 3 = 0 THEN $1 ELSE 'other@kept.example' END, json_build_object('pad', repeat('x', 500))
		FROM generate_series(1, 18000) AS n`, canary)
	var counted erasure
	out, stderr, code := mailhook(t, env, "erase", "--recipient", canary, "--dry-run", "--json")
	if err := json.Unmarshal([]byte(out), &counted); err != nil || code != 0 || counted.Matched["events"] != 6000 || counted.State != "done" || !strings.HasPrefix(counted.ID, "ers_") {
		t.Fatalf("%d %v %s%s", code, err, out, stderr)
	}
	if len(traces(stderr)) > 0 || len(traces(out)) > 0 || !strings.Contains(stderr, "at events; so far 0 rows looked at, 0 events would be erased") ||
		!strings.Contains(stderr, "at attempts; so far 18000 rows looked at, 6000 events would be erased") {
		t.Errorf("%s%s", out, stderr)
	}
	out, stderr, code = mailhook(t, env, "erase", "--recipient", canary, "--dry-run", "--account", "nosuch")
	if code != 0 || !strings.Contains(out, `nothing found of account "nosuch"`) || strings.Contains(out, "would be erased") {
		t.Errorf("%d %s%s", code, out, stderr)
	}
	out, stderr, code = mailhook(t, env, "erase", "--recipient", canary, "--dry-run")
	if code != 0 || !strings.Contains(out, "6000 would be erased  events, kept as counts") {
		t.Errorf("%d %s%s", code, out, stderr)
	}
	left := func() int64 {
		return dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.events WHERE recipient = $1", canary)
	}
	kills := 0
	for before := left(); kills < 3 && before > 0; before = left() {
		cmd := command(t, env, "erase", "--recipient", "-")
		cmd.Stdin = strings.NewReader(canary + "\n")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dbtest.Eventually(t, "it erases", func() bool { return left() < before })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		kills++
	}
	if kills == 0 || left() == 0 {
		t.Fatalf("killed %d times, %d left: this test shows nothing", kills, left())
	}
	// Those that were killed end before it, and have found all.
	out, stderr, code = mailhook(t, append(env, "MAILHOOK_ERASE_RECIPIENT="+canary), "erase", "--account", "acme")
	if code != 0 || !strings.Contains(out, `nothing found of account "acme"`) || left() != 0 {
		t.Errorf("%d, %d left\n%s%s", code, left(), out, stderr)
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT sum(event_count)::bigint FROM mailhook.erasures WHERE NOT is_dry_run"); n != 6000 {
		t.Errorf("%d counted of 6,000", n)
	}
	if found := traces(d.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left: %s", len(found), found[0])
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.events WHERE recipient = 'other@kept.example'"); n != 12000 {
		t.Errorf("%d of 12,000 others are left", n)
	}
	for _, args := range [][]string{{"erase"}, {"erase", "--recipient", "canary"}, {"erase", "--recipient", canary, "--account", ""}} {
		if _, stderr, code := mailhook(t, env, args...); code != 2 || len(traces(stderr)) > 0 {
			t.Errorf("%v: %d %s", args, code, stderr)
		}
	}
}

// The command says for what it waits: transactions of the host, or for its turn behind another that does.
func TestEraseSaysForWhatItWaits(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	begin := func() (tx pgx.Tx, pid int64) {
		tx, err := d.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tx.Rollback(context.Background()) })
		if err := tx.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent')"); err != nil {
			t.Fatal(err)
		}
		return tx, pid
	}
	forgotten, _ := begin()
	gid := dbtest.QueryOne[string](t, d, "SELECT current_database()")
	if _, err := forgotten.Exec(t.Context(), "PREPARE TRANSACTION '"+gid+"'"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Pool.Exec(context.Background(), "ROLLBACK PREPARED '"+gid+"'") })
	if err := forgotten.Commit(t.Context()); err != nil { // of nothing: the session has no transaction any more
		t.Fatal(err)
	}
	host, pid := begin()
	const of = " of the host that (was|were) open at the start,( the oldest)? since 20[-0-9]+T[:0-9]+Z "
	var progress [2]lockedBuffer
	says := func(i int, what string) {
		t.Helper()
		dbtest.Eventually(t, what, func() bool { return regexp.MustCompile(what).MatchString(progress[i].String()) })
	}
	var ended [2]*exec.Cmd
	for i := range ended {
		ended[i] = command(t, []string{"MAILHOOK_DATABASE_URL=" + d.URL}, "erase", "--recipient", canary, "--account", "acme")
		ended[i].Stderr = &progress[i]
		if err := ended[i].Start(); err != nil {
			t.Fatal(err)
		}
		says(i, []string{"", "waiting for its turn: the one before it "}[i]+"wait(ing|s) for 2 transactions"+of+`\(prepared as "`+gid+`"\)\n`)
	}
	d.Exec(t, "ROLLBACK PREPARED '"+gid+"'")
	says(0, "waiting for a transaction"+of+`\(pid `+strconv.FormatInt(pid, 10)+`\)\n`)
	if err := host.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, cmd := range ended {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v %s", err, progress[i].String())
		}
	}
}

// Whoever sets nothing forgets by default.
func TestRetentionIsOnByDefault(t *testing.T) {
	t.Parallel()
	for _, c := range newApp().Commands {
		if c.Name != "worker" && c.Name != "serve" {
			continue
		}
		found := 0
		for _, f := range c.Flags {
			name := f.Names()[0]
			if d, ok := f.(interface{ GetDefaultText() string }); ok && strings.HasPrefix(name, "retain-") {
				found++
				longest := 31 * 24 * time.Hour
				if name == "retain-audit" { // it holds no person's data
					longest = 400 * 24 * time.Hour
				}
				if kept, err := db.ParseDuration(d.GetDefaultText()); err != nil || kept <= 0 || kept > longest {
					t.Errorf("--%s is %s", name, d.GetDefaultText())
				}
			}
		}
		if found < 5 {
			t.Errorf("%s has %d flags of retention", c.Name, found)
		}
	}
}
