package httpapi

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db"
)

// readyWithin is how long /readyz waits for the database.
const readyWithin = 2 * time.Second

// addHealth adds the routes for machines that watch the process; none needs a key.
func (s *server) addHealth(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.config.Healthy != nil {
			if err := s.config.Healthy(); err != nil {
				writeProblem(w, fail(codeUnavailable, err.Error()))
				return
			}
		}
		answerOK(w)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.checkDatabase(r.Context()); err != nil {
			// No key is asked for here, and the error may name hosts and users.
			s.config.Logger.WarnContext(r.Context(), "not ready", "error", err)
			writeProblem(w, fail(codeUnavailable, "the database does not answer, or its schema does not fit; the log says which"))
			return
		}
		if s.config.Ready == nil {
			answerOK(w)
			return
		}
		if err := s.config.Ready(); err != nil {
			writeProblem(w, fail(codeUnavailable, err.Error()))
			return
		}
		answerOK(w)
	})
	if s.config.Metrics != nil {
		mux.Handle("GET /metrics", s.config.Metrics)
	}
}

// checkDatabase says whether the database answers and its schema fits this binary.
func (s *server) checkDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return db.CheckSchema(ctx, conn.Conn()) })
}

func answerOK(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n") //nolint:errcheck // the client has gone
}
