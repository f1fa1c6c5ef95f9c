package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
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
		switch err := s.checkDatabase(r.Context()); {
		case errors.Is(err, db.ErrUnknownKey):
			s.config.Logger.WarnContext(r.Context(), "not ready", "error", err)
			writeProblem(w, fail(codeUnavailable, "this process lacks the master key that the installation seals with: restart it with that key; the log says which"))
			return
		case err != nil:
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

// checkDatabase says whether the database answers, its schema fits this binary, and this process can seal: with
// db.ErrUnknownKey if it cannot.
func (s *server) checkDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	err := s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return db.CheckSchema(ctx, conn.Conn()) })
	if err != nil {
		return err
	}
	return s.checkMasterKey(ctx)
}

// keyCheckedEvery is how old the answer about the master key may be: anybody may ask for it.
const keyCheckedEvery = 2 * time.Second

// readiness is what the last look at the master key has told.
type readiness struct {
	mutex     sync.Mutex
	checkedAt time.Time // monotonic
	err       error
}

// checkMasterKey says whether this process has the key that the installation seals with now, which a rotation changes, and
// keeps it for cursors.
func (s *server) checkMasterKey(ctx context.Context) error {
	last := &s.readiness
	last.mutex.Lock()
	defer last.mutex.Unlock()
	if !last.checkedAt.IsZero() && time.Since(last.checkedAt) < keyCheckedEvery {
		return last.err
	}
	key, err := s.config.Keyring.Installed(ctx, s.queries)
	if err != nil && !errors.Is(err, db.ErrUnknownKey) {
		return err
	}
	if err == nil {
		s.masterKey.Store(key)
	}
	last.checkedAt, last.err = time.Now(), err
	return err
}

func answerOK(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n") //nolint:errcheck // the client has gone
}
