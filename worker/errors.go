package worker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
)

// isDataError says whether a statement failed for the values of a row: then repeating it cannot help, and the batch
// is halved. SQLSTATE classes 22 (data), 23 (constraint) and 54 (limits), and no others: connections, conflicts,
// resources and shutdowns pass. So does a head that came in between.
func isDataError(err error) bool {
	code := sqlState(err)
	return !isHeadTaken(err) && (strings.HasPrefix(code, "22") || strings.HasPrefix(code, "23") || strings.HasPrefix(code, "54"))
}

// isOverTime says whether the database ended a statement for its time, or for somebody who asked it to.
func isOverTime(err error) bool { return sqlState(err) == "57014" }

// isHeadTaken says whether another delivery of the same key became its head while a statement ran, which did not see it.
func isHeadTaken(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505" && pgErr.ConstraintName == "deliveries_head_key"
}

// isOutage says whether a statement failed for the database's or the network's sake, and any other would have:
// SQLSTATE classes 08 (connection), 53 (resources), 57P (shutdown, crash, start) and 25006 (not the primary any more), or
// no answer at all.
func isOutage(err error) bool {
	code := sqlState(err)
	if code == "" {
		var scan pgx.ScanArgError
		return !errors.As(err, &scan) && !errors.Is(err, pgx.ErrNoRows)
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P") || code == "25006"
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
	if isOutage(err) { // else the server has answered
		w.troubledAt.Store(time.Now().UnixNano())
	}
	w.metrics.databaseErrors.WithLabelValues(what).Inc()
	key, now := what, time.Now()
	if isOutage(err) {
		key = "outage" // all calls fail then, and one line says it
	}
	if w.quiet.mayLog(key, now) {
		if isOutage(err) {
			w.outage.told(now)
		}
		w.cfg.Log.Error("database call failed", "call", what, "sqlstate", sqlState(err), "error", strings.Join(strings.Fields(db.Message(err)), " "))
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

// outage remembers since when the log says that the database is away.
type outage struct {
	mu    sync.Mutex
	since time.Time // zero: it is there
}

func (o *outage) told(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = now
	}
}

// over answers since when the database was away, once.
func (o *outage) over() (since time.Time, was bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	since, o.since = o.since, time.Time{}
	return since, !since.IsZero()
}

// answered says that an outage is over: a heartbeat was written.
func (w *Worker) answered(now time.Time) {
	if since, was := w.outage.over(); was {
		w.cfg.Log.Info("database is back", "away", now.Sub(since).Round(time.Millisecond))
	}
}
