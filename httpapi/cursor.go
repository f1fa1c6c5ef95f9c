package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// ListParams are the query parameters of every list.
type ListParams struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many to answer at most. A page may be shorter and still have a next_cursor."`
	Cursor string `query:"cursor" maxLength:"1000" doc:"next_cursor of the page before, with the same filters. It is refused (422) once the master key that it was made with is gone: start without one."`
}

// AccountParam is the filter by account of lists.
type AccountParam struct {
	AccountID string `query:"account_id" maxLength:"1000" doc:"For admin keys: only what belongs to this account."`
}

// A position is the place in a list that a cursor stands for: what follows is older. Lists that are in the order of
// their ids leave at alone.
type position struct {
	at time.Time
	id string
}

// scanRows bounds how many rows a list looks at for one page: a filter that little passes gives short pages instead
// of slow ones.
const scanRows = 10_000

// widen reads the rows of a page, out of few rows where that is enough to fill it (most lists have no filter), else out
// of scanRows. isHorizon marks the last row looked at when there are more.
func widen[R any](limit int, scan func(rows int32) ([]R, error), isHorizon func(R) bool) ([]R, error) {
	few := int32(4 * (limit + 1)) //nolint:gosec // limit is at most 200
	found, err := scan(few)
	if n := len(found); err != nil || n > limit || n == 0 || !isHorizon(found[n-1]) {
		return found, err
	}
	return scan(scanRows)
}

// cursorText is what a cursor holds, sealed, in base64url. A list of one account is read out of the rows of all, so the last
// row that was looked at, where the next page begins, may be another account's.
type cursorText struct {
	Micros  int64  `json:"t"`
	ID      string `json:"i"`
	Filters string `json:"f"`
}

// after decodes the cursor of a request; nil is the first page. filters are the list and everything that it is
// filtered by: a cursor made with others is refused.
func (s *server) after(p ListParams, filters ...any) (*position, error) {
	if p.Cursor == "" {
		return nil, nil
	}
	refused := invalid(FieldError{"cursor", "invalid_cursor", "is not a cursor of this list"})
	sealed, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err != nil {
		return nil, refused
	}
	text, ok := s.config.Keyring.OpenCursor(sealed)
	if !ok { // also where a rotation has ended and its old key is gone
		return nil, refused
	}
	var decoded cursorText
	if err := json.Unmarshal(text, &decoded); err != nil || decoded.Filters == "" {
		return nil, refused
	}
	if decoded.Filters != hashFilters(filters) {
		return nil, invalid(FieldError{"cursor", "other_filters", "was made with other filters: send those, or start without a cursor"})
	}
	return &position{time.UnixMicro(decoded.Micros).UTC(), decoded.ID}, nil
}

// next encodes a position as a cursor; nil is the end of the list. It seals with the key that every API process has.
func (s *server) next(last *position, filters ...any) *string {
	if last == nil {
		return nil
	}
	micros := int64(0)
	if !last.at.IsZero() {
		micros = last.at.UnixMicro()
	}
	text, err := json.Marshal(cursorText{micros, last.id, hashFilters(filters)})
	if err != nil {
		panic(err) // strings and a number
	}
	encoded := base64.RawURLEncoding.EncodeToString(s.masterKey.Load().SealCursor(text))
	return &encoded
}

func hashFilters(filters []any) string {
	text, err := json.Marshal(filters)
	if err != nil {
		panic(fmt.Sprintf("filters of a list: %v", err)) // strings, times and pointers to them
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
