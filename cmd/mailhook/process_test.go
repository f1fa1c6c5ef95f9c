package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// A subscriber is a subscription as the oracle of these tests knows it.
type subscriber struct {
	account, secret string
	types           []string
	domains, nodes  []string
}

// wants is the oracle: it decides by the words of the contract whether an event is for this subscription, and shares
// no code with the product.
func (s subscriber) wants(e fact) bool {
	typed := false
	for _, t := range s.types {
		typed = typed || t == "*" || e.eventType == t || strings.HasPrefix(e.eventType, t+".")
	}
	in := func(values []string, value string) bool {
		found := len(values) == 0
		for _, v := range values {
			found = found || v == value
		}
		return found
	}
	return s.account == e.account && typed && in(s.domains, strings.ToLower(e.domain)) && in(s.nodes, e.node)
}

// A fact is an event as its host wrote it, with the most exact type.
type fact struct {
	id, account, eventType, domain, node string
}

// A field is all that the tests of processes share: a database, subscribers, and a receiver that keeps count.
type field struct {
	*dbtest.DB
	keyring     string
	subscribers []subscriber
	server      *httptest.Server

	mu       sync.Mutex
	receipts map[string]int // "subscriber event id" → how often
	problems []error
	arrived  chan struct{}
}

func newField(t *testing.T) *field {
	t.Helper()
	f := &field{DB: dbtest.New(t), keyring: db.NewMasterKey(), receipts: map[string]int{}, arrived: make(chan struct{})}
	f.server = httptest.NewServer(&receiver.Receiver{Secret: func(p string) string { return f.subscribers[number(p)].secret }, Answer: f.receive})
	t.Cleanup(f.server.Close)
	return f
}

func number(p string) int {
	n, _ := strconv.Atoi(path.Base(p))
	return n
}

func (f *field) receive(_ http.ResponseWriter, r receiver.Receipt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Problem != nil {
		f.problems = append(f.problems, r.Problem)
	}
	f.receipts[path.Base(r.Path)+" "+r.ID]++
	close(f.arrived)
	f.arrived = make(chan struct{})
}

func (f *field) env() []string {
	return []string{"MAILHOOK_DATABASE_URL=" + f.URL, "MAILHOOK_SECRET_KEY=" + f.keyring, "MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8"}
}

func (f *field) subscribe(t *testing.T, s subscriber) {
	t.Helper()
	ring, err := db.NewKeyring(f.keyring)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7())
	f.subscribers = append(f.subscribers, s)
	url := fmt.Sprintf("%s/%d", f.server.URL, len(f.subscribers)-1)
	f.Exec(t, `INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, filter_sending_domain, filter_sending_node)
		VALUES ($1, $2, $3, $4, coalesce($5::text[], '{}'), coalesce($6::text[], '{}'))`, id, s.account, url, s.types, s.domains, s.nodes)
	f.Exec(t, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)", id, ring.First().ID, ring.First().Seal(db.SealedSecret, id, []byte(s.secret)))
}

// worker starts mailhook worker and waits until it is registered.
func (f *field) worker(t *testing.T) *exec.Cmd {
	t.Helper()
	before := dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.workers")
	cmd := command(t, append(f.env(), "MAILHOOK_DATABASE_URL="+f.As("mailhook_worker")), "worker", "--log-level", "error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dbtest.Eventually(t, "the worker registers", func() bool {
		return dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.workers") > before
	})
	return cmd
}

// Two worker processes, 20,000 events in transactions of mixed size of which one in twenty is rolled back, three
// accounts, fifty subscriptions; one worker is killed with SIGKILL in the middle.
func TestOneOfTwoWorkersIsKilled(t *testing.T) {
	t.Parallel()
	f := newField(t)
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	for range 50 {
		s := subscriber{
			account: pick("a", "b", "c"), secret: fmt.Sprintf("secret of subscriber %d", random.Int64()),
			types: []string{pick("email.delivered", "email.opened", "email.opened.newsletter", "email.bounced", "email.bounced.hard", "email.clicked", "*", "email", "form", "workflow.step")},
		}
		if random.IntN(2) == 0 {
			s.types = append(s.types, pick("email.complained", "email.unsubscribed", "email.bounced.soft", "form.submitted"))
		}
		if random.IntN(2) == 0 {
			s.domains = []string{pick("one.example", "two.example"), pick("three.example", "four.example")}
		}
		if random.IntN(3) == 0 {
			s.nodes = []string{pick("smtp1", "smtp2", "smtp3")}
		}
		f.subscribe(t, s)
	}
	victim := f.worker(t)
	f.worker(t)

	const events = 20_000
	committed, rolledBack := f.produce(t, random, events/2)
	if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	victim.Wait()
	killed := time.Now()
	// The dead worker's row is the one whose heartbeat stands; its leases are what was in flight.
	inFlight := dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.deliveries d JOIN mailhook.workers w ON w.id = d.leased_by WHERE w.pid = $1", victim.Process.Pid)
	more, moreRolledBack := f.produce(t, random, events/2)
	committed, rolledBack = append(committed, more...), append(rolledBack, moreRolledBack...)
	dbtest.Eventually(t, "rescued", func() bool {
		return dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.workers WHERE pid = $1", victim.Process.Pid) == 0
	})
	rescued := time.Since(killed)

	expected := map[string]bool{}
	for _, e := range committed {
		for i, s := range f.subscribers {
			if s.wants(e) {
				expected[fmt.Sprintf("%d %s", i, e.id)] = true
			}
		}
	}
	requests := f.waitFor(t, expected)
	for _, e := range rolledBack {
		for i := range f.subscribers {
			if f.receipts[fmt.Sprintf("%d %s", i, e.id)] > 0 {
				t.Fatalf("%s was rolled back and sent", e.id)
			}
		}
	}
	if len(f.receipts) != len(expected) {
		t.Errorf("%d (subscription, event) pairs delivered, the oracle expects %d", len(f.receipts), len(expected))
	}
	duplicates := requests - len(expected)
	if duplicates > int(inFlight) {
		t.Errorf("%d duplicates, %d were in flight at the kill", duplicates, inFlight)
	}
	if len(f.problems) > 0 {
		t.Errorf("%d requests did not verify: %v", len(f.problems), f.problems[0])
	}
	t.Logf("%d events committed, %d rolled back, %d deliveries, %d in flight at the kill, %d duplicates, rescued after %v",
		len(committed), len(rolledBack), len(expected), inFlight, duplicates, rescued.Round(100*time.Millisecond))
}

// waitFor waits until every expected pair has arrived and all is recorded, and answers how many requests came.
func (f *field) waitFor(t *testing.T, expected map[string]bool) (requests int) {
	t.Helper()
	deadline := time.After(dbtest.Patience)
	for {
		f.mu.Lock()
		missing, arrived := 0, f.arrived
		for pair := range expected {
			if f.receipts[pair] == 0 {
				missing++
			}
		}
		f.mu.Unlock()
		if missing == 0 {
			break
		}
		select {
		case <-arrived:
		case <-deadline:
			t.Fatalf("%d of %d deliveries missing", missing, len(expected))
		}
	}
	dbtest.Eventually(t, "all recorded", func() bool {
		return dbtest.QueryOne[int64](t, f.DB, "SELECT (SELECT count(*) FROM mailhook.deliveries) + (SELECT count(*) FROM mailhook.outbox)") == 0
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.receipts {
		requests += n
	}
	return requests
}

// produce commits n events, in transactions of 1 to 200, and rolls one transaction in twenty back.
func (f *field) produce(t *testing.T, random *rand.Rand, n int) (committed, rolledBack []fact) {
	t.Helper()
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	for len(committed) < n {
		var facts []fact
		var rows [][]any
		for range min(1+random.IntN(200), n-len(committed)) {
			base, leaf := pick("email.delivered", "email.opened", "email.bounced", "email.clicked", "email.complained", "form.submitted", "workflow.step"), ""
			data := `{"n": 1}`
			switch {
			case base == "email.bounced" && random.IntN(3) > 0:
				leaf = pick("hard", "soft")
				data = `{"bounce_type": "` + leaf + `"}`
			case base == "email.opened" && random.IntN(2) == 0:
				leaf = "newsletter"
				data = `{"message_class": "newsletter"}`
			}
			e := fact{account: pick("a", "b", "c"), eventType: base, domain: pick("One.Example", "two.example", "three.example", ""), node: pick("smtp1", "smtp2", "")}
			rows = append(rows, []any{e.account, base, e.domain, e.node, data})
			if leaf != "" {
				e.eventType += "." + leaf
			}
			facts = append(facts, e)
		}
		commit := random.IntN(20) != 0
		f.transact(t, facts, rows, commit)
		if commit {
			committed = append(committed, facts...)
		} else {
			rolledBack = append(rolledBack, facts...)
		}
	}
	return committed, rolledBack
}

func (f *field) transact(t *testing.T, facts []fact, rows [][]any, commit bool) {
	t.Helper()
	tx, err := f.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	batch := &pgx.Batch{}
	for i, row := range rows {
		batch.Queue("SELECT mailhook.emit($2, account_id => $1, sending_domain => $3, sending_node => $4, data => $5::text)", row...).QueryRow(func(r pgx.Row) error {
			return r.Scan(&facts[i].id)
		})
	}
	if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
	if !commit {
		return
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// roleOfServe makes a role that has those of the worker and the API, and nothing else.
func roleOfServe(t *testing.T, d *dbtest.DB) string {
	t.Helper()
	name := "mailhook_serve_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	d.Exec(t, "CREATE ROLE "+name+" NOLOGIN IN ROLE mailhook_worker, mailhook_api")
	t.Cleanup(func() { d.Pool.Exec(context.Background(), "DROP ROLE "+name) })
	return name
}

// The way of a new user: install, serve, make a key, subscribe, emit, receive, look.
func TestTheCommandsTogether(t *testing.T) {
	t.Parallel()
	f := newField(t)
	empty := dbtest.NewEmpty(t)
	env := append(f.env(), "MAILHOOK_DATABASE_URL="+empty.URL)
	for _, args := range [][]string{{"migrate", "status"}, {"migrate", "up"}, {"migrate", "up"}, {"migrate", "status", "--json"}} {
		if out, stderr, code := mailhook(t, env, args...); code != 0 {
			t.Fatalf("%v: %s%s", args, out, stderr)
		}
	}
	out, _, _ := mailhook(t, env, "key", "create", "--account", "acme")
	words := strings.Fields(out)
	key := words[len(words)-1]

	serve := command(t, append(env, "MAILHOOK_DATABASE_URL="+empty.As(roleOfServe(t, empty))), "serve", "--listen", "127.0.0.1:0", "--publish-address", "203.0.113.7,2001:db8::/64")
	address := started(t, serve)
	if got := request(t, key, http.MethodGet, "http://"+address+"/v1/egress", "", http.StatusOK, nil); !strings.Contains(got, `["203.0.113.7","2001:db8::/64"]`) {
		t.Error(got)
	}
	const secret = "a secret of sixteen or more"
	listen := command(t, nil, "listen", "--secret", secret, "--port", "0")
	var received lockedBuffer
	listen.Stdout = &received
	hook := started(t, listen)

	body := fmt.Sprintf(`{"name": "mine", "channel": {"type": "web", "url": "http://%s/hook"}, "event_types": ["email.clicked"], "secret": %q}`, hook, secret)
	var created struct{ ID, Secret string }
	request(t, key, http.MethodPost, "http://"+address+"/v1/subscriptions", body, http.StatusCreated, &created)
	if !strings.HasPrefix(created.ID, "sub_") || created.Secret != secret {
		t.Errorf("%+v", created)
	}
	var test struct {
		StatusCode int    `json:"status_code"`
		Outcome    string `json:"outcome"`
	}
	request(t, key, http.MethodPost, "http://"+address+"/v1/subscriptions/"+created.ID+"/test", "{}", http.StatusOK, &test)
	if test.Outcome != "ok" || test.StatusCode != http.StatusOK {
		t.Errorf("%+v", test)
	}
	dbtest.Eventually(t, "the test send is printed", func() bool { return strings.Contains(received.String(), `"test":true`) })
	out, stderr, code := mailhook(t, env, "emit", "email.clicked", "--account", "acme", "--data", `{"link_url": "https://example.com/"}`)
	if code != 0 || !strings.HasPrefix(out, "evt_") {
		t.Fatalf("emit: %s%s", out, stderr)
	}
	id := strings.TrimSpace(out)
	dbtest.Eventually(t, "received", func() bool { return strings.Contains(received.String(), `{"id":"`+id) })
	var event struct {
		Deliveries []struct{ Status string }
	}
	dbtest.Eventually(t, "delivered, says the API", func() bool {
		request(t, key, http.MethodGet, "http://"+address+"/v1/events/"+id, "", http.StatusOK, &event)
		return len(event.Deliveries) == 1 && event.Deliveries[0].Status == "delivered"
	})
	for _, want := range []string{`mailhook_attempts_total{outcome="ok"} 1`, `mailhook_deliveries_total{ended_as="delivered"} 1`, "mailhook_outbox_rows 0", "mailhook_dispatch_seconds_count"} {
		// The worker counts what it has recorded a moment after others can see it.
		dbtest.Eventually(t, "in the metrics: "+want, func() bool {
			return strings.Contains(request(t, "", http.MethodGet, "http://"+address+"/metrics", "", http.StatusOK, nil), want)
		})
	}
	request(t, "", http.MethodGet, "http://"+address+"/readyz", "", http.StatusOK, nil)

	var s status
	out, _, _ = mailhook(t, env, "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || len(s.Workers) != 1 || !s.DeliveryEnabled {
		t.Errorf("%v %s", err, out)
	}
	mailhook(t, env, "delivery", "off")
	if out, _, _ := mailhook(t, env, "status"); !strings.Contains(out, "OFF") {
		t.Error(out)
	}
	mailhook(t, env, "delivery", "on")
	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("serve ended with %v", err)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := mailhook(t, nil, "demo", "--duration", "3s")
	if code != 0 || !regexp.MustCompile(`lost +0\n`).MatchString(stdout) || !regexp.MustCompile(`sent after rollback +0\n`).MatchString(stdout) {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

// started starts a process and answers the address that it says it listens on.
func started(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), "address="); ok {
			go io.Copy(io.Discard, log)
			return address
		}
	}
	t.Fatalf("%v ended without listening", cmd.Args)
	return ""
}

func request(t *testing.T, key, method, url, body string, want int, into any) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+key)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != want {
		t.Fatalf("%s %s: %d %s %v", method, url, answer.StatusCode, content, err)
	}
	if into != nil {
		if err := json.Unmarshal(content, into); err != nil {
			t.Fatalf("%s %s: %v", method, url, err)
		}
	}
	return string(content)
}

// A lockedBuffer is a process's output to read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAnotherMasterKeyIsRefused(t *testing.T) {
	t.Parallel()
	f := newField(t)
	f.worker(t)
	for _, args := range [][]string{{"worker"}, {"api", "--listen", "127.0.0.1:0"}} {
		_, stderr, code := mailhook(t, append(f.env(), "MAILHOOK_SECRET_KEY="+db.NewMasterKey()), args...)
		if code != 1 || !strings.Contains(stderr, "lacks the master key") {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
}

func TestTheDemoRefusesADatabaseInUse(t *testing.T) {
	t.Parallel()
	used, empty := dbtest.New(t), dbtest.NewEmpty(t)
	if _, stderr, code := mailhook(t, []string{"MAILHOOK_DATABASE_URL=" + used.URL}, "demo", "--duration", "1s"); code != 1 || !strings.Contains(stderr, "installed in this database already") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	if stdout, stderr, code := mailhook(t, []string{"MAILHOOK_DATABASE_URL=" + empty.URL}, "demo", "--duration", "1s"); code != 0 {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if left := dbtest.QueryOne[int64](t, empty, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mailhook%'"); left != 0 {
		t.Errorf("%d schemas left behind", left)
	}
}
