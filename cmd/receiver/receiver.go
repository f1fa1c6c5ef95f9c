// Package receiver is the other end of a webhook: a handler that verifies what it gets as the receivers of a format would:
// with the official Standard Webhooks library, by X-Signature, and by the signature of the format where it has one. The
// commands listen and demo, and the tests, receive with it.
package receiver

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A Receipt is one request as it came in.
type Receipt struct {
	Path   string
	ID     string // webhook-id
	Type   string // in the words of the format; of an array, that of its first event
	Test   bool
	Events []string // the ids in the body; "" where the format has none
	Body   []byte
	Header http.Header
	At     time.Time
	// Problem is what is wrong with the request: nil when all signatures are right, and the body is of the format.
	Problem error
}

// A Receiver answers webhooks. Its functions are called from many goroutines.
type Receiver struct {
	// Format is that of the bodies; "" is standard.
	Format string
	// Secret is the signing secret of a path.
	Secret func(path string) string
	// Answer decides the status of a receipt, and may write headers and a body; it runs before the answer is sent, so
	// what it notes down is noted when the sender learns of it.
	Answer func(http.ResponseWriter, Receipt)
}

// ServeHTTP verifies a request and answers it.
func (v *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2<<20))
	receipt := Receipt{Path: r.URL.Path, ID: r.Header.Get("webhook-id"), Body: body, Header: r.Header, At: time.Now()}
	if err == nil {
		err = errors.Join(
			verifyStandard(v.Secret(r.URL.Path), body, r.Header),
			verifyXSignature(v.Secret(r.URL.Path), body, r.Header.Get("X-Signature")))
		if v.Format == "sendgrid" {
			err = errors.Join(err, verifySendGrid(v.Secret(r.URL.Path), body, r.Header))
		}
	}
	if err == nil {
		err = v.readBody(&receipt)
	}
	receipt.Problem = err
	v.Answer(w, receipt)
}

func verifyStandard(secret string, body []byte, header http.Header) error {
	encoded, ok := strings.CutPrefix(secret, "whsec_")
	if !ok {
		encoded = base64.StdEncoding.EncodeToString([]byte(secret))
	}
	webhook, err := standardwebhooks.NewWebhook(encoded)
	if err != nil {
		return fmt.Errorf("read the secret: %w", err)
	}
	if err := webhook.Verify(body, header); err != nil {
		return fmt.Errorf("webhook-signature: %w", err)
	}
	return nil
}

func verifyXSignature(secret string, body []byte, signature string) error {
	key := []byte(secret)
	if encoded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		key, _ = base64.StdEncoding.DecodeString(encoded)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	if signature != "hmac-sha256="+hex.EncodeToString(mac.Sum(nil)) {
		return errors.New("X-Signature does not match")
	}
	return nil
}
