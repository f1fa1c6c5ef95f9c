package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// inert writes what strangers wrote (names, bodies, error texts) so that a terminal shows it and does nothing: controls,
// newlines too, marks that change the direction of text, and bytes that are no UTF-8 are escaped, the way JSON does it,
// so that JSON stays JSON.
func inert(text string) string { return escape(text, "") }

// cell is inert text for a column of a table, no longer than 60 characters.
func cell(text string) string {
	const most = 60
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most-1]) + "…"
	}
	return inert(text)
}

// inertWriter is where all commands write, and their logs: only newlines and tabs pass of what does not print. Each
// Write is a text of its own.
type inertWriter struct{ io.Writer }

func (w inertWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.Writer, escape(string(p), "\n\t")); err != nil {
		return 0, err
	}
	return len(p), nil
}

func escape(text, except string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case unicode.IsPrint(r) || strings.ContainsRune(except, r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
