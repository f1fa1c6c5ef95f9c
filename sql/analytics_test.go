package sql_test

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

// Known numbers of one account. Days are apart by whole days, whenever the test runs.
const analyticsEvents = `
INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, message_id, campaign_id, duplicate_of, data)
SELECT now() - ago::interval, nextval('mailhook.outbox_id_seq'), account, event_type, now(), now(), recipient, nullif(campaign, 'no-id') || '-' || i, campaign,
  CASE WHEN event_type = 'email.queued' THEN 'evt_1' END, json_build_object('link_url', link)
FROM (VALUES
  -- A campaign of 40 minutes ago, opened by one of four; two of yesterday's, opened by all.
  ('acme', 'email.delivered',          4, '40 minutes',          '123', 'a@usual.example', NULL),
  ('acme', 'email.opened',             1, '30 minutes',          '123', 'a@usual.example', NULL),
  ('acme', 'email.opened',             3, '5 minutes',           '8',   'a@usual.example', NULL),
  ('acme', 'email.delivered',          2, '20 hours',            '7',   'a@usual.example', NULL),
  ('acme', 'email.opened.newsletter',  2, '19 hours 50 minutes', '7',   'a@usual.example', NULL),
  ('acme', 'email.clicked',            2, '10 minutes',          '123', 'a@usual.example', 'https://example.com/a'),
  ('acme', 'email.clicked.newsletter', 1, '9 minutes',           '123', 'a@usual.example', 'https://example.com/a'),
  ('acme', 'email.clicked',            1, '8 minutes',           '123', 'a@usual.example', 'https://example.com/b'),
  ('acme', 'email.bounced.hard',      12, '10 minutes',          '9',   'a@Spike.example', NULL),
  ('acme', 'email.bounced.soft',       1, '10 minutes',          '9',   'a@usual.example', NULL),
  ('acme', 'email.bounced.soft',      24, '10 hours',            '9',   'a@usual.example', NULL),
  ('acme', 'email.unsubscribed',      21, '1 minute',            '9',   'a@usual.example', NULL),
  ('acme', 'email.unsubscribed',       2, '2 days 1 minute',     '9',   'a@usual.example', NULL),
  ('acme', 'email.complained',         5, '50 minutes',          '9',   'a@usual.example', NULL),
  -- What is written twice counts once.
  ('acme', 'email.queued',             9, '1 minute',            '123', 'a@usual.example', NULL),
  -- Of a campaign whose messages have no id there is no rate.
  ('acme', 'email.delivered',          3, '45 minutes',          'no-id', 'a@usual.example', NULL),
  ('calm', 'email.delivered',          3, '45 minutes',          'no-id', 'a@usual.example', NULL),
  ('calm', 'email.unsubscribed',      20, '1 minute',            '1',   'a@usual.example', NULL),
  ('calm', 'email.complained',         4, '1 minute',            '1',   'a@usual.example', NULL),
  ('calm', 'email.bounced.hard',       9, '1 minute',            '1',   'a@usual.example', NULL),
  ('calm', 'email.delivered',          1, '40 minutes',          '1',   'a@usual.example', NULL)
) AS given (account, event_type, n, ago, campaign, recipient, link)
CROSS JOIN LATERAL generate_series(1, n) AS i;
INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at)
SELECT '2024-02-02 12:00+00', nextval('mailhook.outbox_id_seq'), 'books', 'email.sent', now(), now() FROM generate_series(1, 3);
INSERT INTO mailhook.event_counts VALUES
  ('books', '2024-01-01', 'email.sent', '', '', 'a.example', 600), ('books', '2024-01-01', 'email.sent', '', '', 'b.example', 400),
  ('books', '2024-01-03', 'email.sent', '', '', '', 7), ('books', '2024-01-09', 'email.sent', '', '', '', 1);
INSERT INTO mailhook.detached_days (day) VALUES ('2024-01-03')`

// The queries of docs/analytics.md answer what they say, to a role that has what the page grants.
func TestAnalytics(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, analyticsEvents)
	queries := analyticsQueries(t)
	reader := dashboards(t, d, queries["Dashboards, alerts and aggregates, in SQL"])
	for heading, want := range map[string]string{
		"Live open rate":        "9 0 0 -; no-id 0 0 -; 123 4 1 25.0; 7 2 2 100.0; 8 0 3 -",
		"Click-through by link": "https://example.com/a 3 2; https://example.com/b 1 1",
		"Bounces by domain":     "spike.example 12 0.00; usual.example 1 1.00",
		"Open rate under the average in the first 30 minutes": "123 25.0 100.0",
		"More than 20 unsubscribes in an hour":                "21",
		"A bounce spike from one domain":                      "spike.example 12 0.00",
		"Five complaints within an hour":                      "5",
	} {
		if got := reader.answer(t, queries[heading]); sorted(got) != sorted(want) {
			t.Errorf("%s: %s\nwant %s", heading, got, want)
		}
	}
	for heading, query := range queries {
		if quiet := strings.Contains(heading, "hour") || strings.Contains(heading, "spike") || strings.Contains(heading, "average"); quiet {
			if got := reader.answer(t, strings.ReplaceAll(query, "'acme'", "'calm'")); got != "" {
				t.Errorf("%s, of a calm account: %s", heading, got)
			}
		}
	}
	trend := "SELECT day - min(day) OVER (), unsubscribed FROM (" + strings.TrimSuffix(strings.TrimSpace(queries["Unsubscribe trend"]), ";") + ") AS trend"
	if got := reader.answer(t, trend); got != "0 2; 2 21" {
		t.Errorf("unsubscribe trend: %s", got)
	}
	books := strings.ReplaceAll(queries["Daily, weekly and monthly"], "'acme'", "'books'")
	for unit, want := range map[string]string{
		"day":   "2024-01-01 email.sent 1000; 2024-01-09 email.sent 1; 2024-02-02 email.sent 3",
		"week":  "2024-01-01 email.sent 1000; 2024-01-08 email.sent 1; 2024-01-29 email.sent 3",
		"month": "2024-01-01 email.sent 1001; 2024-02-01 email.sent 3",
	} {
		if got := reader.answer(t, strings.Replace(books, "'day'", "'"+unit+"'", 1)); got != want {
			t.Errorf("a %s: %s\nwant %s", unit, got, want)
		}
	}
}

// dashboards is a session of a role that has the page's grants and nothing else.
func dashboards(t *testing.T, d *dbtest.DB, grants string) *session {
	t.Helper()
	user := login(t, d, "pg_monitor") // a role of no rights here; login takes one
	owner := connect(t, d, nil)
	owner.exec(t, strings.ReplaceAll(grants, "dashboards", user.Username()))
	t.Cleanup(func() {
		if _, err := d.Pool.Exec(context.Background(), "DROP OWNED BY "+user.Username()); err != nil {
			t.Error(err)
		}
	})
	return connect(t, d, user)
}

// analyticsQueries are the page's, by their headings.
func analyticsQueries(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../docs/analytics.md")
	if err != nil {
		t.Fatal(err)
	}
	queries, heading := map[string]string{}, ""
	for _, m := range regexp.MustCompile("(?ms)^#+ ([^\n]*)$|^```sql\n(.*?)^```").FindAllStringSubmatch(string(page), -1) {
		if m[1] != "" {
			heading = m[1]
		} else {
			queries[heading] = m[2]
		}
	}
	if len(queries) != 10 {
		t.Fatalf("%d queries", len(queries))
	}
	return queries
}

// answer is what a query answers: columns apart by spaces, rows by semicolons, - for NULL.
func (s *session) answer(t *testing.T, sql string) string {
	t.Helper()
	results, err := s.PgConn().Exec(t.Context(), sql).ReadAll() // in text, as it is read
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var lines []string
	for _, row := range results[0].Rows {
		var words []string
		for _, value := range row {
			if value == nil {
				value = []byte("-")
			}
			words = append(words, string(value))
		}
		lines = append(lines, strings.Join(words, " "))
	}
	return strings.Join(lines, "; ")
}

// sorted puts the rows of an answer in one order, where the query leaves it open.
func sorted(answer string) string {
	rows := strings.Split(answer, "; ")
	slices.Sort(rows)
	return strings.Join(rows, "; ")
}
