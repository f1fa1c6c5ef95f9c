package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"mailhook/db"
)

const (
	maxEventTypes = 50
	// maxEventWordBytes is the length of the longest name and word that the catalogue takes.
	maxEventWordBytes = 100
	// maxNear bounds the words that are told as near one that means nothing.
	maxNear = 3
)

// eventTypesOf answers the types that words mean to a subscription of a format, each once: a registered name means itself,
// then come the words of other platforms, and what is left may be any valid name. Names in stays are kept as they are. What
// means nothing is an error, and stands as * in the list, for the checks that come after.
func (s *server) eventTypesOf(ctx context.Context, q *db.Queries, field string, words []string, format string, stays []string) ([]string, []FieldError, error) {
	meanings, err := findEventTypes(ctx, q, words, format)
	if err != nil {
		return nil, nil, err
	}
	types, unknown := make([]string, 0, len(words)), []int(nil)
	for i, word := range words {
		switch {
		case word == "*" || slices.Contains(stays, word):
			types = append(types, word)
		case len(meanings[i]) > 0:
			types = append(types, meanings[i]...)
		case validEventType(word):
			types = append(types, word)
		default:
			types, unknown = append(types, "*"), append(unknown, i)
		}
	}
	if types = unique(types); len(types) > maxEventTypes && len(unknown) == 0 {
		return types, []FieldError{{field, "too_many", fmt.Sprintf("means %d event types: the most are %d", len(types), maxEventTypes)}}, nil
	}
	found, err := refuseWords(ctx, q, words, unknown, format, func(i int) string { return fmt.Sprintf("%s[%d]", field, i) })
	return types, found, err
}

// eventTypeOf answers the one type that a word means to a subscription of a format; where that format has the word for
// several, its plain meaning.
func (s *server) eventTypeOf(ctx context.Context, q *db.Queries, field, word, format string) (string, error) {
	var meanings [][]string
	for _, format := range []string{format, ""} {
		var err error
		if meanings, err = findEventTypes(ctx, q, []string{word}, format); err != nil {
			return "", err
		}
		if len(meanings[0]) == 1 {
			return meanings[0][0], nil
		}
	}
	switch {
	case len(meanings[0]) > 1:
		return "", invalid(FieldError{field, "ambiguous", "means " + strings.Join(meanings[0], ", ") + ": name one of them"})
	case validEventType(word):
		return word, nil
	}
	found, err := refuseWords(ctx, q, []string{word}, []int{0}, format, func(int) string { return field })
	if err != nil {
		return "", err
	}
	return "", invalid(found...)
}

// findEventTypes answers the registered types that each word means.
func findEventTypes(ctx context.Context, q *db.Queries, words []string, format string) ([][]string, error) {
	asked := make([]string, len(words))
	for i, word := range words {
		if len(checkText("", word, maxEventWordBytes)) == 0 {
			asked[i] = word
		}
	}
	rows, err := q.FindEventTypes(ctx, db.FindEventTypesParams{Words: asked, Format: format})
	if err != nil {
		return nil, fmt.Errorf("find event types: %w", err)
	}
	meanings := make([][]string, len(words))
	for _, row := range rows {
		meanings[row.Nth-1] = append(meanings[row.Nth-1], row.EventType)
	}
	return meanings, nil
}

// refuseWords makes an error of each word at one of the places, with the words that are near it.
func refuseWords(ctx context.Context, q *db.Queries, words []string, places []int, format string, field func(int) string) ([]FieldError, error) {
	if len(places) == 0 {
		return nil, nil
	}
	known, err := q.ListEventWords(ctx, format)
	if err != nil {
		return nil, fmt.Errorf("list event words: %w", err)
	}
	var found []FieldError
	for _, i := range places {
		wrong := invalidEventType(field(i))
		if len(found) < maxErrors { // to look is not free
			if near := nearWords(words[i], known); len(near) > 0 {
				wrong.Message = fmt.Sprintf("is no event type: did you mean %s? A type of the platform's own must be %s", strings.Join(near, ", "), eventTypeSyntax)
			}
		}
		found = append(found, wrong)
	}
	return found, nil
}

// nearWords are those that become the word by changing a third of its letters or fewer, and hardly more than the nearest; where
// there is none, what would be a name.
func nearWords(word string, known []string) []string {
	if len(word) > maxEventWordBytes {
		return nil
	}
	type near struct {
		word     string
		distance int
	}
	var found []near
	given := bare(word)
	for _, candidate := range known {
		if d := distance(given, bare(candidate)); 3*d <= len(given) {
			found = append(found, near{candidate, d})
		}
	}
	slices.SortFunc(found, func(a, b near) int { return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.word, b.word)) })
	var words []string
	for _, n := range found[:min(len(found), maxNear)] {
		if n.distance <= found[0].distance+1 {
			words = append(words, n.word)
		}
	}
	if name := strings.TrimSuffix(strings.ToLower(word), ".*"); len(words) == 0 && validEventType(name) {
		words = []string{name}
	}
	return words
}

// bare is a word in lower case without what separates its parts.
func bare(word string) []rune {
	return []rune(strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t_-.()[]{}", r) {
			return -1
		}
		return r
	}, strings.ToLower(word)))
}

// distance is how many letters have to be changed, put in or taken out (Levenshtein's).
func distance(a, b []rune) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
