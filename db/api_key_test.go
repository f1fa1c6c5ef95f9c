package db_test

import (
	"bytes"
	"regexp"
	"testing"

	"mailhook/db"
)

func TestNewAPIKey(t *testing.T) {
	t.Parallel()
	key, hash := db.NewAPIKey()
	if !regexp.MustCompile(`^mhk_[A-Za-z0-9_-]{43}$`).MatchString(key) {
		t.Errorf("key %q", key)
	}
	if len(hash) != 32 || !bytes.Equal(hash, db.HashAPIKey(key)) {
		t.Error("the hash is not that of the key")
	}
	if other, _ := db.NewAPIKey(); other == key {
		t.Error("the same key twice")
	}
}
