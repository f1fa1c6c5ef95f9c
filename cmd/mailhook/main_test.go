package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// mainVariable makes the test binary run as mailhook itself: the processes of these tests are real ones.
const mainVariable = "MAILHOOK_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(run(ctx, os.Args)) //nolint:gocritic // the process ends here
	}
	dbtest.Main(m)
}

// command is a mailhook process, with nothing of the test's environment that could steer it.
func command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "MAILHOOK_") && !strings.HasPrefix(name, "PG") && name != "DATABASE_URL" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(append(cmd.Env, mainVariable+"=1", "MAILHOOK_PG_BIN="+os.Getenv("MAILHOOK_PG_BIN")), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd
}

// mailhook runs a command to its end.
func mailhook(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := command(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exited := new(exec.ExitError); err != nil && !errors.As(err, &exited) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestMistakesGetOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	key := "MAILHOOK_SECRET_KEY=" + db.NewMasterKey()
	installed, empty, newer, waiting := dbtest.New(t), dbtest.NewEmpty(t), dbtest.New(t), dbtest.New(t)
	waiting.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, 3)")
	waiting.Exec(t, "INSERT INTO mailhook.subscriptions (account_id, url, event_types) VALUES ('a', 'https://example.com', '{*}')")
	waiting.Exec(t, `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		SELECT id, 'a', now(), n, 'email.sent', now(), now() FROM mailhook.subscriptions, generate_series(1, 2) AS n`)
	owner := dbtest.QueryOne[string](t, installed, "SELECT quote_ident(current_user)")
	newer.Exec(t, "INSERT INTO mailhook.goose_db_version (version_id, is_applied) VALUES (99999, true)")
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, c := range []struct {
		name string
		env  []string
		args []string
		code int
		says string
	}{
		{"unknown command", nil, []string{"sned"}, 2, `there is no command "sned"`},
		{"unknown flag", nil, []string{"worker", "--fast"}, 2, "-fast"},
		{"flag without its value", nil, []string{"worker", "--max-in-flight", "many"}, 2, "max-in-flight"},
		{"no database", []string{key}, []string{"worker"}, 2, "MAILHOOK_DATABASE_URL"},
		{"no key", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"worker"}, 2, "MAILHOOK_SECRET_KEY"},
		{"bad key", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, "MAILHOOK_SECRET_KEY=short"}, []string{"worker"}, 2, "32 bytes"},
		{"bad network", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key, "MAILHOOK_ALLOW_CIDR=10.0.0.0/99"}, []string{"worker"}, 2, "10.0.0.0/8"},
		{"retention that would lose events", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key}, []string{"worker", "--retain-events", "24h"}, 2, "--retain-events"},
		{"unreachable database", []string{"MAILHOOK_DATABASE_URL=postgres://127.0.0.1:1/none", key}, []string{"worker"}, 1, "refused"},
		{"missing migrations", []string{"MAILHOOK_DATABASE_URL=" + empty.URL, key}, []string{"worker"}, 1, "run mailhook migrate up"},
		{"newer schema", []string{"MAILHOOK_DATABASE_URL=" + newer.URL, key}, []string{"worker"}, 1, "install the newer mailhook"},
		{"missing migrations, status", []string{"DATABASE_URL=" + empty.URL}, []string{"status"}, 1, "run mailhook migrate up"},
		{"port that is taken", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key}, []string{"api", "--listen", "256.0.0.1:1"}, 1, "--listen"},
		{"down without a yes", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"migrate", "down", "--to", "13"}, 2, "takes back 00014_grant_roles.sql in"},
		{"out without a yes", []string{"MAILHOOK_DATABASE_URL=" + waiting.URL}, []string{"migrate", "down", "--to", "0"}, 2, "1 subscriptions with their secrets, 3 events and 2 deliveries that wait"},
		{"emit as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("mailhook_api")}, []string{"emit"}, 1, "GRANT mailhook_producer TO mailhook_api"},
		{"key create as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("mailhook_api")}, []string{"key", "create"}, 1, "the database role mailhook_api may not do this (permission denied for table api_keys): run it as " + owner + ", who owns the schema mailhook"},
		{"status as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("pg_monitor")}, []string{"status"}, 1, "pg_monitor may not do this (permission denied for schema mailhook): run it as " + owner},
		{"upgrade as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("mailhook_worker")}, []string{"migrate", "up"}, 1, "run it as " + owner + ", who owns the schema mailhook"},
		{"install as another", []string{"MAILHOOK_DATABASE_URL=" + empty.As("mailhook_worker")}, []string{"migrate", "up"}, 1, "run it as " + owner + ", who owns the database"},
		{"worker as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("pg_monitor"), key}, []string{"worker"}, 1, "GRANT mailhook_worker TO pg_monitor"},
		{"serve as another", []string{"MAILHOOK_DATABASE_URL=" + installed.As("pg_monitor"), key}, []string{"serve"}, 1, "GRANT mailhook_worker, mailhook_api TO pg_monitor"},
		{"a time that is none", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key}, []string{"worker", "--retain-events", "336h0m0s"}, 2, "whole number and one of the units ms s m h d"},
		{"down without a version", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"migrate", "down"}, 2, "to"},
		{"migrate without a word", nil, []string{"migrate"}, 2, "mailhook migrate --help"},
		{"unknown host", nil, []string{"adapter", "postfix"}, 2, "listmonk"},
		{"bad event", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"emit", "Bad Type"}, 1, "MH001"},
		{"key without an account", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "create", "--account", ""}, 2, "--account is empty"},
		{"key with an argument", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "create", "acme"}, 2, `"acme"`},
		{"key with a scope that is none", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "create", "--scope", "admin"}, 2, "read nor write"},
		{"key that expires before now", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "create", "--expires", "-1d"}, 2, "--expires"},
		{"revoking a key that is none", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "revoke", "key_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"}, 1, "mailhook key list"},
		{"revoking without an id", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"key", "revoke", "mhk_x"}, 2, "key_"},
		{"a rate that is none", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key}, []string{"api", "--api-rate-limit", "-1"}, 2, "--api-rate-limit"},
		{"a limit that is none", []string{"MAILHOOK_DATABASE_URL=" + installed.URL, key}, []string{"api", "--subscription-limit", "-1"}, 2, "--subscription-limit"},
		{"surplus argument", []string{"MAILHOOK_DATABASE_URL=" + installed.URL}, []string{"status", "extra"}, 2, `"extra"`},
		{"listening on a port that is taken", nil, []string{"listen", "--secret", "x", "--port", port}, 1, "choose another with --port"},
		{"fail rate", nil, []string{"listen", "--secret", "x", "--fail-rate", "2"}, 2, "between 0 and 1"},
		{"format", nil, []string{"listen", "--secret", "x", "--format", "mailgun"}, 2, "one of cloudevents, mailjet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := mailhook(t, c.env, c.args...)
			if code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, want %d, with %q:\n%s%s", code, c.code, c.says, stdout, stderr)
			}
			if strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
				t.Errorf("more than one line:\n%s", stderr)
			}
		})
	}
}

func TestEveryCommandHasHelpAndEveryFlagAnEnvironmentName(t *testing.T) {
	t.Parallel()
	for _, c := range newApp().Commands {
		if c.Usage == "" {
			t.Errorf("%s has no usage", c.Name)
		}
		for _, sub := range append(c.Subcommands, c) {
			for _, f := range sub.Flags {
				if e, ok := f.(interface{ GetEnvVars() []string }); !ok || len(e.GetEnvVars()) == 0 {
					t.Errorf("%s %s: %v has no environment name", c.Name, sub.Name, f.Names())
				}
			}
		}
	}
}

// A host's role may emit, and nothing of what is asked beside that stops it.
func TestAProducerEmits(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.As("mailhook_producer")}
	out, stderr, code := mailhook(t, env, "emit", "email.opend")
	if code != 0 || !strings.HasPrefix(out, "evt_") || stderr != "" {
		t.Errorf("%d %s%s", code, out, stderr)
	}
}

// What nobody has registered is sent all the same, with a hint beside the id: it may be a slip.
func TestEmitHintsAtTheNearestType(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL}
	for _, c := range []struct{ eventType, says string }{
		{"email.opend", "but email.opened is;"},
		{"email.bounced.hart", "but email.bounced.hard is;"},
		{"shop.bought", "no event type shop.bought is registered; it is sent all the same"},
		{"email.clicked.newsletter", ""},
		{"", ""},
	} {
		out, stderr, code := mailhook(t, env, "emit", c.eventType)
		if code != 0 || !strings.HasPrefix(out, "evt_") || strings.Count(out, "\n") != 1 || !strings.Contains(stderr, c.says) || c.says == "" && stderr != "" {
			t.Errorf("%s: %d %q %q", c.eventType, code, out, stderr)
		}
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox"); n != 5 {
		t.Errorf("%d of 5 were written", n)
	}
}

func TestMigrateDownWithAYes(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL}
	steps := func() int64 {
		return dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('mailhook') AND relkind IN ('r', 'p')")
	}
	before := steps()
	if _, stderr, code := mailhook(t, env, "migrate", "down", "--to", "0"); code != 2 || !strings.Contains(stderr, "--yes") || steps() != before || before == 0 {
		t.Fatalf("%d %s: %d of %d tables", code, stderr, steps(), before)
	}
	for _, args := range [][]string{{"--to", "0", "--yes"}, {"--to", "0"}} { // then there is nothing to ask for
		if out, stderr, code := mailhook(t, env, append([]string{"migrate", "down"}, args...)...); code != 0 || steps() != 0 {
			t.Fatalf("%d %s%s: %d tables", code, out, stderr, steps())
		}
	}
}

func TestTheVersionIsAFlagToo(t *testing.T) {
	t.Parallel()
	word, _, code := mailhook(t, nil, "version")
	flag, _, codeOfFlag := mailhook(t, nil, "--version")
	if code != 0 || codeOfFlag != 0 || word != flag || !strings.HasPrefix(flag, "mailhook ") {
		t.Errorf("%d %q and %d %q", code, word, codeOfFlag, flag)
	}
}

func TestTimesReadAsPeopleWriteThem(t *testing.T) {
	help, _, _ := mailhook(t, nil, "worker", "--help")
	for _, says := range []string{"(default: 14d)", "(default: 400d)", "(default: 200ms)"} {
		if !strings.Contains(help, says) {
			t.Errorf("the help does not say %s:\n%s", says, help)
		}
	}
	if strings.Contains(help, "h0m0s") {
		t.Error(help)
	}
	app := newApp()
	app.Commands = []*cli.Command{{Name: "worker", Flags: workerFlags(databasesFlag()), Action: func(c *cli.Context) error {
		if got := givenDuration(c, "retain-events"); got != 30*24*time.Hour {
			t.Errorf("--retain-events 30d is %v", got)
		}
		if got := givenDuration(c, "retain-audit"); got != 60*24*time.Hour {
			t.Errorf("MAILHOOK_RETAIN_AUDIT=60d is %v", got)
		}
		return nil
	}}}
	t.Setenv("MAILHOOK_RETAIN_AUDIT", "60d")
	if err := app.Run([]string{"mailhook", "worker", "--retain-events", "30d"}); err != nil {
		t.Error(err)
	}
}
