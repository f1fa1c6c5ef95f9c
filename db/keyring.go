package db

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// What a sealed value is: part of its associated data, and the kind of subscription_credentials.
const (
	// SealedSecret is a signing secret.
	SealedSecret = "secret"
	// SealedHeaders are custom headers: a JSON object of name to value.
	SealedHeaders = "headers"
	// SealedAuth is the value of the Authorization header that channel.auth makes.
	SealedAuth = "auth"
	// SealedChannel is what a channel other than web keeps secret: a JSON object of name to value.
	SealedChannel = "channel"
)

// ErrUnknownKey is the error of a value that another master key sealed, and of an installation that seals with another.
var ErrUnknownKey = errors.New("sealed with a master key that this process does not have")

// A Keyring is the operator's master keys: all of them open, and the one that mailhook.installation names seals.
type Keyring struct{ keys []*MasterKey }

// A MasterKey seals what customers trust us with, signing secrets, custom headers and credentials: AES-256-GCM, a random
// nonce before the ciphertext, and what it is and the subscription id as associated data, so that a sealed value is of no
// use in another place.
type MasterKey struct {
	// ID names the key without telling it: what the key_id columns hold.
	ID   string
	aead cipher.AEAD
	// cursors is of a key derived from this one, so that no text of a customer's is ever opened with the key of the secrets.
	cursors cipher.AEAD
}

// NewKeyring takes master keys of 32 bytes in base64, with commas or line ends between them, as in MAILHOOK_SECRET_KEY.
func NewKeyring(encoded string) (*Keyring, error) {
	k := &Keyring{}
	texts := strings.FieldsFunc(encoded, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' || r == ' ' || r == '\t' })
	for i, text := range texts {
		key, err := newMasterKey(text)
		if err == nil && k.Find(key.ID) != nil {
			err = errors.New("it is there twice")
		}
		if err != nil && len(texts) > 1 {
			err = fmt.Errorf("key %d of %d: %w", i+1, len(texts), err)
		}
		if err != nil {
			return nil, err
		}
		k.keys = append(k.keys, key)
	}
	if len(k.keys) == 0 {
		return nil, errNotAKey
	}
	return k, nil
}

var errNotAKey = errors.New("the master key must be 32 bytes in base64: make one with openssl rand -base64 32")

func newMasterKey(encoded string) (*MasterKey, error) {
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) != 32 {
		return nil, errNotAKey
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	derived := hmac.New(sha256.New, key)
	derived.Write([]byte("mailhook cursors"))
	cursors, err := newAEAD(derived.Sum(nil))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(key)
	return &MasterKey{hex.EncodeToString(sum[:4]), aead, cursors}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("set up cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("set up cipher: %w", err)
	}
	return aead, nil
}

// NewMasterKey is a fresh key in the form that NewKeyring takes.
func NewMasterKey() string {
	key := make([]byte, 32)
	rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

// First is the key that was given first: a new installation seals with it, and rotation goes to it.
func (k *Keyring) First() *MasterKey { return k.keys[0] }

// Find is the key with an id, or nil.
func (k *Keyring) Find(id string) *MasterKey {
	for _, key := range k.keys {
		if key.ID == id {
			return key
		}
	}
	return nil
}

// IDs names all keys, in the order given.
func (k *Keyring) IDs() []string {
	ids := make([]string, len(k.keys))
	for i, key := range k.keys {
		ids[i] = key.ID
	}
	return ids
}

// Check refuses to go on without the key that this installation seals with, as Installed does.
func (k *Keyring) Check(ctx context.Context, q *Queries) error {
	_, err := k.Installed(ctx, q)
	return err
}

// Installed is the key that this installation seals with; ErrUnknownKey in a process that lacks it. The first process that
// ever starts makes its first key that one. It only reads where there is one already.
func (k *Keyring) Installed(ctx context.Context, q *Queries) (*MasterKey, error) {
	current, err := q.GetMasterKeyID(ctx)
	if err == nil && current == "" {
		if err = q.ClaimMasterKey(ctx, k.First().ID); err == nil {
			current, err = q.GetMasterKeyID(ctx)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("check the master key: %w", err)
	}
	key := k.Find(current)
	if key == nil {
		return nil, k.lacks(current)
	}
	return key, nil
}

// lacks is the error of a process that cannot seal for this installation.
func (k *Keyring) lacks(id string) error {
	return fmt.Errorf("MAILHOOK_SECRET_KEY lacks the master key %s, with which this installation seals secrets (it has %s): add that key: %w",
		id, strings.Join(k.IDs(), ", "), ErrUnknownKey)
}

// Current is the key to seal with, inside of a transaction that stores what it seals: until that ends, the installation's
// key stays the same. It fails with ErrUnknownKey in a process that lacks the key.
func (k *Keyring) Current(ctx context.Context, q *Queries) (*MasterKey, error) {
	id, err := q.HoldMasterKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold the master key: %w", err)
	}
	key := k.Find(id)
	if key == nil {
		return nil, k.lacks(id)
	}
	return key, nil
}

// Seal encrypts plain, which is of a kind, for one subscription.
func (m *MasterKey) Seal(kind string, subscription uuid.UUID, plain []byte) []byte {
	nonce := make([]byte, m.aead.NonceSize(), m.aead.NonceSize()+len(plain)+m.aead.Overhead())
	rand.Read(nonce)
	return m.aead.Seal(nonce, nonce, plain, associated(kind, subscription))
}

// Open decrypts what Seal made of the same kind for the same subscription. Its errors never hold any of the content.
func (k *Keyring) Open(kind string, subscription uuid.UUID, keyID string, sealed []byte) ([]byte, error) {
	key := k.Find(keyID)
	if key == nil {
		return nil, ErrUnknownKey
	}
	size := key.aead.NonceSize()
	if len(sealed) < size {
		return nil, errors.New("sealed value is too short")
	}
	plain, err := key.aead.Open(nil, sealed[:size], sealed[size:], associated(kind, subscription))
	if err != nil {
		return nil, errors.New("sealed value does not open with this key, kind and subscription")
	}
	return plain, nil
}

// associated ends with the 16 bytes of the id, so no two pairs have the same.
func associated(kind string, subscription uuid.UUID) []byte {
	return append([]byte(kind+"\x00"), subscription[:]...)
}

// SealCursor encrypts what a customer gets to hand back, and is not to read: a cursor may stand at another account's row.
func (m *MasterKey) SealCursor(plain []byte) []byte {
	nonce := make([]byte, m.cursors.NonceSize(), m.cursors.NonceSize()+len(plain)+m.cursors.Overhead())
	rand.Read(nonce)
	return m.cursors.Seal(nonce, nonce, plain, nil)
}

// OpenCursor decrypts what SealCursor made with any key of this ring.
func (k *Keyring) OpenCursor(sealed []byte) (plain []byte, ok bool) {
	for _, key := range k.keys {
		size := key.cursors.NonceSize()
		if len(sealed) < size {
			return nil, false
		}
		if plain, err := key.cursors.Open(nil, sealed[:size], sealed[size:], nil); err == nil {
			return plain, true
		}
	}
	return nil, false
}
