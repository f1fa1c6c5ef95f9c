package worker

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"mailhook/db"
	"mailhook/db/format"
)

var errNoCredentials = errors.New("its headers or credentials are not there")

// A scope tells whose connections a request may use: those that carry the same credentials of the same account. Zero: it
// carries none, and uses those of everybody who has none.
type scope [sha256.Size]byte

// unseal opens all that a request needs: every live secret and all credentials, or none. Without one of them the request
// would be another than the customer asked for, and what does not open in its place is not ours.
func (s *subscription) unseal(keyring *db.Keyring, row db.LoadSubscriptionsRow) error {
	for i, sealed := range row.SecretsSealed {
		secret, err := keyring.Open(db.SealedSecret, row.ID, row.SecretKeyIDs[i], sealed)
		if err != nil {
			return fmt.Errorf("a secret under the master key %s: %w", row.SecretKeyIDs[i], err)
		}
		key, err := format.SigningKey(string(secret))
		if err != nil {
			return err
		}
		s.keys = append(s.keys, key)
	}
	if len(s.keys) == 0 {
		return errors.New("it has no signing secret")
	}
	opened := map[string][]byte{}
	for i, kind := range row.CredentialKinds {
		plain, err := keyring.Open(kind, row.ID, row.CredentialKeyIDs[i], row.CredentialsSealed[i])
		if err != nil {
			return fmt.Errorf("its %s under the master key %s: %w", kind, row.CredentialKeyIDs[i], err)
		}
		opened[kind] = plain
	}
	isThirdParty := row.ChannelType != format.Web
	if row.HasHeaders != (opened[db.SealedHeaders] != nil) || row.HasAuth != (opened[db.SealedAuth] != nil) || isThirdParty != (opened[db.SealedChannel] != nil) {
		return errNoCredentials
	}
	if isThirdParty {
		return s.aim(row.ChannelSettings, opened[db.SealedChannel])
	}
	return s.carry(row.AccountID, opened[db.SealedHeaders], opened[db.SealedAuth])
}

// aim sets what the message of another channel than web needs to know, and the URL where that is secret.
func (s *subscription) aim(settings, secrets []byte) error {
	target := &format.Target{}
	if json.Unmarshal(settings, &target.Settings) != nil || json.Unmarshal(secrets, &target.Secrets) != nil {
		return errNoCredentials // not the error: it may quote them
	}
	s.target = target
	s.hidden = hiddenInTarget(target)
	if secret := target.Secrets["url"]; secret != "" {
		s.url = secret
	}
	return nil
}

// shortestToken is how long a part of a URL is at least to be taken for a secret, not for a word.
const shortestToken = 16

// hiddenInTarget are the secrets of a channel; of a URL also what it is made of, as an answer may repeat it.
func hiddenInTarget(target *format.Target) [][]byte {
	var found [][]byte
	for _, secret := range target.Secrets {
		found = append(found, []byte(secret))
		u, err := url.Parse(secret)
		if err != nil || u.Host == "" {
			continue
		}
		for _, part := range append(strings.FieldsFunc(u.RequestURI(), func(r rune) bool { return strings.ContainsRune("/?&=", r) }), strings.Split(u.Path, "/")...) {
			if len(part) >= shortestToken {
				found = append(found, []byte(part))
			}
		}
	}
	return found
}

// carry sets the headers of requests, of which at least one is not nil, and what follows from them.
func (s *subscription) carry(account string, headers, auth []byte) error {
	if headers == nil && auth == nil {
		return nil
	}
	s.headers = map[string]string{}
	if headers != nil && json.Unmarshal(headers, &s.headers) != nil {
		return errNoCredentials // not the error: it may quote them
	}
	if auth != nil {
		s.headers["Authorization"] = string(auth)
	}
	text, err := json.Marshal([]any{account, s.headers}) // sorted by name
	if err != nil {
		return errNoCredentials
	}
	s.scope = sha256.Sum256(text)
	s.hidden = hiddenIn(s.headers)
	return nil
}

// shortestHidden is how long a value is at least for an answer to be searched for it: shorter ones are words of any text.
const shortestHidden = 6

// hiddenIn are the values that must not come back in what is kept of an answer, as debugging endpoints send them: all
// header values, and what Authorization is made of.
func hiddenIn(headers map[string]string) [][]byte {
	var values []string
	for name, value := range headers {
		values = append(values, value)
		if !strings.EqualFold(name, "Authorization") {
			continue
		}
		scheme, token, _ := strings.Cut(value, " ")
		values = append(values, token)
		if plain, err := base64.StdEncoding.DecodeString(token); err == nil && strings.EqualFold(scheme, "Basic") {
			_, password, _ := strings.Cut(string(plain), ":")
			values = append(values, string(plain), password)
		}
	}
	var found [][]byte
	for _, value := range values {
		if len(value) >= shortestHidden {
			found = append(found, []byte(value))
		}
	}
	return found
}

// hidden stands for what nobody is to see.
const hidden = "***"

// hide takes the values out of an excerpt, also the beginning of one at its end. It knows them as they were sent, not
// in every encoding that a receiver may choose. All of them are looked for before any is taken out: one may be part of
// another, and what is left of that would tell the rest.
func hide(excerpt []byte, values [][]byte) []byte {
	var covered []bool
	cover := func(from, to int) {
		if covered == nil {
			covered = make([]bool, len(excerpt))
		}
		for i := range covered[from:to] {
			covered[from+i] = true
		}
	}
	for _, value := range values {
		for from, end := 0, 0; ; from++ {
			i := bytes.Index(excerpt[from:], value)
			if i < 0 {
				break
			}
			from += i
			cover(max(from, end), from+len(value))
			end = from + len(value)
		}
		for n := min(len(value)-1, len(excerpt)); n >= shortestHidden-2; n-- {
			if bytes.HasSuffix(excerpt, value[:n]) {
				cover(len(excerpt)-n, len(excerpt))
				break
			}
		}
	}
	if covered == nil {
		return excerpt
	}
	var shown []byte
	for i, c := range excerpt {
		switch {
		case !covered[i]:
			shown = append(shown, c)
		case i == 0 || !covered[i-1]:
			shown = append(shown, hidden...)
		}
	}
	return shown
}
