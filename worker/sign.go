package worker

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"
)

var errNoSecret = errors.New("no secret that this process can open")

// sign sets the Standard Webhooks headers and X-Signature. keys come newest first; each signs webhook-signature, only
// the newest X-Signature.
func sign(header http.Header, id string, at time.Time, body []byte, keys [][]byte) error {
	if len(keys) == 0 {
		return errNoSecret
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	content := make([]byte, 0, len(id)+len(timestamp)+2+len(body))
	content = append(append(append(append(append(content, id...), '.'), timestamp...), '.'), body...)
	var sum [sha256.Size]byte
	signatures := make([]byte, 0, 48*len(keys))
	for i, key := range keys {
		if i > 0 {
			signatures = append(signatures, ' ')
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(content)
		signatures = append(signatures, "v1,"...)
		signatures = base64.StdEncoding.AppendEncode(signatures, mac.Sum(sum[:0]))
	}
	mac := hmac.New(sha256.New, keys[0])
	mac.Write(body)
	plain := hex.AppendEncode(append(make([]byte, 0, 80), "hmac-sha256="...), mac.Sum(sum[:0]))
	values := []string{id, timestamp, string(signatures), string(plain)}
	header["Webhook-Id"], header["Webhook-Timestamp"] = values[0:1:1], values[1:2:2]
	header["Webhook-Signature"], header["X-Signature"] = values[2:3:3], values[3:]
	return nil
}
