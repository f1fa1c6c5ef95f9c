package format

import (
	"encoding/base64"
	"errors"
	"strings"
)

// SigningKey is the bytes that a secret signs with: after whsec_ the rest is base64 (Standard Webhooks, "Signature
// scheme"); any other secret is used as its UTF-8 bytes. The error does not tell the secret.
func SigningKey(secret string) ([]byte, error) {
	if encoded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, errors.New("the secret's part after whsec_ is not base64")
		}
		return key, nil
	}
	return []byte(secret), nil
}
