package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"mailhook/db/dbtest"
	"mailhook/sql"
)

// hostileTexts are what strangers may write into names, bodies and errors.
func hostileTexts() []string {
	return []string{
		"<script>alert(1)</script>", "\x1b[31mred\x1b[2J", "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07", "\x1b]52;c;cm0gLXJm\x07", "\u009b31m", "\x9b31m",
		"abc\u202egnp.exe", "\u2066isolated\u2069\u200f", "a\x00b", "bad \xff\xfe utf-8 \xed\xa0\x80", strings.Repeat("long ", 100_000), `"},{"level":"ERROR","msg":"forged`,
		"line\u2028separator\u2029", "line\nlevel=ERROR msg=forged", "over\rwritten", "tab\tbed", "back\b\b\bspace\x7f", "\U000e0041\U000e007f tags", "\ufeffmark", `"\ud800"`,
	}
}

// shownInert fails the test if a terminal would do anything with text but show it, in so many lines.
func shownInert(t *testing.T, what, text string, lines int) {
	t.Helper()
	for i, r := range text {
		if r != '\n' && !unicode.IsPrint(r) || r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD") {
			t.Errorf("%s writes %q", what, r)
			return
		}
	}
	if got := strings.Count(text, "\n"); got != lines {
		t.Errorf("%s writes %d lines, not %d: %.300q", what, got, lines, text)
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain, ünïcode, 漢字, e\u0301, 🙂": "plain, ünïcode, 漢字, e\u0301, 🙂",
		"\x1b[31m\a":               `\u001b[31m\u0007`,
		"\u202e\u2028\u009b\u00a0": `\u202e\u2028\u009b\u00a0`,
		"\xff\xed\xa0\x80\uFFFD":   `\xff\xed\xa0\x80` + "\uFFFD",
		"\U000e0041":               `\udb40\udc41`,
		"a\nb\tc":                  `a\u000ab\u0009c`,
	} {
		if got := inert(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := cell(strings.Repeat("é", 100)); got != strings.Repeat("é", 59)+"…" {
		t.Error(got)
	}
}

func TestLogsAreInert(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		for _, text := range hostileTexts() {
			var out bytes.Buffer
			log, err := newLogger(inertWriter{&out}, format, slog.LevelInfo)
			if err != nil {
				t.Fatal(err)
			}
			log.With("database", text).Error("database call failed", "error", errors.New(text), text, text)
			shownInert(t, "a log in "+format, out.String(), 1)
			if format == "json" && !json.Valid(out.Bytes()) {
				t.Errorf("no JSON: %.300s", out.String())
			}
		}
	}
}

func TestTheStatusTableIsInert(t *testing.T) {
	t.Parallel()
	for _, text := range hostileTexts() {
		var table, object bytes.Buffer
		s := &status{
			Workers:            []workerStatus{{ID: text, Hostname: text, Version: text, StartedAt: time.Now(), SeenAt: time.Now()}},
			WorstSubscriptions: []worstStatus{{ID: "sub_1", AccountID: text, Name: text, Status: "active", LastOutcome: "dns"}},
		}
		if err := s.print(inertWriter{&table}); err != nil {
			t.Fatal(err)
		}
		shownInert(t, "status", table.String(), 14)
		if err := json.NewEncoder(inertWriter{&object}).Encode(s); err != nil {
			t.Fatal(err)
		}
		shownInert(t, "status --json", object.String(), 1)
		if !json.Valid(object.Bytes()) {
			t.Errorf("no JSON: %.300s", object.String())
		}
	}
}

func TestListenIsInert(t *testing.T) {
	t.Parallel()
	for _, text := range hostileTexts() {
		var out bytes.Buffer
		handler := printer(inertWriter{&out}, "standard", "a secret of sixteen characters or more", 0)
		request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(text))
		request.Header.Set("webhook-id", text)
		request.Header.Set("webhook-timestamp", text)
		handler.ServeHTTP(httptest.NewRecorder(), request)
		shownInert(t, "listen", out.String(), 2)
	}
}

func TestErrorsAreInert(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, text := range hostileTexts() {
		if strings.Contains(text, "\x00") || len(text) > 100_000 {
			continue // no argument can be this
		}
		for _, args := range [][]string{{"adapter", text}, {text}, {"worker", "--log-level", text}, {"worker", "--max-in-flight", text}} {
			_, stderr, code := mailhook(t, nil, args...)
			if code != 2 {
				t.Errorf("exit %d of %q", code, args)
			}
			shownInert(t, "an error of "+args[0], stderr, 1)
		}
		// The server's own words quote what it was asked for.
		_, stderr, code := mailhook(t, []string{"MAILHOOK_DATABASE_URL=" + dbtest.WithDatabase(d.URL, text)}, "status")
		if code != 1 {
			t.Errorf("exit %d with the database %q", code, text)
		}
		shownInert(t, "an error of the server", stderr, 1)
	}
}

// The SQL of an adapter goes to psql as it is.
func TestAdaptersPassUnchanged(t *testing.T) {
	t.Parallel()
	for _, name := range sql.Adapters() {
		for _, uninstall := range []bool{false, true} {
			text, err := sql.Adapter(name, uninstall)
			if err != nil {
				t.Fatal(err)
			}
			if escape(text, "\n\t") != text {
				t.Errorf("the adapter of %s has what does not print", name)
			}
		}
	}
}

// What a receiver sends unasked reaches no log: net/http would print it.
func TestAnUnaskedAnswerIsNotLogged(t *testing.T) {
	t.Parallel()
	f := newField(t)
	f.subscribe(t, subscriber{account: "default", types: []string{"*"}, secret: "a secret of sixteen characters or more"})
	url, closed := answerTwice(t, "echo-of-recipient")
	f.Exec(t, "UPDATE mailhook.subscriptions SET url = $1", url)
	worker := command(t, f.env(), "worker")
	var out bytes.Buffer
	worker.Stdout, worker.Stderr = &out, &out
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	f.Exec(t, "SELECT mailhook.emit('email.sent')")
	<-closed
	if err := errors.Join(worker.Process.Signal(syscall.SIGTERM), worker.Wait()); err != nil {
		t.Error(err)
	}
	if text := out.String(); !strings.Contains(text, "worker started") || strings.Contains(text, "echo-of-recipient") {
		t.Error(text)
	}
}

// answerTwice is a receiver that answers its first request twice, and tells when the worker has closed the connection.
func answerTwice(t *testing.T, surplus string) (url string, closed <-chan struct{}) {
	t.Helper()
	listener, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"+surplus)
		io.Copy(io.Discard, conn)
	}()
	return "http://" + listener.Addr().String() + "/", done
}
