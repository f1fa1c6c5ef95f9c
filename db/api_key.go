package db

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// APIKeyPrefix begins every key of the JSON API, so that secret scanners can tell one.
const APIKeyPrefix = "mhk_"

// NewAPIKey makes a key of the JSON API, mhk_ and 43 base64url characters of 32 random bytes, and the hash that
// api_keys holds of it. The key itself is shown once and stored nowhere.
func NewAPIKey() (key string, hash []byte) {
	random := make([]byte, 32)
	rand.Read(random)
	key = APIKeyPrefix + base64.RawURLEncoding.EncodeToString(random)
	return key, HashAPIKey(key)
}

// HashAPIKey is what api_keys.key_hash holds of a key: SHA-256 of its whole text. A fast hash is enough for 256
// random bits, and a lookup by it tells nothing about the key by its timing.
func HashAPIKey(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:]
}
