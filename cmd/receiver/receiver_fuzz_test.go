package receiver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

const fuzzSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// FuzzVerify: what is signed verifies; with another body, id, time or secret it does not; and no header makes a panic.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"id":"evt_1","type":"email.sent"}`), []byte(`{"id":"evt_1","type":"email.sent" }`), "evt_1", "v1,AAAA", "1705314601")
	f.Add([]byte(`{}`), []byte{}, "", "v1, v1,", "")
	f.Add([]byte("\xff"), []byte("\x00"), "evt.1", "v1,%", "-1")
	f.Add([]byte(`{"id":"a.b"}`), []byte(`b.{"id":"a.b"}`), "a", "v2,AAAA v1a,AAAA", "99999999999999999999")
	f.Fuzz(func(t *testing.T, body, other []byte, id, forged, at string) {
		now := strconv.FormatInt(time.Now().Unix(), 10)
		right, plain := signatures(id, now, body)
		problem := verify(body, id, now, right, plain)
		var envelope struct {
			ID, Type string
			Test     bool
		}
		list := []json.RawMessage{body}
		if isArray := json.Unmarshal(body, &list) == nil; isArray && len(list) == 0 {
			list = []json.RawMessage{[]byte("none")}
		}
		parses := true
		for i := range list {
			one := list[len(list)-1-i] // the first is read last
			envelope.ID = ""
			parses = parses && json.Unmarshal(one, &envelope) == nil && envelope.ID != ""
		}
		parses = parses && (envelope.ID == id || strings.HasPrefix(id, "bat_"))
		if sendable := id != "" && parses; sendable != (problem == nil) {
			t.Fatalf("signed %q, %q: %v", id, body, problem)
		}
		if !bytes.Equal(body, other) && verify(other, id, now, right, plain) == nil {
			t.Fatalf("%q is accepted with the signatures of %q", other, body)
		}
		if forged != right && verify(body, id, now, forged, plain) == nil {
			t.Fatalf("the signature %q is accepted for %q", forged, body)
		}
		if at != now && verify(body, id, at, right, plain) == nil {
			t.Fatalf("the time %q is accepted for %q", at, now)
		}
		if forged != plain && verify(body, id, now, right, forged) == nil {
			t.Fatalf("X-Signature %q is accepted for %q", forged, body)
		}
		// Whatever the headers hold, and whatever the secret is.
		verifyBy(string(other), body, forged, at, forged, forged)
	})
}

func verify(body []byte, id, at, signature, plain string) error {
	return verifyBy(fuzzSecret, body, id, at, signature, plain)
}

func verifyBy(secret string, body []byte, id, at, signature, plain string) (problem error) {
	r := &Receiver{Secret: func(string) string { return secret }, Answer: func(_ http.ResponseWriter, got Receipt) { problem = got.Problem }}
	request := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	request.Header = http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {at}, "Webhook-Signature": {signature}, "X-Signature": {plain}}
	r.ServeHTTP(httptest.NewRecorder(), request)
	return problem
}

// signatures are made here by the words of Standard Webhooks, and by no code of ours or of the library.
func signatures(id, at string, body []byte) (standard, plain string) {
	key, _ := base64.StdEncoding.DecodeString(fuzzSecret[len("whsec_"):])
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	standard = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	mac = hmac.New(sha256.New, key)
	mac.Write(body)
	return standard, "hmac-sha256=" + hex.EncodeToString(mac.Sum(nil))
}
