package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"mailhook/db"
)

// churn changes subscriptions through the real API while they are delivered to: delete, pause, resume, URL, rotation,
// replay. The stable ones beside them must not notice.
func churn() scenario {
	return scenario{
		name: "churn", what: "concurrent delete, pause, URL change, rotate and replay while delivering", ci: true,
		workers: 2, load: usualLoad(), drain: 2 * time.Minute,
		market: func(ctx context.Context, f *field) error {
			if err := f.populate(ctx); err != nil {
				return err
			}
			for i := range accounts {
				if _, err := f.subscribe(ctx, churned(i)); err != nil {
					return err
				}
			}
			return nil
		},
		run: func(ctx context.Context, f *field) error {
			api, err := f.startAPI(ctx)
			if err != nil {
				return err
			}
			random, done := f.random("nemesis"), map[string]int{}
			for end := time.Now().Add(max(10*time.Second, f.seconds(40))); time.Now().Before(end); {
				if err := f.change(ctx, api, random, done); err != nil {
					return err
				}
				if !pause(ctx, time.Duration(20+random.IntN(60))*time.Millisecond) {
					return ctx.Err()
				}
			}
			f.note("%v", done)
			return f.resumeAll(ctx, api)
		},
	}
}

// churned is a subscription that will be changed; one request in five fails, so that there are retries to cancel.
func churned(i int) *subscription {
	return &subscription{account: account(i % accounts), types: []string{"*"}, churned: true, behaviour: behaviour{flaky: 0.2}}
}

// An api is the real one, with an admin's key.
type api struct {
	process *process
	key     string
}

func (f *field) startAPI(ctx context.Context) (*api, error) {
	p, err := f.startProcess(ctx, "api", "--api-rate-limit", "0")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, f.binary, "key", "create") //nolint:gosec // ours
	cmd.Env = f.environment()
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("mailhook key create: %w", err)
	}
	words := strings.Fields(string(out))
	return &api{p, words[len(words)-1]}, nil
}

// do makes a request and wants a 2xx.
func (a *api) do(ctx context.Context, method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+a.process.address+"/v1/subscriptions/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+a.key)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // read to its end
	got, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %d %s", method, path, answer.StatusCode, got)
	}
	return err
}

// change makes one random change to one subscription.
func (f *field) change(ctx context.Context, a *api, random *rand.Rand, done map[string]int) error {
	var candidates []*subscription
	for _, s := range f.everySubscription() {
		if s.churned && !s.isDeleted() {
			candidates = append(candidates, s)
		}
	}
	s := candidates[random.IntN(len(candidates))]
	id := db.FormatID(db.SubscriptionPrefix, s.id)
	what := []string{"delete", "pause", "pause", "URL", "rotate", "replay"}[random.IntN(6)]
	if s.isPaused() {
		what = "resume"
	}
	done[what]++
	switch what {
	case "delete":
		if err := a.do(ctx, http.MethodDelete, id, nil); err != nil {
			return err
		}
		s.close()
		s.deleted.Store(true)
		_, err := f.subscribe(ctx, churned(random.IntN(accounts)))
		return err
	case "pause":
		err := a.do(ctx, http.MethodPost, id+"/pause", nil)
		s.close()
		return err
	case "resume":
		s.reopen()
		return a.do(ctx, http.MethodPost, id+"/resume", nil)
	case "URL":
		url := fmt.Sprintf("%s/v%d", f.receiver.path(s.number), random.IntN(1000))
		return a.do(ctx, http.MethodPatch, id, map[string]any{"channel": map[string]string{"url": url}})
	case "rotate":
		secret := fmt.Sprintf("secret of subscription %d, number %d", s.number, random.Int64())
		s.mu.Lock()
		s.secrets = append([]string{secret}, s.secrets...)
		s.mu.Unlock()
		return a.do(ctx, http.MethodPost, id+"/rotate-secret", map[string]string{"secret": secret})
	default:
		err := a.do(ctx, http.MethodPost, id+"/replay", map[string]any{
			"since": time.Now().Add(-5 * time.Second).UTC().Format(time.RFC3339Nano), "status": "all", "rate_per_second": 100})
		if err != nil && strings.Contains(err.Error(), ": 409 ") {
			return nil // one is running
		}
		return err
	}
}

func (f *field) resumeAll(ctx context.Context, a *api) error {
	for _, s := range f.everySubscription() {
		if s.isPaused() {
			s.reopen()
			if err := a.do(ctx, http.MethodPost, db.FormatID(db.SubscriptionPrefix, s.id)+"/resume", nil); err != nil {
				return err
			}
		}
	}
	// Replays have no deliveries yet of what they have not come to.
	return eventually(ctx, time.Minute, "all replays are done", func() (bool, error) {
		n, err := f.count(ctx, "SELECT count(*) FROM mailhook.replays WHERE state = 'running'")
		return n == 0, err
	})
}

// close notes that from now on nothing should come.
func (s *subscription) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = append(s.closed, interval{from: time.Now()})
}

func (s *subscription) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed[len(s.closed)-1].to = time.Now()
}

func (s *subscription) isPaused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.closed) > 0 && s.closed[len(s.closed)-1].to.IsZero() && !s.deleted.Load()
}

func (s *subscription) isDeleted() bool { return s.deleted.Load() }
