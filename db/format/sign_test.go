package format

import (
	"strings"
	"testing"
)

// FuzzSecret: a secret is refused, or signs with the bytes that the contract says.
func FuzzSecret(f *testing.F) {
	for _, secret := range []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_!", "whsec_YQ", "whsec_YQ==", "a secret of sixteen characters or more", "", "whsec_YQ==\n"} {
		f.Add(secret)
	}
	f.Fuzz(func(t *testing.T, secret string) {
		key, err := SigningKey(secret)
		if !strings.HasPrefix(secret, "whsec_") && (err != nil || string(key) != secret) {
			t.Fatalf("%q has the key %q, %v", secret, key, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimPrefix(secret, "whsec_")) && len(secret) > len("whsec_")+8 {
			t.Fatalf("the error tells the secret: %v", err)
		}
	})
}
