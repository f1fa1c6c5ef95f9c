package db_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func newKeyring(t *testing.T, keys ...string) *db.Keyring {
	t.Helper()
	if len(keys) == 0 {
		keys = []string{db.NewMasterKey()}
	}
	k, err := db.NewKeyring(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	k, id := newKeyring(t), uuid.Must(uuid.NewV7())
	for _, kind := range []string{db.SealedSecret, db.SealedHeaders, db.SealedAuth} {
		for _, plain := range []string{secret, "", strings.Repeat("x", 4096)} {
			sealed := k.First().Seal(kind, id, []byte(plain))
			if plain != "" && bytes.Contains(sealed, []byte(plain)) {
				t.Error("the plaintext shows")
			}
			if bytes.Equal(sealed, k.First().Seal(kind, id, []byte(plain))) {
				t.Error("sealed twice to the same bytes: the nonce is not random")
			}
			if got, err := k.Open(kind, id, k.First().ID, sealed); err != nil || string(got) != plain {
				t.Errorf("opened as %q, %v", got, err)
			}
		}
	}

	sealed := k.First().Seal(db.SealedSecret, id, []byte(secret))
	refused := func(name string, k *db.Keyring, kind string, id uuid.UUID, keyID string, sealed []byte, unknown bool) {
		t.Helper()
		got, err := k.Open(kind, id, keyID, sealed)
		if err == nil || got != nil || errors.Is(err, db.ErrUnknownKey) != unknown {
			t.Fatalf("%s: %q, %v", name, got, err)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the content", name)
		}
	}
	other, own := newKeyring(t), k.First().ID
	refused("another subscription", k, db.SealedSecret, uuid.Must(uuid.NewV7()), own, sealed, false)
	refused("another kind", k, db.SealedHeaders, id, own, sealed, false)
	refused("no kind", k, "", id, own, sealed, false)
	refused("another master key", other, db.SealedSecret, id, own, sealed, true)
	refused("another master key that claims to be it", other, db.SealedSecret, id, other.First().ID, sealed, false)
	for i := range sealed {
		tampered := bytes.Clone(sealed)
		tampered[i] ^= 1
		refused("tampered", k, db.SealedSecret, id, own, tampered, false)
	}
	for n := range sealed {
		refused("cut short", k, db.SealedSecret, id, own, sealed[:n], false)
	}
}

func TestARingOpensWithEachOfItsKeys(t *testing.T) {
	t.Parallel()
	one, two, id := db.NewMasterKey(), db.NewMasterKey(), uuid.Must(uuid.NewV7())
	old := newKeyring(t, one)
	sealed := old.First().Seal(db.SealedSecret, id, []byte("x"))
	for _, text := range []string{one + "," + two, two + "," + one, two + "\n" + one + "\n", " " + two + " , " + one + "\r\n"} {
		ring := newKeyring(t, text)
		if got, err := ring.Open(db.SealedSecret, id, old.First().ID, sealed); err != nil || string(got) != "x" {
			t.Errorf("%v: %q, %v", ring.IDs(), got, err)
		}
		if wanted := []string{newKeyring(t, one).First().ID, newKeyring(t, two).First().ID}; len(ring.IDs()) != 2 || !slices.Contains(wanted, ring.First().ID) || !slices.Contains(wanted, ring.IDs()[1]) {
			t.Errorf("ids %v, want %v", ring.IDs(), wanted)
		}
	}
}

func TestKeyID(t *testing.T) {
	t.Parallel()
	key := db.NewMasterKey()
	one, again := newKeyring(t, key).First().ID, newKeyring(t, key).First().ID
	raw, _ := base64.StdEncoding.DecodeString(key)
	if one != again || one == newKeyring(t).First().ID || bytes.Contains(raw, []byte(one)) {
		t.Errorf("key ids %s, %s", one, again)
	}
}

func TestNewKeyringRefuses(t *testing.T) {
	t.Parallel()
	good := db.NewMasterKey()
	for _, bad := range []string{"", ",", " \n", "not base64!", base64.StdEncoding.EncodeToString(make([]byte, 31)), base64.StdEncoding.EncodeToString(make([]byte, 33)),
		base64.RawStdEncoding.EncodeToString(make([]byte, 32)), good + ",short-key", good + "," + good} {
		_, err := db.NewKeyring(bad)
		if err == nil || !strings.Contains(err.Error(), "openssl rand -base64 32") && !strings.Contains(err.Error(), "key 2 of 2: it is there twice") {
			t.Errorf("%q: %v", bad, err)
		}
		for _, part := range strings.FieldsFunc(bad, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
			if err != nil && strings.Contains(err.Error(), part) {
				t.Errorf("the error tells the key: %v", err)
			}
		}
	}
}

// The first process decides, and no other key takes its place but by rotation; of many that start at once one wins.
func TestTheFirstProcessDecidesTheMasterKey(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	q := db.New(d.Pool)
	rings, errs := make([]*db.Keyring, 8), make(chan error, 8)
	for i := range rings {
		rings[i] = newKeyring(t)
		go func() { errs <- rings[i].Check(t.Context(), q) }()
	}
	accepted := 0
	for range rings {
		switch err := <-errs; {
		case err == nil:
			accepted++
		case !errors.Is(err, db.ErrUnknownKey):
			t.Error(err)
		}
	}
	if accepted != 1 {
		t.Errorf("%d processes with different keys were accepted", accepted)
	}
	current := dbtest.QueryOne[string](t, d, "SELECT secret_key_id FROM mailhook.installation")
	for _, ring := range rings {
		err := ring.Check(t.Context(), q)
		if (err == nil) != (ring.First().ID == current) {
			t.Errorf("%s where the installation has %s: %v", ring.First().ID, current, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "lacks the master key "+current) || !strings.Contains(err.Error(), ring.First().ID)) {
			t.Errorf("the error does not name both: %v", err)
		}
	}
}

// A cursor is opened by every process that has its key, and shows nothing.
func TestCursorsAreSealed(t *testing.T) {
	t.Parallel()
	const plain = "dlv_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"
	old, next := db.NewMasterKey(), db.NewMasterKey()
	sealed := newKeyring(t, old).First().SealCursor([]byte(plain))
	if bytes.Contains(sealed, []byte(plain)) {
		t.Error("the plaintext shows")
	}
	if got, ok := newKeyring(t, next, old).OpenCursor(sealed); !ok || string(got) != plain {
		t.Errorf("%q, %v", got, ok)
	}
	if _, ok := newKeyring(t, next).OpenCursor(sealed); ok {
		t.Error("another key opens it")
	}
	if _, err := newKeyring(t, old).Open(db.SealedSecret, uuid.UUID{}, newKeyring(t, old).First().ID, sealed); err == nil {
		t.Error("it opens as a secret")
	}
	for n := range sealed {
		changed := bytes.Clone(sealed)
		changed[n] ^= 1
		for _, bad := range [][]byte{changed, sealed[:n]} {
			if _, ok := newKeyring(t, old).OpenCursor(bad); ok {
				t.Errorf("it opens with byte %d changed or left out", n)
			}
		}
	}
}
