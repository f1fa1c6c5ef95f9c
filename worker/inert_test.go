package worker

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

// hostileTexts are what strangers may write, in events and in answers.
func hostileTexts() []string {
	return []string{
		"<script>alert(1)</script>", "\x1b[31mred\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "\u009b31m", "abc\u202egnp.exe", "\u2066isolated\u2069\u200f",
		`"},{"forged":true,"x":"`, `\`, `\"`, "line\u2028separator\u2029", "line\nforged: header\r\n\r\n", "\x7f\b", "\U000e0041tag", "\ufeffmark", strings.Repeat("long ", 100), "'; DROP SCHEMA mailhook; --",
	}
}

// Whatever an event and an answer hold, the body is JSON with the same text, both signatures are right, and the attempt
// is recorded with the bytes that came.
func TestHostileTextsAreDeliveredAndRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	answers := append(hostileTexts(), "a\x00b", "\x9b31m", "bad \xff\xfe utf-8 \xed\xa0\x80", strings.Repeat("\x00", 5000))
	next := 0
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) {
		b.mu.Lock()
		answer := answers[next%len(answers)]
		next++
		b.mu.Unlock()
		w.Write([]byte(answer))
	})
	b.subscribe(t, "/", "email", "name = E'\\x1b[31m\\u202e<script>'")
	b.run(t, b.config())
	for _, text := range hostileTexts() {
		data, err := json.Marshal(map[string]string{"reason": text, text: "key"})
		if err != nil {
			t.Fatal(err)
		}
		b.Exec(t, `INSERT INTO mailhook.outbox (event_type, recipient, message_id, campaign_id, sending_domain, sending_node, bridge, dedupe_key, data)
			VALUES ('email.failed', $1, $1, $1, $1, $1, $1, $1, $2)`, text, data)
	}
	// Half of a surrogate pair is JSON by its grammar, and no text.
	b.Exec(t, `INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.failed', '{"reason": "\ud800", "\udc00": 1}' FROM generate_series(1, 4)`)
	b.settled(t)

	receipts := b.waitFor(t, len(answers))
	if quarantined := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.quarantine"); quarantined != 0 || len(receipts) != len(answers) {
		t.Errorf("%d receipts of %d, %d quarantined", len(receipts), len(answers), quarantined)
	}
	var recipients []string
	for _, r := range receipts {
		var body struct{ Data map[string]any }
		if err := json.Unmarshal(r.Body, &body); r.Problem != nil || err != nil {
			t.Errorf("%v, %v: %q", r.Problem, err, r.Body)
		}
		recipient, ok := body.Data["recipient"].(string)
		if !ok {
			continue
		}
		recipients = append(recipients, recipient)
		if body.Data["reason"] != recipient || body.Data[recipient] != "key" || body.Data["bridge"] != recipient {
			t.Errorf("%q became %q", recipient, r.Body)
		}
	}
	sameTexts(t, "recipients", recipients, hostileTexts())
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'ok' AND ended_as = 'delivered' AND number = 1"); n != int64(len(answers)) {
		t.Errorf("%d attempts are recorded as delivered", n)
	}
	answers[len(answers)-1] = answers[len(answers)-1][:4096]
	var kept []string
	for _, excerpt := range dbtest.QueryOne[[][]byte](t, b.DB, "SELECT array_agg(response_excerpt) FROM mailhook.attempts") {
		kept = append(kept, string(excerpt))
	}
	sameTexts(t, "excerpts", kept, answers)
}

func sameTexts(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
