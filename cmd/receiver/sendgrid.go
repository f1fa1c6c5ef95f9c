package receiver

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"

	"mailhook/db/format"
)

// verifySendGrid is what SendGrid's libraries do: ECDSA over the time and the body, by the public key. A customer copies that
// from the API; it is derived here from the secret.
func verifySendGrid(secret string, body []byte, header http.Header) error {
	public, err := publicKey(secret)
	if err != nil {
		return fmt.Errorf("read the secret: %w", err)
	}
	signature, err := base64.StdEncoding.DecodeString(header.Get("X-Twilio-Email-Event-Webhook-Signature"))
	if err != nil || len(signature) == 0 {
		return errors.New("X-Twilio-Email-Event-Webhook-Signature is missing, or not base64")
	}
	digest := sha256.Sum256(append([]byte(header.Get("X-Twilio-Email-Event-Webhook-Timestamp")), body...))
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		return errors.New("X-Twilio-Email-Event-Webhook-Signature does not match")
	}
	return nil
}

func publicKey(secret string) (*ecdsa.PublicKey, error) {
	encoded, err := format.PublicKey(secret)
	if err != nil {
		return nil, err
	}
	der, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("the public key is not one of ECDSA")
	}
	return key, nil
}
