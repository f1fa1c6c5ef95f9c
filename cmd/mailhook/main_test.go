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
	installed, empty, newer := dbtest.New(t), dbtest.NewEmpty(t), dbtest.New(t)
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
