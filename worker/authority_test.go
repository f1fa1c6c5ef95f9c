package worker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"time"
)

// An authority signs certificates for 127.0.0.1.
type authority struct {
	certificate *x509.Certificate
	leaf        []byte
	leafKey     *ecdsa.PrivateKey
}

func newAuthority() *authority {
	key, certificate := selfSigned()
	a := &authority{certificate: certificate, leafKey: newKey()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "receiver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	var err error
	if a.leaf, err = x509.CreateCertificate(rand.Reader, template, certificate, &a.leafKey.PublicKey, key); err != nil {
		panic(err)
	}
	return a
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// selfSigned is an authority's certificate; all have the same name, so that each is tried as the issuer.
func selfSigned() (*ecdsa.PrivateKey, *x509.Certificate) {
	key := newKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, certificate
}

// config is a server's, which sends so many certificates: its own, and others that could have signed it and have not.
func (a *authority) config(chain int) *tls.Config {
	all := [][]byte{a.leaf}
	_, other := selfSigned()
	for i := range chain - 1 {
		if i < 40 {
			_, other = selfSigned()
		}
		all = append(all, other.Raw)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: all, PrivateKey: a.leafKey}}}
}

// demanding asks for a certificate of the client, in TLS 1.2: there its refusal ends the handshake; in 1.3 it races with the
// request.
func (a *authority) demanding() *tls.Config {
	config := a.config(1)
	config.ClientAuth, config.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12
	return config
}

// only speaks these protocols over TLS.
func (a *authority) only(protocols ...string) *tls.Config {
	config := a.config(1)
	config.NextProtos = protocols
	return config
}

// trusted is a client's configuration that knows the authority.
func (a *authority) trusted() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	return &tls.Config{RootCAs: roots}
}
