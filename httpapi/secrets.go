package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/format"
)

// SubscriptionWithSecret is a subscription with its newest signing secret: the answer of create and rotate only.
type SubscriptionWithSecret struct {
	Subscription
	Secret   string  `json:"secret" doc:"The key of the signatures. It is not shown again."`
	Backfill *Replay `json:"backfill,omitempty" doc:"Where create asked for one."`
}

// A LiveSecret says since when a signing secret signs, and until when; never what it is.
type LiveSecret struct {
	CreatedAt Timestamp  `json:"created_at"`
	ExpiresAt *Timestamp `json:"expires_at" doc:"When it ceases to sign along, after a rotation; null for the newest."`
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

// withSecrets is a subscription as it is answered alone: with how long its secrets sign.
func withSecrets(ctx context.Context, q *db.Queries, row db.Subscription) (Subscription, error) {
	answer := subscriptionOf(row)
	live, err := q.ListLiveSecrets(ctx, row.ID)
	if err != nil {
		return answer, fmt.Errorf("list secrets: %w", err)
	}
	for _, l := range live {
		answer.Secrets = append(answer.Secrets, LiveSecret{Timestamp(l.CreatedAt), optionalTimestamp(l.ExpiresAt)})
	}
	return answer, nil
}

// storeSecret seals with the installation's master key as it is in this transaction, so that none goes past a rotation.
func (s *server) storeSecret(ctx context.Context, q *db.Queries, id uuid.UUID, secret string) error {
	key, err := s.sealingKey(ctx, q)
	if err != nil {
		return err
	}
	err = q.InsertSecret(ctx, db.InsertSecretParams{SubscriptionID: id, KeyID: key.ID, Sealed: key.Seal(db.SealedSecret, id, []byte(secret))})
	if err != nil {
		return fmt.Errorf("store secret: %w", err)
	}
	return nil
}

// storeCredentials does the same with what an input says of the values that are stored sealed.
func (s *server) storeCredentials(ctx context.Context, q *db.Queries, id uuid.UUID, sealed credentials) error {
	for kind, plain := range sealed {
		if plain == nil {
			if err := q.DeleteCredentials(ctx, db.DeleteCredentialsParams{SubscriptionID: id, Kind: kind}); err != nil {
				return fmt.Errorf("remove %s: %w", kind, err)
			}
			continue
		}
		key, err := s.sealingKey(ctx, q)
		if err != nil {
			return err
		}
		if err := q.PutCredentials(ctx, db.PutCredentialsParams{SubscriptionID: id, Kind: kind, KeyID: key.ID, Sealed: key.Seal(kind, id, plain)}); err != nil {
			return fmt.Errorf("store %s: %w", kind, err)
		}
	}
	return nil
}

// sealingKey is the key to seal with. A process that lacks it, because it was not restarted before a rotation, answers
// 503: another one has it, or its operator has to act.
func (s *server) sealingKey(ctx context.Context, q *db.Queries) (*db.MasterKey, error) {
	key, err := s.config.Keyring.Current(ctx, q)
	if errors.Is(err, db.ErrUnknownKey) {
		s.config.Logger.ErrorContext(ctx, "this process cannot seal secrets: restart it with the new master key", "error", err)
		return nil, fail(codeUnavailable, "this API process lacks the installation's master key, so it can store no secrets: try again, or tell its operator to restart it with that key")
	}
	return key, err
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
	public, err := format.PublicKey(secret)
	if err != nil {
		return nil, fmt.Errorf("derive public key: %w", err)
	}
	action := "subscription.rotate_secret"
	body, err := s.changeSubscription(ctx, who, in.ID, &action, func(q *db.Queries, row db.Subscription) (db.Subscription, error) {
		err := q.ExpireSecrets(ctx, db.ExpireSecretsParams{SubscriptionID: row.ID, Grace: grace, Kept: maxSecrets - 1})
		if err != nil {
			return row, fmt.Errorf("expire secrets: %w", err)
		}
		if err := s.storeSecret(ctx, q, row.ID, secret); err != nil {
			return row, err
		}
		return q.SetPublicKey(ctx, db.SetPublicKeyParams{ID: row.ID, PublicKey: public})
	})
	if err != nil {
		return nil, err
	}
	return &secretResponse{SubscriptionWithSecret{Subscription: body, Secret: secret}}, nil
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
