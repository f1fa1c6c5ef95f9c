//go:build unix

// Package receiver_test runs the four example receivers as processes of their own, with requests
// signed by the official Standard Webhooks library, and holds docs/receivers.md to their code.
package receiver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const page = "../../receivers.md"

// A receiver is an example: a file, the command that runs it, and what to install when that is missing.
type receiver struct {
	file    string
	command []string
	install string
}

var receivers = []receiver{
	{"receiver.go", []string{"go", "run", "receiver.go"}, "Go (go.dev/dl)"},
	{"receiver.py", []string{"python3", "receiver.py"}, "Python 3.8 or later (apt-get install python3)"},
	{"receiver.mjs", []string{"node", "receiver.mjs"}, "Node.js 18 or later (apt-get install nodejs)"},
	{"receiver.php", []string{"php", "receiver.php"}, "PHP 8.1 or later (apt-get install php-cli)"},
}

// secrets are every kind a subscription may have. The last two are a customer's own: the first
// of them is valid base64 all the same, and must not be decoded.
var secrets = []struct{ name, secret string }{
	{"whsec", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
	{"custom_like_base64", "b3VyLW93bi1zZWNyZXQtb2YtMjAyNA=="},
	{"custom_not_ascii", "unser-eigener-Schlüssel-2024"},
}

// A request is what a case changes before it is sent.
type request struct {
	header http.Header
	body   []byte
}

// cases change a good request; sign signs it again, as sent at a time.
var cases = []struct {
	name   string
	status int
	change func(r *request, sign func(time.Time))
}{
	{"good", 204, func(*request, func(time.Time)) {}},
	{"two signatures, right one second", 204, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-signature", otherSignature(r)+" "+r.header.Get("webhook-signature"))
	}},
	{"two signatures, right one first", 204, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-signature", r.header.Get("webhook-signature")+" "+otherSignature(r))
	}},
	{"signature of another version beside it", 204, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-signature", "v1a,AAAA x "+r.header.Get("webhook-signature"))
	}},
	{"four minutes old", 204, func(_ *request, sign func(time.Time)) { sign(time.Now().Add(-4 * time.Minute)) }},
	{"four minutes ahead", 204, func(_ *request, sign func(time.Time)) { sign(time.Now().Add(4 * time.Minute)) }},
	{"bytes that a JSON parser would change", 204, func(r *request, sign func(time.Time)) {
		r.body = []byte(`{ "type":"email.opened", "id":"evt_2", "n":1.0, "s":"\u00e9\/é", "n":1e2 }` + "\n")
		sign(time.Now())
	}},
	{"largest body", 204, func(r *request, sign func(time.Time)) {
		r.body = fmt.Appendf(nil, `{"id":"evt_3","type":"form.submitted","data":{"x":"%s"}}`, strings.Repeat("x", 1<<20))
		r.body = append(r.body[:1<<20-4], `"}}`+"\n"...)
		sign(time.Now())
	}},
	{"body not JSON", 400, func(r *request, sign func(time.Time)) {
		r.body = []byte("{")
		sign(time.Now())
	}},
	{"changed body", 401, func(r *request, _ func(time.Time)) {
		r.body = bytes.Replace(r.body, []byte("delivered"), []byte("complained"), 1)
	}},
	{"changed id", 401, func(r *request, _ func(time.Time)) { r.header.Set("webhook-id", "evt_other") }},
	{"changed timestamp", 401, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-timestamp", strconv.FormatInt(time.Now().Unix()-1, 10))
	}},
	{"old timestamp", 401, func(_ *request, sign func(time.Time)) { sign(time.Now().Add(-6 * time.Minute)) }},
	{"timestamp ahead", 401, func(_ *request, sign func(time.Time)) { sign(time.Now().Add(6 * time.Minute)) }},
	{"timestamp not a number", 401, func(r *request, _ func(time.Time)) { r.header.Set("webhook-timestamp", "today") }},
	{"wrong secret", 401, func(r *request, _ func(time.Time)) { r.header.Set("webhook-signature", otherSignature(r)) }},
	{"signature cut short", 401, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-signature", r.header.Get("webhook-signature")[:20])
	}},
	{"signature of another version only", 401, func(r *request, _ func(time.Time)) {
		r.header.Set("webhook-signature", strings.Replace(r.header.Get("webhook-signature"), "v1,", "v2,", 1))
	}},
	{"no webhook-id", 401, func(r *request, _ func(time.Time)) { r.header.Del("webhook-id") }},
	{"no webhook-timestamp", 401, func(r *request, _ func(time.Time)) { r.header.Del("webhook-timestamp") }},
	{"no webhook-signature", 401, func(r *request, _ func(time.Time)) { r.header.Del("webhook-signature") }},
}

func TestReceivers(t *testing.T) {
	t.Parallel()
	ports := freePorts(t, len(receivers)*len(secrets))
	for i, rc := range receivers {
		for j, s := range secrets {
			port := ports[i*len(secrets)+j]
			t.Run(rc.file+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				rc.skipIfMissing(t)
				url, output := start(t, rc.command, s.secret, port)
				for _, c := range cases {
					r := signed(t, s.secret, c.change)
					if status, text := post(t, url, r); status != c.status {
						t.Errorf("%s: status %d (%s), want %d", c.name, status, text, c.status)
					}
				}
				if got := output(); !strings.Contains(got, "evt_1 email.delivered") {
					t.Errorf("id and type of the good request were not printed; output:\n%s", got)
				}
			})
		}
	}
}

// An empty secret would make an empty key, which anybody can sign with.
func TestReceiversRefuseEmptySecret(t *testing.T) {
	t.Parallel()
	for _, rc := range receivers {
		for _, secret := range []string{"", "whsec_"} {
			t.Run(rc.file+"/"+secret, func(t *testing.T) {
				t.Parallel()
				rc.skipIfMissing(t)
				p := launch(t, rc.command, secret, 0)
				select {
				case <-p.done:
				case <-time.After(time.Minute):
					t.Fatal("still running after a minute")
				}
				if p.cmd.ProcessState.Success() {
					t.Errorf("exit status 0, want a failure; output:\n%s", p.output.String())
				}
			})
		}
	}
}

// The page shows the part of each file between its marker comments, byte for byte.
func TestPageShowsTheExamples(t *testing.T) {
	t.Parallel()
	markdown := read(t, page)
	for _, rc := range receivers {
		source := regexp.MustCompile(`(?s)\n(?://|#) begin verify\n(.*?)\n(?://|#) end verify\n`).FindStringSubmatch(read(t, rc.file))
		if source == nil {
			t.Errorf("%s: no marker comments", rc.file)
			continue
		}
		block := regexp.MustCompile("(?s)<!-- verify of " + regexp.QuoteMeta(rc.file) + " -->\n```[a-z]+\n(.*?)\n```\n").FindStringSubmatch(markdown)
		if block == nil {
			t.Errorf("receivers.md shows no code of %s", rc.file)
			continue
		}
		if want := strings.TrimSpace(source[1]); block[1] != want {
			t.Errorf("receivers.md and %s differ; the file has:\n%s", rc.file, want)
		}
	}
}

// The worked example of the page has true signatures.
func TestPageShowsTrueSignatures(t *testing.T) {
	t.Parallel()
	markdown := read(t, page)
	example := regexp.MustCompile("(?s)```http\n(.*?)\n```\n").FindStringSubmatch(markdown)
	secret := regexp.MustCompile("signed with the secret `([^`]+)`").FindStringSubmatch(markdown)
	if example == nil || secret == nil {
		t.Fatal("receivers.md has no ```http block, or does not name its secret")
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(example[1])))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(example[1], "\n\n"+string(body)) {
		t.Errorf("Content-Length is %d, and does not end at the end of the block", r.ContentLength)
	}
	wh, err := standardwebhooks.NewWebhook(secret[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := wh.VerifyIgnoringTimestamp(body, r.Header); err != nil {
		t.Errorf("webhook-signature: %v", err)
	}
	mac := hmac.New(sha256.New, keyOf(t, secret[1]))
	mac.Write(body)
	if got, want := r.Header.Get("X-Signature"), "hmac-sha256="+hex.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("X-Signature: %s, want %s", got, want)
	}
}

func (rc receiver) skipIfMissing(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(rc.command[0]); err != nil {
		if os.Getenv("CI") != "" { // .ci/run installs all of them
			t.Fatalf("%s is not installed: install %s", rc.command[0], rc.install)
		}
		t.Skipf("%s is not tested, for %s is not installed: install %s", rc.file, rc.command[0], rc.install)
	}
}

// signed returns a good request as changed by the case.
func signed(t *testing.T, secret string, change func(*request, func(time.Time))) *request {
	t.Helper()
	r := &request{
		header: http.Header{"Content-Type": {"application/json"}, "User-Agent": {"mailhook/test"}},
		body:   []byte(`{"id":"evt_1","type":"email.delivered","timestamp":"2024-01-15T10:30:00.000Z","data":{"recipient":"zoë@example.com"}}`),
	}
	r.header.Set("webhook-id", "evt_1")
	sign := func(at time.Time) {
		r.header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		r.header.Set("webhook-signature", signature(t, keyOf(t, secret), r, at))
	}
	sign(time.Now())
	change(r, sign)
	return r
}

func signature(t *testing.T, key []byte, r *request, at time.Time) string {
	t.Helper()
	wh, err := standardwebhooks.NewWebhookRaw(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := wh.Sign(r.header.Get("webhook-id"), at, r.body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// otherSignature is a well-formed signature of the request by a key that the receiver does not have.
func otherSignature(r *request) string {
	mac := hmac.New(sha256.New, []byte("somebody else's key"))
	fmt.Fprintf(mac, "%s.%s.%s", r.header.Get("webhook-id"), r.header.Get("webhook-timestamp"), r.body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func keyOf(t *testing.T, secret string) []byte {
	t.Helper()
	encoded, ok := strings.CutPrefix(secret, "whsec_")
	if !ok {
		return []byte(secret)
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func post(t *testing.T, url string, r *request) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = r.header
	req.Close = true // a receiver may close after refusing a body
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

// A process is a receiver that runs until it ends by itself, stop is called or the test ends.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer // complete, and safe to read, after done
	done   chan struct{}
	stop   func() // returns when the process has ended
}

// launch starts the command in a process group of its own: go run and the PHP example have children.
func launch(t *testing.T, command []string, secret string, port int) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &process{cmd: exec.CommandContext(ctx, command[0], command[1:]...), done: make(chan struct{})}
	p.stop = func() { cancel(); <-p.done }
	p.cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secret, "PORT="+strconv.Itoa(port))
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit status is in cmd.ProcessState
	}()
	t.Cleanup(p.stop)
	return p
}

// start runs a receiver and waits until it takes connections. output stops it, and returns what it has printed.
func start(t *testing.T, command []string, secret string, port int) (url string, output func() string) {
	t.Helper()
	p := launch(t, command, secret, port)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	output = func() string { p.stop(); return p.output.String() }

	// A minute, because go run compiles net/http when the build cache is empty.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return "http://" + address + "/hooks/mail", output
		}
		select {
		case <-p.done:
			t.Fatalf("%v ended: %v; output:\n%s", command, p.cmd.ProcessState, p.output.String())
		case <-ctx.Done():
			t.Fatalf("%v takes no connections: %v; output:\n%s", command, errors.Join(ctx.Err(), err), output())
		case <-tick.C:
		}
	}
}

// freePorts returns n different ports. All are open at once, so that none is handed out twice.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
