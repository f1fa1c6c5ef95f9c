package httpapi

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// optional tells apart the three things that a field of a merge patch (RFC 7396) may be: absent, null and a value.
type optional[T any] struct {
	set   bool
	null  bool
	value T
}

// UnmarshalJSON is called for null too, and not for what is absent.
func (o *optional[T]) UnmarshalJSON(text []byte) error {
	o.set = true
	if string(text) == "null" {
		o.null = true
		return nil
	}
	err := json.Unmarshal(text, &o.value)
	if whole, ok := wholeNumber(text); err != nil && ok {
		return json.Unmarshal(whole, &o.value)
	}
	return err
}

// wholeNumber writes 32.0 or 3.2e1 as 32: JSON Schema takes each of them for an integer, and encoding/json does not.
func wholeNumber(text []byte) ([]byte, bool) {
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return nil, false
	}
	return strconv.AppendInt(nil, int64(f), 10), true
}

// Schema is that of the value, or null.
func (optional[T]) Schema(r huma.Registry) *huma.Schema {
	schema := r.Schema(reflect.TypeFor[T](), true, "")
	if schema.Ref == "" && schema.Type != "" {
		clone := *schema
		clone.Nullable = true
		return &clone
	}
	return schema
}

// isValue says that there is a value, neither null nor absent.
func (o optional[T]) isValue() bool { return o.set && !o.null }

// pick is what a field becomes: itself when absent, the default for null, else the value given.
func (o optional[T]) pick(current, byDefault T) T {
	switch {
	case !o.set:
		return current
	case o.null:
		return byDefault
	}
	return o.value
}

// checkDuration reads a duration between two bounds.
func checkDuration(field, text string, least, most time.Duration) (time.Duration, []FieldError) {
	d, err := db.ParseDuration(text)
	if err != nil {
		return 0, []FieldError{{field, "invalid_duration", err.Error()}}
	}
	if d < least || d > most {
		return 0, []FieldError{{field, "out_of_range", fmt.Sprintf("must be from %s to %s", db.FormatDuration(least), spellMost(most))}}
	}
	return d, nil
}

// spellMost writes an upper bound: 24h, but from two days on whole ones as days.
func spellMost(d time.Duration) string {
	if d <= 24*time.Hour {
		return db.FormatDuration(d)
	}
	return db.FormatDays(d)
}

// eventTypeSyntax is validEventType in words.
const eventTypeSyntax = "dotted lower-case words of letters, digits and _, at most 100 bytes, such as email.bounced"

// invalidEventType is what is wrong with a node of the type hierarchy that is not written as one.
func invalidEventType(field string) FieldError {
	return FieldError{field, "invalid_event_type", "must be " + eventTypeSyntax}
}

// validEventType is ^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$ and at most 100 bytes.
func validEventType(name string) bool {
	for word := range strings.SplitSeq(name, ".") {
		if word == "" || word[0] < 'a' || word[0] > 'z' || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return false
		}
	}
	return len(name) <= 100
}

// checkEventTypes checks a list of nodes, of which * is one, and takes out what is there twice.
func checkEventTypes(field string, names []string) ([]string, []FieldError) {
	var found []FieldError
	if len(names) == 0 {
		found = append(found, FieldError{field, "too_few", "must name at least one event type"})
	}
	for i, name := range names {
		if name != "*" && !validEventType(name) {
			found = append(found, invalidEventType(fmt.Sprintf("%s[%d]", field, i)))
		}
	}
	return unique(names), found
}

// unique keeps the first of equal values.
func unique(values []string) []string {
	seen := make(map[string]bool, len(values))
	kept := make([]string, 0, len(values))
	for _, v := range values {
		if !seen[v] {
			seen[v] = true
			kept = append(kept, v)
		}
	}
	return kept
}

// checkText refuses what PostgreSQL cannot hold or nobody can read.
func checkText(field, text string, mostBytes int) []FieldError {
	switch {
	case len(text) > mostBytes:
		return []FieldError{{field, "too_long", fmt.Sprintf("must be at most %d bytes long", mostBytes)}}
	case strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text):
		return []FieldError{{field, "invalid", "must not contain control characters"}}
	}
	return nil
}

// hasUnstorable says that a decoded path or query holds what no text column can: NUL or bad UTF-8.
func hasUnstorable(r *http.Request) bool {
	if strings.Contains(r.URL.Path, "\x00") || !utf8.ValidString(r.URL.Path) {
		return true
	}
	for name, values := range r.URL.Query() {
		for _, text := range append(values, name) {
			if strings.Contains(text, "\x00") || !utf8.ValidString(text) {
				return true
			}
		}
	}
	return false
}
