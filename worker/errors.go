package worker

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// isDataError says whether a statement failed for the values of a row: then repeating it cannot help, and the batch
// is halved. SQLSTATE classes 22 (data), 23 (constraint) and 54 (limits), and no others: connections, conflicts,
// resources and shutdowns pass.
func isDataError(err error) bool {
	code := sqlState(err)
	return strings.HasPrefix(code, "22") || strings.HasPrefix(code, "23") || strings.HasPrefix(code, "54")
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// complain logs that we are broken: an error of ours, never a receiver's. It is quiet about the end of ctx.
func (w *Worker) complain(ctx context.Context, what string, err error) {
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return
	}
	w.metrics.databaseErrors.WithLabelValues(what).Inc()
	w.cfg.Log.Error("database call failed", "call", what, "sqlstate", sqlState(err), "error", err)
}

// firstLine keeps a message short and free of what follows it.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
