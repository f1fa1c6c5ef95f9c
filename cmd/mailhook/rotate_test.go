package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/sync/errgroup"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// A ledger knows every secret and token that each customer has ever had, and what came that matches none of them.
type ledger struct {
	mu       sync.Mutex
	secrets  map[string][]string
	tokens   map[string]map[string]bool
	received int
	came     chan struct{} // one more was received
	wrong    []string
}

func (l *ledger) know(path, secret, token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if secret != "" {
		l.secrets[path] = append(l.secrets[path], secret)
	}
	if l.tokens[path] == nil {
		l.tokens[path] = map[string]bool{}
	}
	if token != "" {
		l.tokens[path][token] = true
	}
}

func (l *ledger) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.received++
	select {
	case l.came <- struct{}{}:
	default:
	}
	verified := false
	for _, secret := range l.secrets[r.URL.Path] {
		webhook, keyErr := standardwebhooks.NewWebhook(strings.TrimPrefix(secret, "whsec_"))
		verified = verified || keyErr == nil && webhook.Verify(body, r.Header) == nil
	}
	if err != nil || !verified || !l.tokens[r.URL.Path][r.Header.Get("Authorization")] {
		l.wrong = append(l.wrong, fmt.Sprint(r.URL.Path, verified, r.Header.Get("Authorization"), err))
	}
}

func (l *ledger) counts() (received int, wrong []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.received, l.wrong
}

// A rotating is an installation with customers, whose processes have the keys that its environment says.
type rotating struct {
	*dbtest.DB
	ledger *ledger
	server *httptest.Server
	admin  string
	ids    []string
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	r := &rotating{DB: dbtest.New(t), ledger: &ledger{secrets: map[string][]string{}, tokens: map[string]map[string]bool{}, came: make(chan struct{}, 1)}}
	r.server = httptest.NewServer(r.ledger)
	t.Cleanup(r.server.Close)
	out, stderr, _ := mailhook(t, r.env(""), "key", "create")
	words := strings.Fields(out)
	if len(words) == 0 {
		t.Fatal(stderr)
	}
	r.admin = words[len(words)-1]
	return r
}

func (r *rotating) env(keys string) []string {
	return []string{"MAILHOOK_DATABASE_URL=" + r.URL, "MAILHOOK_SECRET_KEY=" + keys, "MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8", "MAILHOOK_LOG_LEVEL=warn"}
}

// start starts a process and waits for what it says when it listens.
func (r *rotating) start(t *testing.T, keys string, args ...string) (cmd *exec.Cmd, address string) {
	t.Helper()
	cmd = command(t, append(r.env(keys), "MAILHOOK_LOG_LEVEL=info"), append(args, "--listen", "127.0.0.1:0")...)
	return cmd, started(t, cmd)
}

func (r *rotating) create(t *testing.T, api string, n int) {
	t.Helper()
	path := fmt.Sprintf("/%d", n)
	r.ledger.know(path, "", "Bearer first")
	body := fmt.Sprintf(`{"account_id": "acme", "channel": {"url": "%s%s", "auth": {"type": "bearer", "token": "first"}, "headers": {"X-A": "1"}}, "event_types": ["email"]}`, r.server.URL, path)
	var created struct{ ID, Secret string }
	request(t, r.admin, http.MethodPost, "http://"+api+"/v1/subscriptions", body, http.StatusCreated, &created)
	r.ledger.know(path, created.Secret, "")
	r.ids = append(r.ids, created.ID)
}

// load has customers change secrets and tokens until the context ends, and a host write events: no more than 2,000 deliveries ahead of what came.
func (r *rotating) load(ctx context.Context, t *testing.T, api string) *errgroup.Group {
	t.Helper()
	group := &errgroup.Group{}
	group.Go(func() error {
		for emitted := 0; ctx.Err() == nil; {
			if received, _ := r.ledger.counts(); len(r.ids)*emitted-received > 2000 {
				select {
				case <-r.ledger.came:
				case <-ctx.Done():
				}
				continue
			}
			if _, err := r.Pool.Exec(ctx, "SELECT mailhook.emit('email.sent', account_id => 'acme') FROM generate_series(1, 5)"); err != nil && ctx.Err() == nil {
				return err
			}
			emitted += 5
		}
		return nil
	})
	group.Go(func() error {
		for n := 0; ctx.Err() == nil; n++ {
			i := n % len(r.ids)
			url, path, token := "http://"+api+"/v1/subscriptions/"+r.ids[i], fmt.Sprintf("/%d", i), fmt.Sprintf("token-%d", n)
			var rotated struct{ Secret string }
			request(t, r.admin, http.MethodPost, url+"/rotate-secret", `{"grace": "1h"}`, http.StatusOK, &rotated)
			r.ledger.know(path, rotated.Secret, "Bearer "+token)
			request(t, r.admin, http.MethodPatch, url, fmt.Sprintf(`{"channel": {"auth": {"type": "bearer", "token": %q}, "headers": {"X-A": %q}}}`, token, token), http.StatusOK, nil)
		}
		return nil
	})
	return group
}

// crowd makes many subscriptions that match nothing, for a rotation that takes its time.
func (r *rotating) crowd(t *testing.T, key string, n int) {
	t.Helper()
	ring, err := db.NewKeyring(key)
	if err != nil {
		t.Fatal(err)
	}
	ids, sealed := make([]uuid.UUID, n), make([][]byte, n)
	for i := range n {
		ids[i] = uuid.Must(uuid.NewV7())
		sealed[i] = ring.First().Seal(db.SealedSecret, ids[i], []byte("a secret of sixteen or more"))
	}
	r.Exec(t, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) SELECT unnest($1::uuid[]), $2, unnest($3::bytea[])", ids, ring.First().ID, sealed)
}

func keyID(t *testing.T, key string) string {
	t.Helper()
	ring, err := db.NewKeyring(key)
	if err != nil {
		t.Fatal(err)
	}
	return ring.First().ID
}

// The whole procedure of docs/operations.md, while events come and customers change what is sealed: refused too early, ended
// by SIGKILL in the middle, run again. No attempt is without its secret, and every signature and token is one of its customer's.
func TestTheMasterKeyIsRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	before, after := db.NewMasterKey(), db.NewMasterKey()
	both := after + "," + before
	oldID, newID := keyID(t, before), keyID(t, after)
	oldWorker, _ := r.start(t, before, "worker")
	_, oldAPI := r.start(t, before, "api")
	for n := range 8 {
		r.create(t, oldAPI, n)
	}
	r.crowd(t, before, 5000)

	newWorker, _ := r.start(t, both, "worker")
	dbtest.Eventually(t, "both workers register", func() bool { return dbtest.QueryOne[int64](t, r.DB, "SELECT count(*) FROM mailhook.workers") == 2 })
	host, _ := os.Hostname()
	_, stderr, code := mailhook(t, r.env(both), "keys", "rotate")
	if want := fmt.Sprintf("%s (pid %d)", host, oldWorker.Process.Pid); code != 1 || !strings.Contains(stderr, want) || strings.Contains(stderr, strconv.Itoa(newWorker.Process.Pid)) || !strings.Contains(stderr, newID) {
		t.Fatalf("exit %d, and it does not name %s:\n%s", code, want, stderr)
	}
	if current := dbtest.QueryOne[string](t, r.DB, "SELECT secret_key_id FROM mailhook.installation"); current != oldID {
		t.Fatalf("a refused rotation has moved the key to %s", current)
	}
	if err := oldWorker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	oldWorker.Wait()
	_, newAPI := r.start(t, both, "api")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	load := r.load(ctx, t, newAPI)
	// A value that somebody has locked is passed over, again and again: the rotation does not end before it is killed.
	hold, err := r.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback(t.Context())
	if _, err := hold.Exec(t.Context(), "SELECT FROM mailhook.subscription_secrets WHERE key_id = $1 LIMIT 1 FOR UPDATE", oldID); err != nil {
		t.Fatal(err)
	}
	first := command(t, r.env(both), "keys", "rotate")
	killAfterLines(t, first, 2)
	hold.Rollback(t.Context())
	left := func() int64 {
		return dbtest.QueryOne[int64](t, r.DB, `SELECT (SELECT count(*) FROM mailhook.subscription_secrets WHERE key_id <> $1) + (SELECT count(*) FROM mailhook.subscription_credentials WHERE key_id <> $1)`, newID)
	}
	if n := left(); n == 0 || n > 5100 {
		t.Errorf("%d values are left after a rotation that was killed", n)
	}
	request(t, r.admin, http.MethodPost, "http://"+oldAPI+"/v1/subscriptions/"+r.ids[0]+"/rotate-secret", "{}", http.StatusServiceUnavailable, nil)
	out, stderr, code := mailhook(t, r.env(both), "keys", "rotate", "--json")
	var done db.Rotation
	if err := json.Unmarshal([]byte(out), &done); err != nil || code != 0 || done.KeyID != newID || done.Resealed == 0 || len(done.Unopened) != 0 || len(done.RemovableKeyIDs) != 1 || done.RemovableKeyIDs[0] != oldID {
		t.Errorf("exit %d, %v\n%s%s", code, err, out, stderr)
	}
	if n := left(); n != 0 {
		t.Errorf("%d values are left", n)
	}
	seen, _ := r.ledger.counts()
	dbtest.Eventually(t, "deliveries go on", func() bool { n, _ := r.ledger.counts(); return n > seen+200 })
	cancel()
	if err := load.Wait(); err != nil {
		t.Error(err)
	}
	r.judge(t)

	// Only the new key is needed, and the old one alone is of no use.
	_, stderr, code = mailhook(t, r.env(before), "worker")
	if code != 1 || !strings.Contains(stderr, "lacks the master key "+newID) {
		t.Errorf("exit %d\n%s", code, stderr)
	}
	newWorker.Process.Signal(syscall.SIGTERM)
	newWorker.Wait()
	r.start(t, after, "worker")
	seen, _ = r.ledger.counts()
	r.Exec(t, "SELECT mailhook.emit('email.sent', account_id => 'acme')")
	dbtest.Eventually(t, "delivered with the new key alone", func() bool { n, _ := r.ledger.counts(); return n >= seen+len(r.ids) })
	r.judge(t)
	out, _, code = mailhook(t, r.env(both), "key", "rotate")
	if code != 0 || !strings.Contains(out, "nothing to do") || !strings.Contains(out, oldID) {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func (r *rotating) judge(t *testing.T) {
	t.Helper()
	dbtest.Eventually(t, "nothing left to do", func() bool {
		return dbtest.QueryOne[int64](t, r.DB, "SELECT (SELECT count(*) FROM mailhook.outbox) + (SELECT count(*) FROM mailhook.deliveries)") == 0
	})
	if n := dbtest.QueryOne[int64](t, r.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome <> 'ok'"); n != 0 {
		t.Errorf("%d attempts failed, %d of them for want of a secret", n, dbtest.QueryOne[int64](t, r.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'no_secret'"))
	}
	if received, wrong := r.ledger.counts(); len(wrong) > 0 {
		t.Errorf("%d of %d requests are wrong: %s", len(wrong), received, wrong[0])
	}
}

// killAfterLines kills a process when it has written so many lines to its standard error.
func killAfterLines(t *testing.T, cmd *exec.Cmd, lines int) {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(stderr)
	for range lines {
		if !scanner.Scan() {
			t.Fatal("it ended before")
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
}

// Values that do not open stay as they are, and are named; the others are sealed anew.
func TestRotationLeavesWhatItCannotOpen(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	r := &rotating{DB: d}
	before, after, lost := db.NewMasterKey(), db.NewMasterKey(), db.NewMasterKey()
	r.Exec(t, "UPDATE mailhook.installation SET secret_key_id = $1", keyID(t, before))
	r.crowd(t, before, 20)
	r.crowd(t, lost, 1)
	r.Exec(t, "UPDATE mailhook.subscription_secrets SET sealed = sealed || '\\x00' WHERE id = (SELECT min(id::text)::uuid FROM mailhook.subscription_secrets WHERE key_id = $1)", keyID(t, before))
	rows := dbtest.QueryOne[[]uuid.UUID](t, d, `SELECT array_agg(subscription_id ORDER BY key_id = $1) FROM mailhook.subscription_secrets
		WHERE key_id = $1 OR id = (SELECT min(id::text)::uuid FROM mailhook.subscription_secrets WHERE key_id = $2)`, keyID(t, lost), keyID(t, before))
	for range 2 { // the second time nothing else is left
		out, stderr, code := mailhook(t, r.env(after+","+before), "keys", "rotate")
		if code != 1 || !strings.Contains(stderr, "2 sealed values could not be opened") {
			t.Errorf("exit %d\n%s", code, stderr)
		}
		for _, id := range rows {
			if !strings.Contains(out, "secret of "+db.FormatID(db.SubscriptionPrefix, id)) {
				t.Errorf("it does not name %v:\n%s", id, out)
			}
		}
		if strings.Contains(out, "not needed any more") {
			t.Errorf("the old key is still needed:\n%s", out)
		}
	}
	if n := dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.subscription_secrets WHERE key_id = $1", keyID(t, after)); n != 19 {
		t.Errorf("%d values are sealed anew", n)
	}
	_, stderr, code := mailhook(t, r.env(lost), "keys", "rotate")
	if code != 1 || !strings.Contains(stderr, "lacks the master key "+keyID(t, after)) {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func TestMasterKeysFromAFile(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	r := &rotating{DB: d}
	one, two := db.NewMasterKey(), db.NewMasterKey()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(one+"\n"+two+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL, "MAILHOOK_SECRET_KEY_FILE=" + file}
	out, stderr, code := mailhook(t, env, "keys", "rotate", "--json")
	if code != 0 || !strings.Contains(out, keyID(t, one)) {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	for _, c := range []struct {
		env  []string
		says string
	}{
		{append(env, "MAILHOOK_SECRET_KEY="+one), "both set"},
		{append(env, "MAILHOOK_SECRET_KEY_FILE="+file+".not"), "no such file"},
		{append(env, "MAILHOOK_SECRET_KEY_FILE=/dev/null"), "32 bytes in base64"},
		{r.env(one + ",garbage-garbage"), "key 2 of 2"},
		{r.env(""), "no master key"},
	} {
		for _, args := range [][]string{{"keys", "rotate"}, {"worker"}, {"api"}, {"serve"}} {
			_, stderr, code := mailhook(t, c.env, args...)
			if code != 2 || !strings.Contains(stderr, c.says) || strings.Contains(stderr, one) || strings.Contains(stderr, "garbage") {
				t.Errorf("%v: exit %d, want %q:\n%s", args, code, c.says, stderr)
			}
		}
	}
	// Neither shows in a help text.
	for _, command := range []string{"worker", "api", "serve"} {
		if out, stderr, _ := mailhook(t, r.env(one), command, "--help"); strings.Contains(out+stderr, one) {
			t.Errorf("%s --help tells the key", command)
		}
	}
}

// Keys in the wrong order: nothing is done, and nobody is told to take away the key that was to come.
func TestARotationSaysThatTheKeysAreInTheWrongOrder(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	r := &rotating{DB: d}
	before, after := db.NewMasterKey(), db.NewMasterKey()
	oldID, newID := keyID(t, before), keyID(t, after)
	rotate := func(wantCode int, keys string, says ...string) {
		t.Helper()
		out, stderr, code := mailhook(t, r.env(keys), "keys", "rotate")
		for _, s := range says {
			if code != wantCode || !strings.Contains(out+stderr, s) {
				t.Errorf("exit %d, want %d, with %q:\n%s%s", code, wantCode, s, out, stderr)
			}
		}
		removable := fmt.Sprintf("not needed any more, to be taken out of MAILHOOK_SECRET_KEY: %s\n", oldID)
		if strings.Contains(out, "not needed") && !strings.Contains(out, removable) {
			t.Errorf("another key than the old one may go:\n%s", out)
		}
	}
	rotate(0, before+","+after, "the first of this installation", "has sealed nothing yet: "+newID)
	r.crowd(t, before, 3)
	for range 2 {
		rotate(1, before+","+after, "the one in use already, "+oldID+": to rotate to "+newID+", put it first")
	}
	rotate(0, before, "nothing to do")
	rotate(0, after+","+before, "3 values sealed anew", "not needed any more")
	rotate(0, after+","+before, "nothing to do", "not needed any more")
	rotate(1, after+","+before+","+db.NewMasterKey(), "put it first", "not needed any more")
}

func TestMasterKeyIDs(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	r := &rotating{DB: d}
	one, two, lost := db.NewMasterKey(), db.NewMasterKey(), db.NewMasterKey()
	ids := func(keys string) (all masterKeyIDs) {
		t.Helper()
		out, stderr, code := mailhook(t, r.env(keys), "keys", "ids", "--json")
		if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 {
			t.Fatalf("exit %d, %v\n%s%s", code, err, out, stderr)
		}
		return all
	}
	if all := ids(one); all.KeyID != "" || len(all.Keys) != 1 || all.Keys[0].IsInUse {
		t.Errorf("before the first start: %+v", all)
	}
	r.Exec(t, "UPDATE mailhook.installation SET secret_key_id = $1", keyID(t, one))
	r.crowd(t, one, 3)
	r.crowd(t, lost, 1)
	all := ids(two + "," + one)
	first, second := 1, 2
	want := masterKeyIDs{keyID(t, one), []masterKeyID{{keyID(t, two), &first, false, 0}, {keyID(t, one), &second, true, 3}, {keyID(t, lost), nil, false, 1}}}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("%+v, want %+v", all, want)
	}
	// As docs/operations.md derives it.
	key, _ := base64.StdEncoding.DecodeString(one)
	if sum := sha256.Sum256(key); all.KeyID != hex.EncodeToString(sum[:4]) {
		t.Error(all.KeyID)
	}
	out, _, code := mailhook(t, r.env(two), "keys", "ids")
	lines := strings.Split(out, "\n")
	if code != 0 || len(lines) != 5 || !strings.Contains(lines[2], "missing") || !strings.Contains(lines[2], "seals") || strings.Contains(out, two) {
		t.Errorf("exit %d\n%s", code, out)
	}
}
