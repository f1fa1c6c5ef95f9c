package format

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strconv"
)

// signingKeyInfo binds the derived key to its purpose (RFC 5869, info). Another text would be another public key for every
// customer.
const signingKeyInfo = "mailhook ECDSA P-256 signing key "

// PublicKey is what receivers of formats with asymmetric signatures verify with: the ECDSA key on P-256 that is derived from
// a secret, as base64 of its DER (SubjectPublicKeyInfo).
func PublicKey(secret string) (string, error) {
	key, err := SigningKey(secret)
	if err != nil {
		return "", err
	}
	private, err := ecdsaKey(key)
	if err != nil {
		return "", err
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return "", fmt.Errorf("write public key: %w", err)
	}
	return base64.StdEncoding.EncodeToString(public), nil
}

// ecdsaKey derives a private key from the bytes that a secret signs with: 32 bytes of HKDF-SHA256 without salt, and
// with signingKeyInfo and 0 as info. Where they are no scalar of the curve, which one time in 2³² they are not, it is 1, and so on.
func ecdsaKey(key []byte) (*ecdsa.PrivateKey, error) {
	for n := 0; ; n++ {
		scalar, err := hkdf.Key(sha256.New, key, nil, signingKeyInfo+strconv.Itoa(n), 32)
		if err != nil {
			return nil, fmt.Errorf("derive signing key: %w", err)
		}
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
		if err == nil || n == 8 {
			return private, err
		}
	}
}

// signECDSA is the signature of SHA-256 of text by the key that is derived from key: ASN.1 in base64, the same each time
// (RFC 6979).
func signECDSA(key, text []byte) (string, error) {
	private, err := ecdsaKey(key)
	if err != nil {
		return "", err
	}
	digest := sha256.Sum256(text)
	signature, err := private.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return base64.StdEncoding.EncodeToString(signature), nil
}
