package worker

import (
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"
)

// The samples of the catalogue are what dispatch makes of them: a sample of a parent type is not taken for that of a leaf, and
// every one is sent with all of its fields and nothing else.
func TestSamplesKeepTheirTypes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "*,subscription")
	rows, _ := b.Pool.Query(t.Context(), `
		WITH written AS (
			INSERT INTO mailhook.outbox (event_type, data) SELECT t.name, t.sample FROM mailhook.event_types AS t RETURNING event_type, data
		)
		SELECT event_type, data::jsonb::text FROM written`)
	samples := map[string]string{}
	var name, sample string
	if _, err := pgx.ForEachRow(rows, []any{&name, &sample}, func() error { samples[name] = sample; return nil }); err != nil || len(samples) < 30 {
		t.Fatal(err, len(samples))
	}
	b.run(t, b.config())
	for _, r := range b.waitFor(t, len(samples)) {
		var body struct {
			Type string
			Data map[string]any
		}
		if err := json.Unmarshal(r.Body, &body); err != nil {
			t.Fatal(err)
		}
		var want map[string]any
		if err := json.Unmarshal([]byte(samples[body.Type]), &want); err != nil {
			t.Errorf("%s: %v, sent %s", body.Type, err, r.Body)
		}
		delete(samples, body.Type)
		got, _ := json.Marshal(body.Data)
		if sample, _ := json.Marshal(want); string(got) != string(sample) {
			t.Errorf("%s: sent %s, the sample is %s", body.Type, got, sample)
		}
	}
	if len(samples) > 0 {
		t.Errorf("became another type: %v", samples)
	}
}
