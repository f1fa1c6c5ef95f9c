package db_test

import (
	"errors"
	"strings"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// What PostgreSQL makes of the pattern, in text and in the escaped form of bytes.
func TestRecipientPattern(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, c := range []struct {
		address, text string
		finds         bool
	}{
		{"ann@example.com", "ann@example.com", true},
		{"Ann@Example.Com", "aNN@example.COM", true},
		{"ann@example.com", `{"to":"ann@example.com"}`, true},
		{"ann@example.com", `{"to":"Ann <ann@example.com>, Bob"}`, true},
		{"ann@example.com", `{"to":"\u003cann@example.com\u003e"}`, true}, // as Go escapes < and >
		{"ann@example.com", `{"to":"ann\u0040example\u002Ecom"}`, true},
		{"ann@example.com", `{"to":"\u0061\u006E\u006e@example.com"}`, true},
		{"ann@example.com", `{"raw":"{\"to\":\"ann\\u0040example.com\"}"}`, true},
		{"ann@example.com", `{"text":"Hello,\nann@example.com wrote"}`, true},
		{"ann@example.com", `{"text":"mailto:ann@example.com."}`, true},
		{"ann@example.com", `{"url":"https:\/\/x.example\/?e=ann%40example.com&x=1"}`, true},
		{"ann@example.com", `https://x.example/?e=ann%2540example.com`, true},
		{"ann@example.com", `https://x.example/?next=%2Fu%3Fe%3Dann%40example.com`, true},
		{"ann@example.com", `https://x.example/ann@example.com/`, true},
		{"ann@example.com", "“ann@example.com”", true},
		{"ann+news@example.com", `{"to":"ann\u002bnews@example.com","e":1}`, true},
		{"ann+news@example.com", "e=ann%2Bnews%40example.com", true},
		{"o'neil@example.com", `{"to":"o\u0027neil@example.com"}`, true},
		{"zoë@exämple.com", "ZOË@EXÄMPLE.com", true},
		{"zoë@exämple.com", `{"to":"zo\u00eb@ex\u00C4mple.com"}`, true},
		{"zoë@exämple.com", "e=zo%C3%ab%40ex%c3%a4mple.com", true},
		{"𝒜@example.com", `{"to":"\ud835\udC9c@example.com"}`, true},
		{"a]b^c[d@example.com", "a]b^c[d@example.com", true},
		{"a.b*c$d{2}@example.com", "a.b*c$d{2}@example.com", true},
		{strings.Repeat("é", 32) + "@" + strings.Repeat("ö", 120) + ".com", "x", false}, // the longest that PostgreSQL must take
		{strings.Repeat("k", 64) + "@" + strings.Repeat("s", 251) + ".com", strings.Repeat("K", 64) + "@" + strings.Repeat("S", 251) + ".com", true},

		{"ann@example.com", "joann@example.com", false},
		{"ann@example.com", "jo.ann@example.com", false},
		{"ann@example.com", "jo+ann@example.com", false},
		{"ann@example.com", "jo-ann@example.com", false},
		{"ann@example.com", "jo_ann@example.com", false},
		{"ann@example.com", `{"to":"jo\u002bann@example.com"}`, false},
		{"ann@example.com", "e=jo%2Bann%40example.com", false},
		{"ann@example.com", "ann+news@example.com", false},
		{"ann@example.com", "ann@example.com.au", false},
		{"ann@example.com", "ann@example.community", false},
		{"ann@example.com", "ann@example.com-shop.example", false},
		{"ann@example.com", "ann@exampleXcom", false},
		{"ann@example.com", "ann at example.com", false},
		{"nann@example.com", `{"text":"Hello,\nann@example.com"}`, false},
		{"a.b*c$d{2}@example.com", "a.bbc$dd@example.com", false},
	} {
		pattern, err := db.RecipientPattern(c.address)
		if err != nil {
			t.Fatalf("%q: %v", c.address, err)
		}
		asText := dbtest.QueryOne[bool](t, d, "SELECT $1::text ~ $2", c.text, pattern)
		asBytes := dbtest.QueryOne[bool](t, d, "SELECT encode($1::bytea, 'escape') ~ $2", []byte(c.text), pattern)
		if asText != c.finds || asBytes != c.finds {
			t.Errorf("%q in %q: %v as text, %v as bytes, want %v", c.address, c.text, asText, asBytes, c.finds)
		}
	}
	if !dbtest.QueryOne[bool](t, d, `SELECT encode('\x00'::bytea || 'ann@example.com' || '\xff'::bytea, 'escape') ~ $1`, pattern(t, "ann@example.com")) {
		t.Error("not found among bytes that are no text")
	}
}

func pattern(t *testing.T, address string) string {
	t.Helper()
	p, err := db.RecipientPattern(address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An error never says what it is about: it goes to logs and answers.
func TestBadAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"", "@", "a@", "@b", "secret", "secret.example.com", " secret@example.com", "secret@example.com ", "Ann <secret@example.com>", "a@b,secret@example.com",
		"secret@example.com\x00", "secret@example.com\n", "secret\\@example.com", "secret\xff@example.com", strings.Repeat("a", 320) + "@b",
	} {
		if _, err := db.RecipientPattern(address); !errors.Is(err, db.ErrBadAddress) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", address, err)
		}
	}
}
