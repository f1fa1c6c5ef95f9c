package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// applyData puts conditions on fields of data beside the others.
func applyData(in optional[dataInput], byName map[string]condition) (found []FieldError) {
	const field = "filters.data"
	if in.null {
		maps.DeleteFunc(byName, func(_ string, c condition) bool { return c.Field == "" })
	}
	if len(in.value) > 2*maxDataConditions { // as many go, and as many come
		return []FieldError{{field, "too_many", fmt.Sprintf("must have at most %d conditions", maxDataConditions)}}
	}
	for _, spelled := range slices.Sorted(maps.Keys(in.value)) {
		at := cutField(field + "." + spelled)
		path, fault := parsePath(spelled)
		if fault != "" {
			found = append(found, FieldError{at, "invalid_path", fault})
			continue
		}
		c := condition{Path: path}
		found = append(found, c.read(at, in.value[spelled])...)
		put(byName, c)
	}
	count := 0
	for _, c := range byName {
		if c.Field == "" {
			count++
		}
	}
	if count > maxDataConditions {
		found = append(found, FieldError{field, "too_many", fmt.Sprintf("must have at most %d conditions, and would have %d: remove some with null", maxDataConditions, count)})
	}
	return found
}

// read takes what is to be found at a path: a value, a list of values, or an object with any or prefix.
func (c *condition) read(at string, text json.RawMessage) []FieldError {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var given any
	if decoder.Decode(&given) != nil {
		return []FieldError{{at, "wrong_type", "must be JSON"}}
	}
	to := &c.Any
	if object, ok := given.(map[string]any); ok {
		anyOf, hasAny := object["any"]
		prefix, hasPrefix := object["prefix"]
		if len(object) != 1 || !hasAny && !hasPrefix {
			return []FieldError{{at, "wrong_type", `must be a value, a list of values, {"any": […]} or {"prefix": […]}`}}
		}
		if given = anyOf; hasPrefix {
			to, given, at = &c.Prefix, prefix, at+".prefix"
		}
	}
	values, ok := given.([]any)
	if !ok && given != nil {
		values = []any{given}
	}
	if len(values) > maxFilterValues {
		return []FieldError{{at, "too_many", fmt.Sprintf("must have at most %d values", maxFilterValues)}}
	}
	texts := make([]string, len(values))
	for i, value := range values {
		if texts[i], ok = scalarText(value); !ok {
			return []FieldError{{fmt.Sprintf("%s[%d]", at, i), "wrong_type", "must be a text, a number or a boolean"}}
		}
	}
	return applyFilter(at, texts, to, asIs)
}

func scalarText(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return numberText(value.String()), true
	case bool:
		return strconv.FormatBool(value), true
	}
	return "", false
}

// numberText writes a number without an exponent: as such it compares by value.
func numberText(text string) string {
	if f, err := strconv.ParseFloat(text, 64); err == nil && strings.ContainsAny(text, "eE") {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return text
}

// parsePath reads names with dots between them. A dot or backslash of a name has a backslash before it.
func parsePath(spelled string) (path []string, fault string) {
	if len(spelled) > maxPathBytes {
		return nil, fmt.Sprintf("must be at most %d bytes long", maxPathBytes)
	}
	if wrong := checkText("", spelled, maxPathBytes); len(wrong) > 0 {
		return nil, wrong[0].Message
	}
	name := ""
	for rest := spelled; ; {
		i := strings.IndexAny(rest, `.\`)
		switch {
		case i < 0:
			path = append(path, name+rest)
		case rest[i] == '.':
			path, name, rest = append(path, name+rest[:i]), "", rest[i+1:]
			continue
		case i+1 < len(rest) && (rest[i+1] == '.' || rest[i+1] == '\\'):
			name, rest = name+rest[:i]+rest[i+1:i+2], rest[i+2:]
			continue
		default:
			return nil, `a backslash must stand before a dot or another backslash`
		}
		break
	}
	switch {
	case slices.Contains(path, ""):
		return nil, `must be names with dots between them, as meta_data.country; a dot within a name is \.`
	case len(path) > maxPathNames:
		return nil, fmt.Sprintf("must have at most %d names", maxPathNames)
	}
	return path, ""
}

// spellPath is the way back of parsePath.
func spellPath(path []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `.`, `\.`)
	names := make([]string, len(path))
	for i, name := range path {
		names[i] = escape.Replace(name)
	}
	return strings.Join(names, ".")
}

// recipientDomain is a domain in lower case as far as it is ASCII, as the database has that of an event.
func recipientDomain(value string) (string, fault) {
	if strings.Contains(value, "@") {
		return "", fault{"invalid_address", "must be a domain without @, as example.com"}
	}
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, value), fault{}
}
