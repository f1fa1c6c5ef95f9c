package worker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

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

// complain logs that we are broken: an error of ours, never a receiver's. It is quiet about the end of ctx, and says the
// same at most every ten seconds: an outage must not fill a disk.
func (w *Worker) complain(ctx context.Context, what string, err error) {
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return
	}
	w.metrics.databaseErrors.WithLabelValues(what).Inc()
	if w.quiet.mayLog(what, time.Now()) {
		w.cfg.Log.Error("database call failed", "call", what, "sqlstate", sqlState(err), "error", strings.Join(strings.Fields(err.Error()), " "))
	}
}

// quietTime is how long a complaint is not repeated.
const quietTime = 10 * time.Second

// quiet remembers when each complaint was logged last.
type quiet struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (q *quiet) mayLog(what string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.last[what]) < quietTime {
		return false
	}
	if q.last == nil {
		q.last = map[string]time.Time{}
	}
	q.last[what] = now
	return true
}

// firstLine keeps a message short and free of what follows it.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
