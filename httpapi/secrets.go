package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"mailhook/db"
)

// SubscriptionWithSecret is a subscription with its newest signing secret: the answer of create and rotate only.
type SubscriptionWithSecret struct {
	Subscription
	Secret string `json:"secret" doc:"The key of the signatures. It is not shown again."`
}

type rotateSecretRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body *struct {
		Secret optional[string] `json:"secret,omitempty" writeOnly:"true" doc:"Default: a new one."`
		Grace  optional[string] `json:"grace,omitempty" doc:"How long the secret before signs along: 0s to 7d. Default: 24h."`
	} `nameHint:"RotateSecretBody"`
}

type secretResponse struct{ Body SubscriptionWithSecret }

// Secrets: maxSecrets is how many of a subscription are live at most, the newest and those in their grace; a rotation
// beyond it ends the oldest at once, so that the signature header stays short.
const (
	maxSecrets   = 3
	maxGrace     = 7 * 24 * time.Hour
	defaultGrace = 24 * time.Hour
)

func (s *server) storeSecret(ctx context.Context, q *db.Queries, id uuid.UUID, secret string) error {
	err := q.InsertSecret(ctx, db.InsertSecretParams{
		SubscriptionID: id, KeyID: s.config.Keyring.KeyID(), Sealed: s.config.Keyring.Seal(id, []byte(secret)),
	})
	if err != nil {
		return fmt.Errorf("store secret: %w", err)
	}
	return nil
}

// secretOf is the secret that a customer brings, or a new one: whsec_ and 32 random bytes (Standard Webhooks).
func secretOf(in optional[string]) (string, []FieldError) {
	if in.isValue() {
		return in.value, checkSecret(in.value)
	}
	key := make([]byte, 32)
	rand.Read(key) // never fails, by its documentation
	return "whsec_" + base64.StdEncoding.EncodeToString(key), nil
}

func (s *server) rotateSecret(ctx context.Context, who caller, in *rotateSecretRequest) (*secretResponse, error) {
	given, grace := optional[string]{}, defaultGrace
	var found []FieldError
	if in.Body != nil {
		given = in.Body.Secret
		if in.Body.Grace.isValue() {
			grace, found = checkDuration("grace", in.Body.Grace.value, 0, maxGrace)
		}
	}
	secret, wrong := secretOf(given)
	if found = append(found, wrong...); len(found) > 0 {
		return nil, invalid(found...)
	}
	body, err := s.changeSubscription(ctx, who, in.ID, "subscription.rotate_secret", func(q *db.Queries, row db.Subscription) (db.Subscription, error) {
		err := q.ExpireSecrets(ctx, db.ExpireSecretsParams{SubscriptionID: row.ID, Grace: grace, Kept: maxSecrets - 1})
		if err != nil {
			return row, fmt.Errorf("expire secrets: %w", err)
		}
		if err := s.storeSecret(ctx, q, row.ID, secret); err != nil {
			return row, err
		}
		return q.TouchSubscription(ctx, row.ID)
	})
	if err != nil {
		return nil, err
	}
	return &secretResponse{SubscriptionWithSecret{body, secret}}, nil
}

// checkSecret says what is wrong with a signing secret that a customer brings. The message never holds any of it.
func checkSecret(secret string) []FieldError {
	n := utf8.RuneCountInString(secret)
	encoded, isStandard := strings.CutPrefix(secret, "whsec_")
	switch {
	case n < 16 || n > 128 || strings.ContainsFunc(secret, func(r rune) bool { return !unicode.IsPrint(r) }):
		return []FieldError{{"secret", "invalid_secret", "must be 16 to 128 printable characters"}}
	case isStandard:
		if _, err := base64.StdEncoding.Strict().DecodeString(encoded); err != nil {
			return []FieldError{{"secret", "invalid_secret", "must be base64 after whsec_"}}
		}
	}
	return nil
}
