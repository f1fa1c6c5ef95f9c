package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// What channels keep secret.
const (
	canaryUserKey  = "canaryUserKey0123456789uUuUuUu"
	canaryAPIToken = "canaryAPIToken0123456789aAaAaA"
	canaryHook     = "canary-incoming-webhook-path"
)

// newEcho stands for the services behind the channels: it repeats all that it gets.
func newEcho(t *testing.T) *httptest.Server {
	t.Helper()
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/pushover" {
			w.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprintf(w, "echo of http://%s%s: %s", r.Host, r.URL, body)
	}))
	t.Cleanup(echo.Close)
	return echo
}

// chat sends by the channels, whose services repeat the secrets.
func (h *haunt) chat(t *testing.T) {
	t.Helper()
	for name, channel := range map[string]anyMap{
		"http_4xx": {"type": "pushover", "user_key": canaryUserKey, "api_token": canaryAPIToken},
		"ok":       {"type": "slack", "url": h.echo + "/services/" + canaryHook + "?sig=" + canaryHook},
	} {
		created := h.must(t, http.StatusCreated, "POST", "/v1/subscriptions", anyMap{"account_id": "chat", "event_types": []string{"email"}, "secret": canarySecret, "channel": channel}, canarySecret)
		h.chats = append(h.chats, created["id"].(string))
		path := "/v1/subscriptions/" + created["id"].(string)
		h.must(t, http.StatusUnprocessableEntity, "PATCH", path, anyMap{"channel": anyMap{"user_key": canaryUserKey, "url": "ftp://" + canaryHook, "api_token": canaryAPIToken + " "}})
		h.must(t, http.StatusOK, "PATCH", path, anyMap{"name": "Chat", "channel": channel})
		h.testChat(t, created["id"].(string), name)
		h.must(t, http.StatusOK, "POST", path+"/test", anyMap{"preview": true})
	}
	h.run(t, h.env(), "emit", "email.sent", "--account", "chat")
	dbtest.Eventually(t, "both deliveries end", func() bool {
		return h.has(t, "SELECT count(*) = 2 FROM mailhook.attempts WHERE account_id = 'chat' AND ended_as IS NOT NULL")
	})
	if !h.has(t, "SELECT bool_and(response_excerpt LIKE 'echo of %***%') FROM mailhook.attempts WHERE account_id = 'chat'") {
		t.Error("the services did not echo: the test shows less than it means to")
	}
	for _, list := range []string{"subscriptions", "deliveries"} {
		for _, row := range h.must(t, http.StatusOK, "GET", "/v1/"+list+"?account_id=chat", nil)["data"].([]any) {
			h.must(t, http.StatusOK, "GET", "/v1/"+list+"/"+row.(anyMap)["id"].(string), nil)
		}
	}
}

func (h *haunt) testChat(t *testing.T, id, want string) {
	t.Helper()
	if answer := h.must(t, http.StatusOK, "POST", "/v1/subscriptions/"+id+"/test", "{}"); answer["outcome"] != want {
		t.Errorf("test send: %v, want %s", answer, want)
	}
}

// chatAgain shows that a rotation has sealed what channels keep, too.
func (h *haunt) chatAgain(t *testing.T) {
	t.Helper()
	for _, public := range h.chats {
		id, err := db.ParseID(db.SubscriptionPrefix, public)
		if err != nil {
			t.Fatal(err)
		}
		want := "ok"
		if h.has(t, "SELECT channel_type = 'pushover' FROM mailhook.subscriptions WHERE id = $1", id) {
			want = "http_4xx"
		}
		h.testChat(t, public, want)
	}
}
