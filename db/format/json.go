package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// appendString writes s as JSON, without the escapes for HTML that encoding/json adds by default.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendEscaped(b []byte, s string) []byte {
	buffer := bytes.NewBuffer(b)
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	encoder.Encode(s) //nolint:errcheck // a string into a buffer
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
}

// plainKey is a quoted key without quotes and escapes.
func plainKey(key []byte) ([]byte, error) {
	if bytes.IndexByte(key, '\\') < 0 {
		return key[1 : len(key)-1], nil
	}
	var name string
	err := json.Unmarshal(key, &name)
	return []byte(name), err
}

var errNoObject = errors.New("data is not a JSON object")

// eachMember calls f with each member of a JSON object: the key with its quotes, and the value, as they stand there.
// The object is known to be JSON, because PostgreSQL's type json has taken it; so this only looks for where things
// end. A parser would read every number to write it again: it took a seventh of the worker's CPU time.
func eachMember(object []byte, f func(key, value []byte) error) error {
	rest := skipSpace(object)
	if len(rest) == 0 || rest[0] != '{' {
		return errNoObject
	}
	rest = skipSpace(rest[1:])
	for len(rest) > 0 && rest[0] != '}' {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		n := valueEnd(rest)
		key := rest[:n]
		rest = skipSpace(rest[n:])
		if len(key) < 2 || key[0] != '"' || len(rest) == 0 || rest[0] != ':' {
			return errNoObject
		}
		rest = skipSpace(rest[1:])
		n = valueEnd(rest)
		if n == 0 {
			return errNoObject
		}
		if err := f(key, rest[:n]); err != nil {
			return err
		}
		rest = skipSpace(rest[n:])
	}
	if len(rest) == 0 {
		return errNoObject
	}
	return nil
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// valueEnd is the length of the value that b begins with.
func valueEnd(b []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case depth == 0 && (c == ',' || c == ':' || c == ' ' || c == '\t' || c == '\r' || c == '\n'):
			return i
		}
	}
	return len(b)
}

// eachElement calls f with each value of a JSON array, as it stands there; as eachMember.
func eachElement(array []byte, f func(value []byte) error) error {
	rest := skipSpace(array)
	if len(rest) == 0 || rest[0] != '[' {
		return errNoObject
	}
	rest = skipSpace(rest[1:])
	for len(rest) > 0 && rest[0] != ']' {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		n := valueEnd(rest)
		if n == 0 {
			return errNoObject
		}
		if err := f(rest[:n]); err != nil {
			return err
		}
		rest = skipSpace(rest[n:])
	}
	if len(rest) == 0 {
		return errNoObject
	}
	return nil
}
