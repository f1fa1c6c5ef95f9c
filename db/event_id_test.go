package db_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestEventID(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	installation := dbtest.QueryOne[string](t, d, "SELECT mailhook.installation_code()")
	for _, at := range []time.Time{
		time.Date(2024, 1, 15, 10, 30, 0, 123456000, time.UTC),
		time.Date(2024, 2, 29, 23, 59, 59, 999999000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
		time.UnixMicro(0).UTC(),
		time.UnixMicro(-1).UTC(),
	} {
		for _, id := range []int64{1, 255, 1 << 40, 1<<63 - 1} {
			want := db.EventID{InsertedAt: at, ID: id, Installation: installation}
			text := dbtest.QueryOne[string](t, d, "SELECT mailhook.event_id($1, $2)", at, id)
			if text != want.String() {
				t.Errorf("SQL says %s and Go %s", text, want)
			}
			got, err := db.ParseEventID(text)
			if err != nil || got != want {
				t.Errorf("%s is parsed as %+v, %v", text, got, err)
			}
		}
	}
}

// Contract: at most 64 of [A-Za-z0-9_], no dots.
func TestParseEventIDRefuses(t *testing.T) {
	t.Parallel()
	good := db.EventID{InsertedAt: time.UnixMicro(1705314600000000), ID: 7, Installation: "0a1b2c3d"}.String()
	if good != "evt_00060ef97ef69a0000000000000000070a1b2c3d" {
		t.Fatal(good)
	}
	for _, bad := range []string{"", "evt_", good[4:], good[:len(good)-1], good + "0", strings.ToUpper(good), "evt_" + strings.ToUpper(good[4:]),
		strings.Replace(good, "evt_", "dlv_", 1), good[:4] + "+" + good[5:], good[:20] + "-" + good[21:], good[:43] + "g", good[:10] + " " + good[11:], " " + good} {
		if id, err := db.ParseEventID(bad); !errors.Is(err, db.ErrBadID) {
			t.Errorf("%q is parsed as %+v, %v", bad, id, err)
		}
	}
}

func TestInstallationCodesDiffer(t *testing.T) {
	t.Parallel()
	d := dbtest.NewEmpty(t)
	migrateUp(t, d.URL)
	const code = "SELECT mailhook.installation_code()"
	one, other := dbtest.QueryOne[string](t, d, code), dbtest.QueryOne[string](t, dbtest.New(t), code)
	if one == other || len(one) != 8 {
		t.Errorf("%s and %s", one, other)
	}
}

func TestFormatID(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
	text := db.FormatID(db.SubscriptionPrefix, id)
	if text != "sub_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b" {
		t.Fatal(text)
	}
	if got, err := db.ParseID(db.SubscriptionPrefix, text); err != nil || got != id {
		t.Errorf("parsed as %v, %v", got, err)
	}
	for _, bad := range []string{"", "sub_", text[4:], "dlv_" + text[4:], text + "0", text[:35], "sub_" + strings.ToUpper(text[4:]), "sub_" + id.String(), text[:35] + "g"} {
		if got, err := db.ParseID(db.SubscriptionPrefix, bad); !errors.Is(err, db.ErrBadID) {
			t.Errorf("%q is parsed as %v, %v", bad, got, err)
		}
	}
}

func TestUUID7(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	at := time.Date(2024, 1, 15, 10, 30, 0, 123000000, time.UTC)
	first := dbtest.QueryOne[[16]byte](t, d, "SELECT mailhook.uuid7($1)", at)
	second := dbtest.QueryOne[[16]byte](t, d, "SELECT mailhook.uuid7($1)", at)
	id := uuid.UUID(first)
	seconds, nanoseconds := id.Time().UnixTime()
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 || !time.Unix(seconds, nanoseconds).Equal(at) || first == second {
		t.Errorf("%s and %x: version %d, variant %v, time %v", id, second, id.Version(), id.Variant(), time.Unix(seconds, nanoseconds))
	}
}
