package worker

import (
	"encoding/json"
	"net/http"
	"testing"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

func TestAnEventReachesItsSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/hook", "email.delivered")
	b.run(t, b.config())
	id := dbtest.QueryOne[string](t, b.DB, `SELECT mailhook.emit('email.delivered', recipient => 'r@example.com', message_id => 'abc',
		occurred_at => '2024-01-15T10:30:00Z', data => '{"b": 1, "a": [1, 2], "empty": "", "nothing": null}')`)
	r := b.waitFor(t, 1)[0]
	if r.Problem != nil {
		t.Error(r.Problem)
	}
	if r.ID != id {
		t.Errorf("webhook-id %s, emit answered %s", r.ID, id)
	}
	want := `{"id":"` + id + `","type":"email.delivered","timestamp":"2024-01-15T10:30:00.000Z","data":{"recipient":"r@example.com","message_id":"abc","b":1,"a":[1, 2]}}`
	if string(r.Body) != want || !json.Valid(r.Body) {
		t.Errorf("body\n%s\nwant\n%s", r.Body, want)
	}
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'ok' AND ended_as = 'delivered'"); n != 1 {
		t.Errorf("%d delivered attempts", n)
	}
}

// A login of the API reads the schema's version, too, and would fail at each statement.
func TestALoginOfTheAPIIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config := b.config()
	config.DatabaseURL = b.As("mailhook_api")
	const want = "the database role mailhook_api lacks INSERT on mailhook.attempts: GRANT mailhook_worker TO mailhook_api"
	if _, err := New(t.Context(), config); err == nil || err.Error() != want {
		t.Error(err)
	}
}

// A worker that finds a backlog at its start is ready when it has taken of it, not when it has come to its end.
func TestAWorkerWithABacklogIsReady(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 100")
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 20)")
	came, release := make(chan struct{}, 20), make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { came <- struct{}{}; <-release })
	c := b.config()
	c.MaxInFlight = 4
	w, _ := b.run(t, c)
	// Dispatch may use three slots of the four, and does not look again before one of them is free.
	for range 3 {
		<-came
	}
	if err := w.Ready(); err != nil {
		t.Error(err)
	}
	close(release)
	b.settled(t)
}
