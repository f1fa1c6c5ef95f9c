package httpapi

import (
	"context"
	"testing"
)

// Two previews or counts of an account at a time, and four of all; who waits for others gets a place when one of theirs ends.
func TestScansAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	s := b.api.server.scans
	var ends []func()
	begin := func(account string) {
		t.Helper()
		end, err := s.begin(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	begin("acme")
	begin("acme")
	replay := object{"since": "2024-01-15T10:30:00Z", "status": "all", "dry_run": true}
	for path, body := range map[string]any{
		"/v1/subscriptions/preview":           object{"event_types": []string{"email"}},
		"/v1/subscriptions/" + id + "/replay": replay,
		"/v1/subscriptions":                   subscription(object{"backfill": "7d"}),
	} {
		r := b.send(t, b.acme, "POST", path, body)
		if r.status != 429 || r.body["type"] != "urn:mailhook:too_many_requests" || r.header.Get("Retry-After") != "1" {
			t.Errorf("%s: %d %s", path, r.status, r.text)
		}
	}
	b.must(t, 200, b.evil, "POST", "/v1/subscriptions/preview", object{"event_types": []string{"email"}})
	begin("evil")
	begin("evil")
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.begin(now, "other"); err == nil {
		t.Error("a fifth scan began")
	}
	for range maxScansOfAccount { // it has left no trace
		waited := make(chan error, 1)
		go func() {
			_, err := s.begin(t.Context(), "other")
			waited <- err
		}()
		ends[0]()
		ends = ends[1:]
		if err := <-waited; err != nil {
			t.Fatal(err)
		}
	}
	ends[0]()
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/replay", replay)
}
