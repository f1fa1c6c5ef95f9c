package httpapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Custom headers: how many, and how much in all.
const (
	maxHeaders     = 20
	maxHeaderBytes = 4096
)

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
			found = append(found, FieldError{field + "." + name, "reserved_header", "is set by mailhook or by HTTP itself"})
		case seen[lower]:
			found = append(found, FieldError{field + "." + name, "duplicate_header", "is there twice"})
		case !validHeaderValue(value):
			found = append(found, FieldError{field + "." + name, "invalid_header", "must not contain control characters, or spaces at its ends"})
		}
		seen[lower] = true
	}
	if bytes > maxHeaderBytes {
		found = append(found, FieldError{field, "too_long", fmt.Sprintf("must be at most %d bytes in all", maxHeaderBytes)})
	}
	return found
}

func isReserved(lower string) bool {
	switch lower {
	case "host", "connection", "x-signature", "user-agent", "transfer-encoding", "te", "trailer", "upgrade", "expect", "cookie",
		"keep-alive", "accept-encoding":
		return true
	}
	return slices.ContainsFunc([]string{"content-", "webhook-", "proxy-"}, func(p string) bool { return strings.HasPrefix(lower, p) })
}

// validHeaderName says whether name is a token (RFC 9110, 5.6.2).
func validHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func validHeaderValue(value string) bool {
	return utf8.ValidString(value) && !strings.ContainsFunc(value, unicode.IsControl) && strings.TrimSpace(value) == value
}
