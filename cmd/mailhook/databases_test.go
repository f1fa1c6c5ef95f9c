package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// newFields are databases under one master key, each with a receiver of its own and a subscription for everything of
// three accounts, which are the same in all of them: what went astray would be taken.
func newFields(t *testing.T, n int) []*field {
	t.Helper()
	var fields []*field
	for i := range n {
		f := newField(t)
		if i > 0 {
			f.keyring = fields[0].keyring
		}
		for _, account := range []string{"a", "b", "c"} {
			f.subscribe(t, subscriber{account: account, types: []string{"*"}, secret: fmt.Sprintf("secret of %s in database %d", account, i)})
		}
		fields = append(fields, f)
	}
	return fields
}

func (f *field) name() string { return f.Pool.Config().ConnConfig.Database }

// severalArgs are the arguments of a worker for all of these databases.
func severalArgs(urls ...string) []string {
	args := []string{"worker", "--listen", "127.0.0.1:0"}
	for _, url := range urls {
		args = append(args, "--database-url", url)
	}
	return args
}

// oneWorkerFor starts one process for all of the databases and waits until it is ready.
func oneWorkerFor(t *testing.T, fields []*field) (cmd *exec.Cmd, address string, log *lockedBuffer) {
	t.Helper()
	var urls []string
	for _, f := range fields {
		urls = append(urls, f.URL)
	}
	log = &lockedBuffer{}
	// The one of the environment, which would be refused as the same database twice, counts only without a flag.
	cmd = command(t, fields[0].env(), severalArgs(urls...)...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the worker's log:\n%s", log.String())
		}
	})
	dbtest.Eventually(t, "the process listens", func() bool {
		_, after, ok := strings.Cut(log.String(), "address=")
		address, _, _ = strings.Cut(after, "\n")
		return ok && strings.Contains(after, "\n")
	})
	dbtest.Eventually(t, "the process is ready", func() bool {
		status, _ := get(t, "http://"+address+"/readyz")
		return status == http.StatusOK
	})
	return cmd, address, log
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(content)
}

// expect commits n events and answers the (subscription, event) pairs that are due for them.
func (f *field) expect(t *testing.T, random *rand.Rand, n int) map[string]bool {
	t.Helper()
	committed, _ := f.produce(t, random, n)
	pairs := map[string]bool{}
	for _, e := range committed {
		for i, s := range f.subscribers {
			if s.wants(e) {
				pairs[fmt.Sprintf("%d %s", i, e.id)] = true
			}
		}
	}
	return pairs
}

func TestOneProcessDrainsSeveralDatabases(t *testing.T) {
	t.Parallel()
	fields := newFields(t, 4)
	cmd, address, log := oneWorkerFor(t, fields)
	random := rand.New(rand.NewPCG(3, 4))
	var expected []map[string]bool
	for _, f := range fields {
		expected = append(expected, f.expect(t, random, 300))
	}
	for i, f := range fields {
		f.waitFor(t, expected[i])
	}
	// All is recorded everywhere: nothing more will come.
	for i, f := range fields {
		f.mu.Lock()
		if len(f.receipts) != len(expected[i]) {
			t.Errorf("database %d: %d (subscription, event) pairs delivered, want %d", i, len(f.receipts), len(expected[i]))
		}
		if len(f.problems) > 0 {
			t.Errorf("database %d: %d requests did not verify: %v", i, len(f.problems), f.problems[0])
		}
		f.mu.Unlock()
	}

	for _, f := range fields {
		for _, want := range []string{
			fmt.Sprintf(`mailhook_attempts_total{database=%q,outcome="ok"} 300`, f.name()),
			fmt.Sprintf(`mailhook_events_dispatched_total{database=%q} 300`, f.name()),
			fmt.Sprintf(`mailhook_outbox_rows{database=%q} 0`, f.name()),
			fmt.Sprintf(`mailhook_dispatch_seconds_count{database=%q}`, f.name()),
		} {
			dbtest.Eventually(t, want, func() bool {
				_, metrics := get(t, "http://"+address+"/metrics")
				return strings.Contains(metrics, want)
			})
		}
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
	for _, f := range fields {
		if n := dbtest.QueryOne[int64](t, f.DB, "SELECT count(*) FROM mailhook.workers"); n != 0 {
			t.Errorf("%s: %d workers have not signed off", f.name(), n)
		}
		for _, message := range []string{"worker started", "worker stopped"} {
			if !slices.ContainsFunc(strings.Split(log.String(), "\n"), func(line string) bool {
				return strings.Contains(line, message) && strings.Contains(line, "database="+f.name())
			}) {
				t.Errorf("no line %q with database=%s", message, f.name())
			}
		}
	}
}

func TestAnOutageOfOneDatabaseLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	fields := newFields(t, 3)
	_, address, _ := oneWorkerFor(t, fields)
	random := rand.New(rand.NewPCG(5, 6))
	bad, good := fields[1], []*field{fields[0], fields[2]}

	good[0].Exec(t, "ALTER DATABASE "+bad.name()+" ALLOW_CONNECTIONS false")
	// More than once below: a session that is just starting has no name yet.
	terminate := func() {
		t.Helper()
		good[0].Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'mailhook%'", bad.name())
	}
	terminate()
	duringOutage := func() {
		t.Helper()
		for _, f := range good {
			f.waitFor(t, f.expect(t, random, 100))
		}
	}
	duringOutage()
	var body string
	dbtest.Eventually(t, "readyz says so", func() bool {
		terminate()
		var status int
		status, body = get(t, "http://"+address+"/readyz")
		return status == http.StatusServiceUnavailable
	})
	if !strings.Contains(body, "database "+bad.name()+": ") || strings.Contains(body, good[0].name()) || strings.Contains(body, good[1].name()) {
		t.Errorf("readyz: %s", body)
	}
	duringOutage()
	if status, _ := get(t, "http://"+address+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	status, metrics := get(t, "http://"+address+"/metrics")
	for series, want := range map[string]bool{
		fmt.Sprintf("mailhook_outbox_rows{database=%q} 0", good[0].name()):                     true,
		fmt.Sprintf("mailhook_outbox_rows{database=%q}", bad.name()):                           false,
		fmt.Sprintf(`mailhook_database_errors_total{call="beat",database=%q}`, bad.name()):     true,
		fmt.Sprintf(`mailhook_database_errors_total{call="beat",database=%q}`, good[0].name()): false,
	} {
		if status != http.StatusOK || strings.Contains(metrics, series) != want {
			t.Errorf("metrics: %d, %s: want %v", status, series, want)
		}
	}

	// Back again, by itself.
	good[0].Exec(t, "ALTER DATABASE "+bad.name()+" ALLOW_CONNECTIONS true")
	bad.waitFor(t, bad.expect(t, random, 100))
	dbtest.Eventually(t, "ready again", func() bool {
		status, _ := get(t, "http://"+address+"/readyz")
		return status == http.StatusOK
	})
	for _, f := range fields {
		f.mu.Lock()
		if len(f.problems) > 0 {
			t.Errorf("%s: %v", f.name(), f.problems[0])
		}
		f.mu.Unlock()
	}
}

func TestADatabaseThatCannotBeDrainedIsNamedAtTheStart(t *testing.T) {
	t.Parallel()
	first, empty, other := dbtest.New(t), dbtest.NewEmpty(t), dbtest.New(t)
	key := "MAILHOOK_SECRET_KEY=" + db.NewMasterKey()
	otherRing, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := otherRing.Check(t.Context(), db.New(other.Pool)); err != nil {
		t.Fatal(err)
	}
	name := func(d *dbtest.DB) string { return d.Pool.Config().ConnConfig.Database }
	for _, c := range []struct {
		what string
		url  string
		code int
		says string
	}{
		{"unreachable", "postgres://u:Gehe1m@127.0.0.1:1/second", 1, "database second: "},
		{"unknown", dbtest.WithDatabase(first.URL, "second"), 1, "database second: "},
		{"not installed", empty.URL, 1, "database " + name(empty) + ": mailhook is not installed"},
		{"another master key", other.URL, 1, "database " + name(other) + ": MAILHOOK_SECRET_KEY"},
		{"not to be parsed", "postgres://u:Gehe1m@127.0.0.1:port/second", 2, "--database-url 2 of 2 cannot be parsed"},
		{"a password that breaks the URL", "postgres://u:Gehe1m/x@127.0.0.1/second", 2, "--database-url 2 of 2 cannot be parsed"},
		{"no URL", "u:Gehe1m@127.0.0.1/second", 2, "--database-url 2 of 2 cannot be parsed"},
		{"the same", first.URL, 2, "/" + name(first) + " is given twice"},
		{"the same by another way", overTwoHosts(first.URL), 2, "this is "},
		{"empty", "", 2, "one of 2 --database-url is empty"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := mailhook(t, []string{key}, severalArgs(first.URL, c.url)...)
			if code != c.code || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "Gehe1m") {
				t.Errorf("exit %d, want %d with %q\n%s", code, c.code, c.says, stderr)
			}
			if strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
				t.Errorf("more than one line:\n%s", stderr)
			}
			if n := dbtest.QueryOne[int64](t, first, "SELECT count(*) FROM mailhook.workers"); n != 0 {
				t.Errorf("%d workers had begun on the first", n)
			}
		})
	}
}

// overTwoHosts is another way to the same database: a comma in the URL, and a first host where nobody listens.
func overTwoHosts(url string) string { return strings.Replace(url, "@", "@127.0.0.1:1,", 1) }

func TestOtherCommandsTakeOneDatabase(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, args := range [][]string{
		{"serve"}, {"api"}, {"status"}, {"emit"}, {"delivery", "off"}, {"key", "create"}, {"migrate", "up"}, {"migrate", "down", "--to", "0"}, {"demo"},
	} {
		_, stderr, code := mailhook(t, []string{"MAILHOOK_SECRET_KEY=" + db.NewMasterKey()}, append(slices.Clone(args), "--database-url", d.URL, "--database-url", d.URL)...)
		if words := strings.Join(args[:min(len(args), 2)], " "); code != 2 || !strings.Contains(stderr, words+" works on one database") {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
	// A comma belongs to the URL, and a flag takes the place of the environment.
	if _, stderr, code := mailhook(t, []string{"MAILHOOK_DATABASE_URL=postgres://127.0.0.1:1/none"}, "status", "--database-url", overTwoHosts(d.URL)); code != 0 {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	if _, stderr, code := mailhook(t, []string{"MAILHOOK_DATABASE_URL=" + overTwoHosts(d.URL)}, "status"); code != 0 {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func TestDatabaseNames(t *testing.T) {
	t.Parallel()
	names, err := databaseNames([]string{
		"postgres://u:secret@one.example/mail", "host=two.example port=6432 user=u dbname=mail", "postgres://u@[::1]/other", "postgres://tenant@one.example",
	})
	if want := []string{"one.example:5432/mail", "two.example:6432/mail", "other", "tenant"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v %v, want %v", names, err, want)
	}
}
