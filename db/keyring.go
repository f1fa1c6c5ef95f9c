package db

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// A Keyring seals what customers trust us with, signing secrets and custom headers, under the operator's
// master key: AES-256-GCM, a random nonce before the ciphertext, the subscription id as associated data, so
// that a sealed value is of no use in another row.
type Keyring struct {
	keyID string
	aead  cipher.AEAD
}

// ErrUnknownKey is the error of a value that another master key sealed.
var ErrUnknownKey = errors.New("sealed with a master key that this process does not have")

// NewKeyring takes a master key of 32 bytes in base64, as in MAILHOOK_SECRET_KEY.
func NewKeyring(encoded string) (*Keyring, error) {
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) != 32 {
		return nil, errors.New("the master key must be 32 bytes in base64: make one with openssl rand -base64 32")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("set up cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("set up cipher: %w", err)
	}
	sum := sha256.Sum256(key)
	return &Keyring{hex.EncodeToString(sum[:4]), aead}, nil
}

// NewMasterKey is a fresh key in the form that NewKeyring takes.
func NewMasterKey() string {
	key := make([]byte, 32)
	rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

// KeyID names the master key without telling it: what the key_id columns hold.
func (k *Keyring) KeyID() string { return k.keyID }

// Check refuses a master key that is not the one this installation's secrets are sealed with. The first process that
// ever starts decides which that is.
func (k *Keyring) Check(ctx context.Context, q *Queries) error {
	current, err := q.ClaimMasterKey(ctx, k.keyID)
	if err != nil {
		return fmt.Errorf("check the master key: %w", err)
	}
	if current != k.keyID {
		return fmt.Errorf("MAILHOOK_SECRET_KEY is not the key that this installation's secrets are sealed with (that one has the id %s, yours %s): start with the right one", current, k.keyID)
	}
	return nil
}

// Seal encrypts plain for one subscription.
func (k *Keyring) Seal(subscription uuid.UUID, plain []byte) []byte {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	rand.Read(nonce)
	return k.aead.Seal(nonce, nonce, plain, subscription[:])
}

// Open decrypts what Seal made for the same subscription. Its errors never hold any of the content.
func (k *Keyring) Open(subscription uuid.UUID, keyID string, sealed []byte) ([]byte, error) {
	if keyID != k.keyID {
		return nil, ErrUnknownKey
	}
	if len(sealed) < k.aead.NonceSize() {
		return nil, errors.New("sealed value is too short")
	}
	nonce, ciphertext := sealed[:k.aead.NonceSize()], sealed[k.aead.NonceSize():]
	plain, err := k.aead.Open(nil, nonce, ciphertext, subscription[:])
	if err != nil {
		return nil, errors.New("sealed value does not open with this key and subscription")
	}
	return plain, nil
}
