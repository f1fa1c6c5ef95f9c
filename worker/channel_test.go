package worker

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// A service is what stands for those of third parties: it answers by path, and keeps what came.
type service struct {
	*httptest.Server
	mu       sync.Mutex
	requests map[string][]serviceRequest
}

type serviceRequest struct {
	header http.Header
	body   string
}

func newService(t *testing.T, answer func(http.ResponseWriter, *http.Request)) *service {
	t.Helper()
	s := &service{requests: map[string][]serviceRequest{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.requests[r.URL.Path] = append(s.requests[r.URL.Path], serviceRequest{r.Header, string(body)})
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) got(path string) []serviceRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[path]
}

// subscribeTo makes a subscription of another channel than web, as the API stores it.
func (b *bundle) subscribeTo(t *testing.T, channel, url string, secrets map[string]string, set ...string) uuid.UUID {
	t.Helper()
	id := b.subscribe(t, "", "email", append(set, fmt.Sprintf("channel_type = '%s', format = '%s', url = '%s', channel_settings = '{\"priority\": \"1\"}'", channel, channel, url))...)
	text, err := json.Marshal(secrets)
	if err != nil {
		t.Fatal(err)
	}
	key := b.keyring.First()
	b.Exec(t, "INSERT INTO mailhook.subscription_credentials (subscription_id, kind, key_id, sealed) VALUES ($1, 'channel', $2, $3)", id, key.ID, key.Seal(db.SealedChannel, id, text))
	return id
}

func TestPushover(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reset := time.Now().Add(30 * time.Minute).Unix()
	server := newService(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Limit-App-Reset", fmt.Sprint(reset)) // as with every answer of theirs
		var status int
		var answer string
		fmt.Sscanf(strings.TrimPrefix(r.URL.Path, "/"), "%d", &status)
		switch status {
		case 200:
			answer = `{"status":1,"request":"647d2300"}`
		case 299:
			status, answer = 200, `<html>please log in</html>`
		default:
			answer = `{"status":0,"errors":["application token aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa is invalid"]}`
		}
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	})
	secrets := map[string]string{"api_token": strings.Repeat("a", 30), "user_key": strings.Repeat("u", 30)}
	ids := map[int]uuid.UUID{}
	for _, status := range []int{200, 299, 400, 404, 410, 429, 500, 503} {
		ids[status] = b.subscribeTo(t, "pushover", fmt.Sprintf("%s/%d", server.URL, status), secrets, "retry_schedule = '{1s,1h}', retry_jitter = 0, suspend_when_exhausted = true")
	}
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.delivered', recipient => 'r@example.com')")
	dbtest.Eventually(t, "each is attempted", func() bool {
		return dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.attempts WHERE number = 1") == len(ids)
	})
	for status, want := range map[int]string{
		200: "ok delivered", 299: "bad_response", 400: "http_4xx exhausted permanent", 404: "http_4xx exhausted permanent", 410: "http_410 exhausted permanent",
		429: "http_429", 500: "http_5xx", 503: "http_5xx",
	} {
		if got := dbtest.QueryOne[string](t, b.DB, "SELECT concat_ws(' ', outcome, ended_as, ended_reason) FROM mailhook.attempts WHERE subscription_id = $1 AND number = 1", ids[status]); got != want {
			t.Errorf("%d: %q, want %q", status, got, want)
		}
		dead := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.dead_letters WHERE subscription_id = $1 AND reason = 'permanent' AND attempt = 1", ids[status])
		if strings.HasSuffix(want, "permanent") != (dead == 1) {
			t.Errorf("%d: %d dead letters", status, dead)
		}
		// A refusal for good is no end of a schedule: the subscription goes on, but for 410.
		wantStatus := "active"
		if status == 410 {
			wantStatus = "suspended"
		}
		if got := dbtest.QueryOne[string](t, b.DB, "SELECT status FROM mailhook.subscriptions WHERE id = $1", ids[status]); got != wantStatus {
			t.Errorf("%d: %s, want %s", status, got, wantStatus)
		}
		request := server.got(fmt.Sprintf("/%d", status))[0]
		if request.header.Get("Content-Type") != "application/x-www-form-urlencoded" || !strings.Contains(request.body, "token="+secrets["api_token"]+"&user="+secrets["user_key"]) ||
			!strings.Contains(request.body, "priority=1") {
			t.Errorf("%d: %v", status, request)
		}
		for _, name := range []string{"Webhook-Id", "Webhook-Signature", "X-Signature"} {
			if request.header.Get(name) != "" {
				t.Errorf("%d: %s goes to a third party", status, name)
			}
		}
	}
	// Pushover wants no second attempt within 5 s; of the monthly limit it says when it ends.
	for status, least := range map[int]string{500: "5 seconds", 503: "5 seconds", 429: "25 minutes"} {
		if !dbtest.QueryOne[bool](t, b.DB, `SELECT bool_and(d.next_attempt_at >= a.started_at + $2::interval) FROM mailhook.deliveries AS d JOIN mailhook.attempts AS a ON a.delivery_id = d.id AND a.number = d.attempt
			WHERE d.subscription_id = $1`, ids[status], least) {
			t.Errorf("%d: tried again too early", status)
		}
	}
	if text := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(encode(response_excerpt, 'escape'), ' ') FROM mailhook.attempts"); strings.Contains(text, secrets["api_token"]) || !strings.Contains(text, "application token *** is invalid") {
		t.Error("excerpts:", text)
	}
}

func TestTheURLOfSlackAndTeamsIsASecret(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const path, token = "/services/T0001/B0001/abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwx"
	server := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/teams") {
			w.WriteHeader(http.StatusAccepted)
		}
		fmt.Fprintf(w, "ok %s%s %s", "http://"+r.Host, r.URL, token)
	})
	b.subscribeTo(t, "slack", "https://hooks.example.com/…", map[string]string{"url": server.URL + path})
	b.subscribeTo(t, "teams", "https://hooks.example.com/…", map[string]string{"url": server.URL + "/teams" + path})
	incomplete := b.subscribeTo(t, "slack", server.URL+"/not-here", map[string]string{"url": server.URL + "/not-here"}, "retry_schedule = '{1h}'")
	b.Exec(t, "DELETE FROM mailhook.subscription_credentials WHERE subscription_id = $1", incomplete)
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.clicked', recipient => 'r@example.com', data => '{\"link_url\":\"https://example.com/offer\"}')")
	dbtest.Eventually(t, "each is attempted", func() bool {
		return dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.attempts") == 3
	})
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(outcome, ' ' ORDER BY outcome) FROM mailhook.attempts"); got != "no_secret ok ok" {
		t.Error(got)
	}
	for _, at := range []string{path, "/teams" + path} {
		if got := server.got(at); len(got) != 1 || !json.Valid([]byte(got[0].body)) || !strings.Contains(got[0].body, "r@example.com clicked https://example.com/offer in a message") {
			t.Errorf("%s: %v", at, got)
		}
	}
	if text := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(encode(response_excerpt, 'escape'), ' ') FROM mailhook.attempts"); strings.Contains(text, token) || !strings.Contains(text, "ok ***") {
		t.Error("excerpts:", text)
	}
}
