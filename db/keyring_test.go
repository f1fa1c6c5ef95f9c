package db_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"mailhook/db"
)

func newKeyring(t *testing.T) *db.Keyring {
	t.Helper()
	k, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	k, id := newKeyring(t), uuid.Must(uuid.NewV7())
	for _, plain := range []string{secret, "", strings.Repeat("x", 4096)} {
		sealed := k.Seal(id, []byte(plain))
		if plain != "" && bytes.Contains(sealed, []byte(plain)) {
			t.Error("the plaintext shows")
		}
		if bytes.Equal(sealed, k.Seal(id, []byte(plain))) {
			t.Error("sealed twice to the same bytes: the nonce is not random")
		}
		if got, err := k.Open(id, k.KeyID(), sealed); err != nil || string(got) != plain {
			t.Errorf("opened as %q, %v", got, err)
		}
	}

	sealed := k.Seal(id, []byte(secret))
	refused := func(name string, k *db.Keyring, id uuid.UUID, keyID string, sealed []byte, unknown bool) {
		t.Helper()
		got, err := k.Open(id, keyID, sealed)
		if err == nil || got != nil || errors.Is(err, db.ErrUnknownKey) != unknown {
			t.Fatalf("%s: %q, %v", name, got, err)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the content", name)
		}
	}
	other := newKeyring(t)
	refused("another subscription", k, uuid.Must(uuid.NewV7()), k.KeyID(), sealed, false)
	refused("another master key", other, id, k.KeyID(), sealed, true)
	refused("another master key that claims to be it", other, id, other.KeyID(), sealed, false)
	for i := range sealed {
		tampered := bytes.Clone(sealed)
		tampered[i] ^= 1
		refused("tampered", k, id, k.KeyID(), tampered, false)
	}
	for n := range sealed {
		refused("cut short", k, id, k.KeyID(), sealed[:n], false)
	}
}

func TestKeyID(t *testing.T) {
	t.Parallel()
	key := db.NewMasterKey()
	one, err := db.NewKeyring(key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := db.NewKeyring(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(key)
	if one.KeyID() != again.KeyID() || one.KeyID() == newKeyring(t).KeyID() || bytes.Contains(raw, []byte(one.KeyID())) {
		t.Errorf("key ids %s, %s", one.KeyID(), again.KeyID())
	}
}

func TestNewKeyringRefuses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "not base64!", base64.StdEncoding.EncodeToString(make([]byte, 31)), base64.StdEncoding.EncodeToString(make([]byte, 33)),
		base64.RawStdEncoding.EncodeToString(make([]byte, 32))} {
		_, err := db.NewKeyring(bad)
		if err == nil || !strings.Contains(err.Error(), "openssl rand -base64 32") {
			t.Errorf("%q: %v", bad, err)
		}
		if bad != "" && err != nil && strings.Contains(err.Error(), bad) {
			t.Errorf("the error tells the key: %v", err)
		}
	}
}
