package main

import (
	"net/http"
	"testing"
)

// misuse sends what must be refused, with canaries in all the wrong places.
func (h *haunt) misuse(t *testing.T) {
	t.Helper()
	path := "/v1/subscriptions/" + h.ids["ok"]
	channel := func(value anyMap) anyMap { return anyMap{"channel": value} }
	for _, body := range []any{
		channel(anyMap{"headers": anyMap{"X-A": canaryHeader + "\r\nX: y"}}),
		channel(anyMap{"headers": anyMap{"X-A": []string{canaryHeader}}}),
		channel(anyMap{"headers": canaryHeader}),
		channel(anyMap{"headers": anyMap{"Host": canaryHeader}}),
		channel(anyMap{"auth": canaryPassword}),
		channel(anyMap{"auth": anyMap{"type": canaryPassword}}),
		channel(anyMap{"auth": anyMap{"type": "basic", "username": canaryPassword + ":", "password": canaryPassword + "\n"}}),
		channel(anyMap{"auth": anyMap{"type": "basic", "username": "u", "password": anyMap{"is": canaryPassword}}}),
		channel(anyMap{"auth": anyMap{"type": "bearer", "token": canaryToken + " " + canaryToken}}),
		channel(anyMap{"url": "https://u:" + canaryPassword + "@example.com/?token=" + canaryURL}),
		channel(anyMap{"url": canaryURL}),
		channel(anyMap{"url": "https://10.0.0.1/" + canaryURL, "type": canaryToken}),
		`{"channel": {"auth": {"token": "` + canaryToken + `"`,
		`{"channel": {"auth": {"token": "` + canaryToken + `" x}}}`,
		`"` + canaryToken + `"`,
	} {
		if _, status := h.ask(t, "PATCH", path, body); status != 422 && status != 400 {
			t.Errorf("%v: %d", body, status)
		}
	}
	for _, body := range []any{anyMap{"secret": canarySecret + "\n"}, anyMap{"secret": "whsec_" + canarySecret}, anyMap{"secret": []string{canarySecret}}, anyMap{"secret": canarySecret, "grace": canarySecret}} {
		if _, status := h.ask(t, "POST", path+"/rotate-secret", body); status != 422 {
			t.Errorf("%v: %d", body, status)
		}
	}
	h.must(t, http.StatusOK, "POST", path+"/rotate-secret", anyMap{"secret": canarySecret2, "grace": "1h"}, canarySecret2, canaryURL)
	h.must(t, http.StatusOK, "PATCH", path, channel(anyMap{"auth": anyMap{"type": "basic", "username": "u", "password": canaryPassword}, "headers": anyMap{"X-Other": canaryHeader}}), canaryURL)
}

// breakURLs gives connection strings that cannot be read, or lead nowhere.
func (h *haunt) breakURLs(t *testing.T) {
	t.Helper()
	for _, url := range []string{
		"postgres://u:" + canaryDatabase + "@127.0.0.1:port/x", "postgres://u:" + canaryDatabase + "/x@127.0.0.1/y", "u:" + canaryDatabase + "@127.0.0.1/x",
		"host=127.0.0.1 port=1 user=u password=" + canaryDatabase, "host=127.0.0.1 port=x user=u password=" + canaryDatabase, "password='" + canaryDatabase,
		"postgres://u:" + canaryDatabase + "@127.0.0.1:1/x", "postgres://u:" + canaryDatabase + "%zz@127.0.0.1/x", "postgres://u:" + canaryDatabase + "@127.0.0.1/x?sslmode=perhaps",
		"postgres://haunted:" + canaryDatabase + "@" + h.server.Addr() + "/no_such_database", "password=" + canaryDatabase + " nonsense",
	} {
		for _, args := range [][]string{{"status"}, {"worker"}, {"migrate", "up"}} {
			if _, code := h.run(t, append(h.env(), "MAILHOOK_DATABASE_URL="+url), args...); code == 0 {
				t.Errorf("%v took %s", args, url)
			}
		}
	}
}
