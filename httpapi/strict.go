package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"
)

// givenTwice begins the message of the error about a field that is there twice; its path follows.
const givenTwice = "field given twice: "

// strictFormats are JSON as huma has it, but for bodies in which a name is there twice in one object (RFC 8259 leaves
// open which counts). Upper and lower case are one: encoding/json takes "NAME" for name, after huma has checked name.
func strictFormats() map[string]huma.Format {
	format := huma.DefaultJSONFormat
	format.Unmarshal = func(body []byte, into any) error {
		if err := json.Unmarshal(body, into); err != nil {
			return err
		}
		if _, isFirst := into.(*any); !isFirst { // huma decodes a body twice, the first time to check it
			return nil
		}
		if path := findDuplicate(body); path != "" {
			return errors.New(givenTwice + path)
		}
		return nil
	}
	return map[string]huma.Format{"application/json": format, "json": format}
}

// findDuplicate answers the dotted path of the first name that is there twice in its object, empty for none. The body is
// valid JSON.
func findDuplicate(body []byte) string {
	decoder := json.NewDecoder(bytes.NewReader(body))
	return duplicateInValue(decoder, "")
}

// duplicateInValue reads one value; path is where it is.
func duplicateInValue(decoder *json.Decoder, path string) string {
	opening, err := decoder.Token()
	if err != nil || opening != json.Delim('{') && opening != json.Delim('[') {
		return ""
	}
	names := map[string]bool{}
	for decoder.More() {
		at := path
		if opening == json.Delim('{') {
			token, err := decoder.Token()
			name, isName := token.(string)
			if err != nil || !isName {
				return ""
			}
			at = strings.TrimPrefix(path+"."+name, ".")
			name = fold(name)
			if names[name] {
				return at
			}
			names[name] = true
		}
		if found := duplicateInValue(decoder, at); found != "" {
			return found
		}
	}
	decoder.Token() //nolint:errcheck // the closing bracket
	return ""
}

// fold makes names alike that encoding/json takes for one: the smallest rune of those that differ in case only.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, name)
}
