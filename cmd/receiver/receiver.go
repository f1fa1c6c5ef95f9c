// Package receiver is the other end of a webhook: a handler that verifies what it gets with the official Standard
// Webhooks library and by X-Signature. The commands listen and demo, and the tests, receive with it.
package receiver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
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
	Type   string
	Test   bool
	Events []string // ids in the body: one, or those of a batch
	Body   []byte
	Header http.Header
	At     time.Time
	// Problem is what is wrong with the request: nil when both signatures are right.
	Problem error
}

// A Receiver answers webhooks. Its functions are called from many goroutines.
type Receiver struct {
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
	}
	if err == nil {
		err = receipt.read()
	}
	receipt.Problem = err
	v.Answer(w, receipt)
}

// An envelope is what every event of format standard has.
type envelope struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Test bool   `json:"test"`
}

// read takes type and ids from the body: an event, or an array of them under the id of a batch.
func (r *Receipt) read() error {
	var events []envelope
	isArray := bytes.HasPrefix(r.Body, []byte("["))
	if !isArray {
		var one envelope
		if err := json.Unmarshal(r.Body, &one); err != nil {
			return err
		}
		events = []envelope{one}
	} else if err := json.Unmarshal(r.Body, &events); err != nil {
		return err
	} else if len(events) == 0 || !strings.HasPrefix(r.ID, "bat_") {
		return fmt.Errorf("%d events in an array under the webhook-id %s", len(events), r.ID)
	}
	for _, e := range events {
		r.Events = append(r.Events, e.ID)
	}
	r.Type, r.Test = events[0].Type, events[0].Test
	if !isArray && events[0].ID != r.ID {
		return fmt.Errorf("webhook-id is %s but the body's id is %s", r.ID, events[0].ID)
	}
	return nil
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
