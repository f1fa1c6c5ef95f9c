package worker

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

var errNoSecret = errors.New("no secret that this process can open")

// keyBytes are the bytes that a secret signs with: after whsec_ the rest is base64 (Standard Webhooks, "Signature
// scheme"); any other secret is used as its UTF-8 bytes.
func keyBytes(secret string) ([]byte, error) {
	if encoded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, errors.New("the secret's part after whsec_ is not base64")
		}
		return key, nil
	}
	return []byte(secret), nil
}

// sign sets the Standard Webhooks headers and X-Signature. keys come newest first; each signs webhook-signature, only
// the newest X-Signature.
func sign(header http.Header, id string, at time.Time, body []byte, keys [][]byte) error {
	if len(keys) == 0 {
		return errNoSecret
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signatures := make([]string, 0, len(keys))
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(body)
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	mac := hmac.New(sha256.New, keys[0])
	mac.Write(body)
	header.Set("Webhook-Id", id)
	header.Set("Webhook-Timestamp", timestamp)
	header.Set("Webhook-Signature", strings.Join(signatures, " "))
	header.Set("X-Signature", "hmac-sha256="+hex.EncodeToString(mac.Sum(nil)))
	return nil
}
