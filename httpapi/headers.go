package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"mailhook/db"
)

// Custom headers: how many, and how much in all. A credential of channel.auth has the same bound.
const (
	maxHeaders     = 20
	maxHeaderBytes = 4096
)

// authInput is a credential that requests carry as their Authorization header.
type authInput struct {
	Type     string           `json:"type" enum:"basic,bearer" doc:"basic (RFC 7617): username and password. bearer (RFC 6750): token."`
	Username optional[string] `json:"username,omitempty" doc:"Without a colon."`
	Password optional[string] `json:"password,omitempty"`
	Token    optional[string] `json:"token,omitempty" doc:"Printable ASCII characters, no spaces."`
}

// credentials are what an input says of the values that are stored sealed: by kind, nil to remove them. A kind that is
// not there stays as it is.
type credentials map[string][]byte

// applyHeaders replaces all headers: this process does not open what it has sealed, so it cannot merge.
func applyHeaders(in optional[map[string]string], to *db.Subscription, sealed credentials) []FieldError {
	if !in.set {
		return nil
	}
	to.HeaderNames, sealed[db.SealedHeaders] = []string{}, nil
	if len(in.value) == 0 {
		return nil
	}
	if found := checkHeaders("channel.headers", in.value); len(found) > 0 {
		return found
	}
	text, err := json.Marshal(in.value)
	if err != nil {
		return []FieldError{{"channel.headers", "invalid_header", "cannot be stored"}} // strings: it does not happen
	}
	to.HeaderNames, sealed[db.SealedHeaders] = slices.Sorted(maps.Keys(in.value)), text
	return nil
}

// applyAuth replaces the credential as a whole, for the same reason.
func applyAuth(in optional[authInput], to *db.Subscription, sealed credentials) []FieldError {
	if !in.set {
		return nil
	}
	to.AuthType, sealed[db.SealedAuth] = nil, nil
	if in.null {
		return nil
	}
	value, found := authorization(in.value)
	to.AuthType, sealed[db.SealedAuth] = &in.value.Type, []byte(value)
	return found
}

// checkOneAuthorization refuses a subscription whose Authorization would be said twice.
func checkOneAuthorization(in channelInput, to *db.Subscription) []FieldError {
	isAuthorization := func(name string) bool { return strings.EqualFold(name, "Authorization") }
	at := slices.IndexFunc(to.HeaderNames, isAuthorization)
	switch {
	case to.AuthType == nil || at < 0:
		return nil
	case in.Headers.isValue():
		return []FieldError{{"channel.headers." + to.HeaderNames[at], "reserved_header", "is made of channel.auth: leave one of them out"}}
	}
	return []FieldError{{"channel.auth", "reserved_header", "there is a custom header Authorization: replace channel.headers in the same request"}}
}

// authorization is the header that a credential makes. Messages never hold any of it.
func authorization(in authInput) (value string, found []FieldError) {
	wrong := func(field, code, message string) {
		found = append(found, FieldError{"channel.auth." + field, code, message})
	}
	switch in.Type {
	case "basic":
		user, password := in.Username.value, in.Password.value
		switch {
		case !in.Username.isValue():
			wrong("username", "required", "is required with basic: channel.auth is replaced as a whole")
		case strings.Contains(user, ":") || !isPlainText(user):
			wrong("username", "invalid_credentials", "must not contain a colon or control characters")
		}
		switch {
		case !in.Password.isValue():
			wrong("password", "required", "is required with basic: channel.auth is replaced as a whole")
		case !isPlainText(password):
			wrong("password", "invalid_credentials", "must not contain control characters")
		}
		if in.Token.set {
			wrong("token", "not_allowed", "does not go with basic: leave it out")
		}
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	case "bearer":
		switch {
		case !in.Token.isValue():
			wrong("token", "required", "is required with bearer: channel.auth is replaced as a whole")
		case in.Token.value == "" || strings.ContainsFunc(in.Token.value, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
			wrong("token", "invalid_credentials", "must be printable ASCII characters without spaces")
		}
		if in.Username.set || in.Password.set {
			wrong("token", "not_allowed", "bearer has a token only: leave username and password out")
		}
		value = "Bearer " + in.Token.value
	default: // huma has refused it
		wrong("type", "not_allowed", "must be basic or bearer")
	}
	if len(value) > maxHeaderBytes {
		found = append(found, FieldError{"channel.auth", "too_long", fmt.Sprintf("must make a header of at most %d bytes", maxHeaderBytes)})
	}
	return value, found
}

// checkHeaders checks custom headers (RFC 9110, 5.1 and 5.5). Messages name a header, never a value.
func checkHeaders(field string, headers map[string]string) []FieldError {
	var found []FieldError
	if len(headers) > maxHeaders {
		found = append(found, FieldError{field, "too_many", fmt.Sprintf("must be at most %d headers", maxHeaders)})
	}
	bytes := 0
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value := headers[name]
		bytes += len(name) + len(value)
		lower := strings.ToLower(name)
		switch {
		case !validHeaderName(name):
			found = append(found, FieldError{field, "invalid_header", "has a name that is not a header name"})
		case isReserved(lower):
			found = append(found, FieldError{field + "." + name, "reserved_header", "is set by mailhook or by HTTP itself: leave it out"})
		case seen[lower]:
			found = append(found, FieldError{field + "." + name, "duplicate_header", "is there twice: names do not differ by case"})
		case !isPlainText(value) || strings.TrimSpace(value) != value:
			found = append(found, FieldError{field + "." + name, "invalid_header", "must not contain control characters, or spaces at its ends"})
		}
		seen[lower] = true
	}
	if bytes > maxHeaderBytes {
		found = append(found, FieldError{field, "too_long", fmt.Sprintf("must be at most %d bytes in all", maxHeaderBytes)})
	}
	return found
}

// isReserved: what frames the request or belongs to the connection, what mailhook sets or signs, and cookies.
func isReserved(lower string) bool {
	switch lower {
	case "host", "connection", "keep-alive", "upgrade", "http2-settings", "te", "trailer", "transfer-encoding", "expect", "cookie",
		"user-agent", "x-signature", "accept-encoding", "idempotency-key":
		return true
	}
	return slices.ContainsFunc([]string{"content-", "webhook-", "proxy-"}, func(p string) bool { return strings.HasPrefix(lower, p) })
}

// validHeaderName says whether name is a token (RFC 9110, 5.6.2), which no pseudo-header is.
func validHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// isPlainText is UTF-8 without control characters: no CR, LF or NUL, and no tab.
func isPlainText(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}
