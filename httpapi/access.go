package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

// An accessLine is what the access log learns of a request while it is served.
type accessLine struct {
	http.ResponseWriter
	status int
	keyID  *uuid.UUID
}

type accessKey struct{}

// Unwrap lets http.ResponseController through.
func (a *accessLine) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader notes the status.
func (a *accessLine) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// noteKey tells the access log by which key a request came.
func noteKey(ctx context.Context, id uuid.UUID) {
	if line, ok := ctx.Value(accessKey{}).(*accessLine); ok {
		line.keyID = &id
	}
}

// logAccess writes a line for each request: for machines that watch the process at debug. It has the pattern of the
// route, never the path or the query as they came: those have whatever the client put there.
func (s *server) logAccess(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun, line := time.Now(), &accessLine{ResponseWriter: w}
		r = r.WithContext(context.WithValue(r.Context(), accessKey{}, line))
		next.ServeHTTP(line, r)
		if line.status == 0 {
			line.status = http.StatusOK
		}
		level := slog.LevelInfo
		if _, path, _ := strings.Cut(r.Pattern, " "); path == "/healthz" || path == "/readyz" || path == "/metrics" {
			level = slog.LevelDebug
		}
		attrs := []slog.Attr{
			slog.String("route", routeOf(r)), slog.Int("status", line.status), slog.Int64("duration_ms", time.Since(begun).Milliseconds()),
		}
		if line.keyID != nil {
			attrs = append(attrs, slog.String("key_id", db.FormatID(db.KeyPrefix, *line.keyID)))
		}
		s.config.Logger.LogAttrs(r.Context(), level, "api request", attrs...)
	})
}

// routeOf is the method and the pattern that took the request; of what no route took, nothing that the client wrote.
func routeOf(r *http.Request) string {
	switch r.Pattern {
	case "":
		return "refused"
	case "/":
		return "unknown"
	}
	return r.Pattern
}
