package db

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Message is the text of an error as a log or a table may have it: without the values that PostgreSQL quotes where it
// cannot read one (SQLSTATE class 22). Its details and context, which quote rows, are never part of an error's text.
func Message(err error) string {
	text := err.Error()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || !strings.HasPrefix(pgErr.Code, "22") {
		return text
	}
	first, last := strings.IndexByte(pgErr.Message, '"'), strings.LastIndexByte(pgErr.Message, '"')
	if first < 0 || first == last {
		return text
	}
	return strings.ReplaceAll(text, pgErr.Message, pgErr.Message[:first]+`"…"`+pgErr.Message[last+1:])
}
