package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/sql"
)

// FuzzEventType: the API takes the names that the database takes, by the words of its own constraint.
func FuzzEventType(f *testing.F) {
	for _, name := range []string{"email", "email.bounced.hard", "*", "", ".", "a.", ".a", "a..b", "A", "1a", "a1_", "_a", "a\n", "é", "a b", strings.Repeat("a", 100), strings.Repeat("a", 101)} {
		f.Add(name)
	}
	migration, err := sql.Migrations.ReadFile("migrations/00009_create_event_types.sql")
	if err != nil {
		f.Fatal(err)
	}
	found := regexp.MustCompile(`name ~ '(.+?)'`).FindSubmatch(migration)
	if found == nil {
		f.Fatal("event_types has no constraint on names")
	}
	syntax := regexp.MustCompile(string(found[1]))
	f.Fuzz(func(t *testing.T, name string) {
		want := len(name) <= 100 && syntax.MatchString(name)
		if got := validEventType(name); got != want {
			t.Fatalf("%q: %v, by the constraint %v", name, got, want)
		}
		kept, wrong := checkEventTypes("event_types", []string{name, name})
		if (len(wrong) == 0) != (want || name == "*") || len(kept) != 1 {
			t.Fatalf("%q: %v %v", name, kept, wrong)
		}
	})
}

// FuzzFilters: what is accepted is stored as it was meant, once, and as text that the database takes.
func FuzzFilters(f *testing.F) {
	for _, value := range []string{"mail.example.com", "", "a\x00", "\xff", "203.0.113.9", "203.0.113.9/32", "203.0.113.0/24", "2001:db8::1", "2001:DB8::1/128", "::ffff:1.2.3.4", "fe80::1%eth0", "1.2.3.4 ", "010.1.1.1"} {
		f.Add(value, value)
	}
	f.Fuzz(func(t *testing.T, name, ip string) {
		values := func(v string) optional[[]string] { return optional[[]string]{set: true, value: []string{v, v}} }
		in := optional[filtersInput]{set: true, value: filtersInput{SendingNode: values(name), DedicatedIP: values(ip)}}
		to := defaultSubscription()
		if len(applyFilters(in, &to)) > 0 {
			return
		}
		if len(to.FilterSendingNode) != 1 || to.FilterSendingNode[0] != name || name == "" || !storable(name) {
			t.Fatalf("%q is stored as %q", name, to.FilterSendingNode)
		}
		given, err := netip.ParseAddr(strings.Split(ip, "/")[0])
		stored, storedErr := netip.ParseAddr(to.FilterDedicatedIp[0])
		if err != nil || storedErr != nil || len(to.FilterDedicatedIp) != 1 || given != stored || stored.Zone() != "" {
			t.Fatalf("%q is stored as %q: %v, %v", ip, to.FilterDedicatedIp, err, storedErr)
		}
	})
}

// FuzzPatch: any JSON as a patch ends in an error, or in a subscription that could have been created so.
func FuzzPatch(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"name":null,"channel":null}`, `{"channel":{"url":"https://example.com/","headers":{"A":"b"}}}`, `{"channel":{"url":null}}`, `{"event_types":["a","a"]}`, `{"event_types":null}`,
		`{"filters":{"sending_domain":["a"],"dedicated_ip":null}}`, `{"retry_schedule":"svix"}`, `{"retry_schedule":["30s",""]}`, `{"retry_schedule":[]}`, `{"retry_schedule":null}`, `{"retry_schedule":{}}`,
		`{"timeout":"15s"}`, `{"timeout":""}`, `{"max_in_flight":0,"rate_limit_per_second":1e308}`, `{"name":"\ud800\u0000"}`, `{"format":"standard"}`,
	} {
		f.Add(text)
	}
	ring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		f.Fatal(err)
	}
	config := DefaultConfig()
	config.Keyring = ring
	s := &server{config: config}
	f.Fuzz(func(t *testing.T, text string) {
		var in SubscriptionInput
		if json.Unmarshal([]byte(text), &in) != nil {
			return
		}
		to := defaultSubscription()
		to.ID, to.URL, to.EventTypes = uuid.UUID{1}, "https://example.com/", []string{"email"}
		if _, found := s.apply(in, &to, false); len(found) > 0 {
			return
		}
		if _, err := url.Parse(to.URL); err != nil || config.CheckURL(to.URL, false) != nil || !storable(to.Name) {
			t.Fatalf("%q makes the URL %q and the name %q", text, to.URL, to.Name)
		}
		for _, name := range to.EventTypes {
			if name != "*" && !validEventType(name) {
				t.Fatalf("%q makes the event types %q", text, to.EventTypes)
			}
		}
		if n := len(to.RetrySchedule); n < 1 || n > maxRetries || len(to.EventTypes) == 0 || to.Timeout < minTimeout || to.Timeout > maxTimeout {
			t.Fatalf("%q makes %+v", text, to)
		}
		for _, delay := range to.RetrySchedule {
			if delay < minRetryDelay || delay > maxRetryDelay {
				t.Fatalf("%q makes the schedule %v", text, to.RetrySchedule)
			}
		}
		if answer, err := json.Marshal(subscriptionOf(to)); err != nil || !utf8.Valid(answer) {
			t.Fatalf("%q cannot be answered: %v", text, err)
		}
	})
}

// FuzzCursor: a cursor leads where one of ours can lead, or is refused.
func FuzzCursor(f *testing.F) {
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		f.Fatal(err)
	}
	s := &server{config: Config{Keyring: keyring}}
	s.masterKey.Store(keyring.First())
	for _, micros := range []int64{0, 1, 1705314600000000} {
		f.Add(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"t":%d,"i":"dlv_1","f":"%s"}`, micros, hashFilters([]any{"deliveries"}))))
	}
	f.Add("")
	f.Add("e30")
	f.Add("!")
	f.Fuzz(func(t *testing.T, cursor string) {
		at, err := s.after(ListParams{Cursor: cursor}, "deliveries")
		if at != nil || (err == nil) != (cursor == "") {
			t.Fatalf("%q, which nobody has sealed, leads to %v, %v", cursor, at, err)
		}
		text, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil {
			return
		}
		at, err = s.after(ListParams{Cursor: base64.RawURLEncoding.EncodeToString(keyring.First().SealCursor(text))}, "deliveries")
		if at == nil {
			if err == nil {
				t.Fatalf("%q is taken for no cursor", cursor)
			}
			return
		}
		again, err := s.after(ListParams{Cursor: *s.next(at, "deliveries")}, "deliveries")
		if err != nil || *again != *at {
			t.Fatalf("%q leads to %v, and from there to %v, %v", cursor, at, again, err)
		}
	})
}

// FuzzExcerpt: whatever a receiver answered is text that every JSON parser and database takes.
func FuzzExcerpt(f *testing.F) {
	for _, text := range []string{"", "ok", "a\x00b", "\xff\xfe", "\xed\xa0\x80", "\u202e", "\x1b[31m", "🙂\xf0\x9f"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, excerpt []byte) {
		text := excerptText(excerpt)
		if !utf8.ValidString(text) || strings.Contains(text, "\x00") {
			t.Fatalf("%q is shown as %q", excerpt, text)
		}
		if utf8.Valid(excerpt) && strings.ReplaceAll(string(excerpt), "\x00", "\uFFFD") != text {
			t.Fatalf("%q was text already, and is shown as %q", excerpt, text)
		}
	})
}

// storable: PostgreSQL takes it, and a terminal shows it.
func storable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}
