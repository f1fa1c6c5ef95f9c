package sql_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

// Every SQL example of docs/sql.md runs, in order. The page names a role; roles belong to the cluster, so the test's
// has a name of its own.
func TestDocs(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	page := readPage(t)
	user := producer(t, d)
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(blocks) < 15 {
		t.Fatalf("%d examples", len(blocks))
	}
	owner := connect(t, d, nil)
	for _, block := range blocks {
		sql := strings.ReplaceAll(block[1], "CREATE ROLE mail_app LOGIN;", "")
		owner.exec(t, strings.ReplaceAll(sql, "mail_app", user.Username()))
	}
	var warnings []string
	for _, n := range owner.notices {
		// The test server's wal_level is no matter of the page.
		if n.Severity == "WARNING" && !strings.Contains(n.Message, "wal_level") {
			warnings = append(warnings, n.Message)
		}
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "Not a type") {
		t.Errorf("not only the one example of a warning: %q", warnings)
	}
	for _, eventType := range []string{"email.queued", "email.delivered", "email.sent", "email.bounced", "email.opened", "email.clicked", "email.complained"} {
		if dbtest.QueryOne[int64](t, d, "SELECT count(*) FROM mailhook.outbox WHERE event_type = $1", eventType) == 0 {
			t.Errorf("the examples wrote no %s", eventType)
		}
	}
}

// The tables of the page are complete: each column of outbox, each function for hosts, each code.
func TestDocsAreComplete(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	page := readPage(t)
	for _, word := range columnOf(t, d, `
			SELECT attname::text FROM pg_attribute WHERE attrelid = 'mailhook.outbox'::regclass AND attnum > 0 AND NOT attisdropped
			UNION
			SELECT proname::text FROM pg_proc WHERE pronamespace = 'mailhook'::regnamespace AND (proname LIKE 'emit%' OR proname LIKE '%register_event_type')
			UNION
			SELECT (regexp_matches(prosrc, 'MH[0-9]{3}', 'g'))[1] FROM pg_proc WHERE pronamespace = 'mailhook'::regnamespace`) {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("docs/sql.md does not tell of %s", word)
		}
	}
}

func readPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
