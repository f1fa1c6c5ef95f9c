package format

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"testing"
	"time"
)

// TestPublicKeyIsStable: customers have copied it, so no later version may derive another.
func TestPublicKeyIsStable(t *testing.T) {
	t.Parallel()
	for secret, want := range map[string]string{
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw": "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYLA0GK3UAC6fIONltYBmJ+enNIGmG6G6XpiyvtaQAA4A0ncR0OL9HxgZjvx2Me+0U+Xabh1wn0hnt/XT4I3cUw==",
		"a secret of sixteen or more":            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7MYmMCssnQIqId/zCmUST0gyOdu5Pah3p96fyEmToi7+o2tlU6b8iEWIWvcCUT+KTEHgTvtNB5FGSk9vnOaqbQ==",
	} {
		if got, err := PublicKey(secret); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", secret, got, err, want)
		}
	}
	if _, err := PublicKey("whsec_!"); err == nil {
		t.Error("what follows whsec_ must be base64")
	}
}

// TestSendGridSignature: by the newest key, over the time and the body, the same each time.
func TestSendGridSignature(t *testing.T) {
	t.Parallel()
	f, _ := Find("sendgrid")
	keys := [][]byte{[]byte("the newest one"), []byte("an older one")}
	at, body := time.Unix(1705314601, 0), []byte("[{}]")
	first, second := http.Header{}, http.Header{}
	for _, header := range []http.Header{first, second} {
		if err := f.Sign(header, at, body, keys); err != nil {
			t.Fatal(err)
		}
	}
	signature := first.Get("X-Twilio-Email-Event-Webhook-Signature")
	if signature != second.Get("X-Twilio-Email-Event-Webhook-Signature") || first.Get("X-Twilio-Email-Event-Webhook-Timestamp") != "1705314601" {
		t.Errorf("%v, then %v", first, second)
	}
	verifies := func(secret, text string) bool {
		encoded, _ := PublicKey(secret)
		der, _ := base64.StdEncoding.DecodeString(encoded)
		public, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			t.Fatal(err)
		}
		digest, raw := sha256.Sum256([]byte(text)), mustDecode(t, signature)
		return ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], raw)
	}
	if !verifies("the newest one", "1705314601[{}]") {
		t.Error("it does not verify")
	}
	if verifies("an older one", "1705314601[{}]") || verifies("the newest one", "1705314602[{}]") || verifies("the newest one", "1705314601[{} ]") {
		t.Error("it verifies what it should not")
	}
	if f.Sign(http.Header{}, at, body, nil) == nil {
		t.Error("signed without a key")
	}
}

func mustDecode(t *testing.T, text string) []byte {
	t.Helper()
	decoded, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}
