package db

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxAddressBytes is what an address may have: 64, the @, and 255 (RFC 5321 section 4.5.3.1).
const maxAddressBytes = 320

// ErrBadAddress is the error of what is no address. It never quotes it.
var ErrBadAddress = errors.New("must be one address of at most 320 bytes, such as ann@example.com")

const (
	// notLocal are the codes below 0x80, in hexadecimal, of what cannot be part of an address before its @, or separates
	// in practice: a '=' or '/' before it is that of a URL.
	notLocal = `([01][0-9A-Fa-f]|2[0-9AaCcFf]|3[A-Fa-f]|40|5[B-Eb-e]|60|7[B-Fb-f])`
	// begins is where an address may begin: nothing that could belong to it stands before, or it is an escape. \u20xx is
	// punctuation; \ooo is a byte in PostgreSQL's escape format of bytea, and as a letter would be no ASCII.
	begins = `(^|[^[:alnum:]._%+\\-]|\\+u00` + notLocal + `|\\+u20[0-9A-Fa-f]{2}|\\+[nrtbf"/]|\\+[0-7]{3}|%(25)*` + notLocal + `)`
	// ends is where its domain ends: example.com, and not example.com.au.
	ends = `[.-]*($|[^[:alnum:].-])`
)

// RecipientPattern is a regular expression for PostgreSQL that finds an address in text, JSON or URL, and in the escaped
// form of bytes: in any case, with each character as it is, escaped as JSON does (once or more) or as URLs do (once or
// more). It does not find it as part of a longer address. It fails with ErrBadAddress.
func RecipientPattern(address string) (string, error) {
	at := strings.LastIndexByte(address, '@')
	if len(address) > maxAddressBytes || at < 1 || at == len(address)-1 || !utf8.ValidString(address) {
		return "", ErrBadAddress
	}
	var pattern strings.Builder
	pattern.WriteString(begins)
	for _, r := range address {
		if unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`<>,;"\`, r) {
			return "", ErrBadAddress
		}
		pattern.WriteString(spellings(r))
	}
	pattern.WriteString(ends)
	return pattern.String(), nil
}

// spellings is the part of the pattern for one character.
func spellings(r rune) string {
	var ways []string
	for folded := r; ; {
		ways = append(ways, literal(folded), `\\+u`+hexOf(utf16Of(folded), `\\+u`, 4), `%(25)*`+hexOf(bytesOf(folded), `%(25)*`, 2))
		if folded >= utf8.RuneSelf {
			ways = append(ways, octal(folded))
		}
		if folded = unicode.SimpleFold(folded); folded == r {
			return "(" + strings.Join(ways, "|") + ")"
		}
	}
}

// literal is the character itself: in brackets, where but four mean something.
func literal(r rune) string {
	if strings.ContainsRune(`\]^[`, r) {
		return `\` + string(r)
	}
	return "[" + string(r) + "]"
}

func utf16Of(r rune) (units []uint16) { return utf16.AppendRune(nil, r) }

func bytesOf(r rune) (units []uint16) {
	for _, b := range utf8.AppendRune(nil, r) {
		units = append(units, uint16(b))
	}
	return units
}

// hexOf is numbers in hexadecimal digits of either case, with a pattern between them.
func hexOf(units []uint16, between string, digits int) string {
	var parts []string
	for _, unit := range units {
		var part strings.Builder
		for _, digit := range fmt.Sprintf("%0*x", digits, unit) {
			if unicode.IsLetter(digit) {
				fmt.Fprintf(&part, "[%c%c]", digit, unicode.ToUpper(digit))
			} else {
				part.WriteRune(digit)
			}
		}
		parts = append(parts, part.String())
	}
	return strings.Join(parts, between)
}

// octal is the bytes of a character as encode(…, 'escape') writes them.
func octal(r rune) string {
	var pattern strings.Builder
	for _, b := range utf8.AppendRune(nil, r) {
		fmt.Fprintf(&pattern, `\\%03o`, b)
	}
	return pattern.String()
}
