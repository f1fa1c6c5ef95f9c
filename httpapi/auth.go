package httpapi

import (
	"context"
	"errors"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

// A caller is who asks: an account, or with account nil an admin, who may act for all.
type caller struct {
	account *string
}

type callerKey struct{}

// authenticate finds the caller by the key of the request, or answers 401.
func (s *server) authenticate(ctx huma.Context, next func(huma.Context)) {
	who, err := s.callerOf(ctx.Context(), ctx.Header("Authorization"))
	if err != nil {
		_, w := humago.Unwrap(ctx)
		var problem *Problem
		errors.As(s.problemOf(ctx.Context(), ctx.Operation().OperationID, err), &problem)
		if problem.Status == statusOf(codeUnauthorized) {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		writeProblem(w, problem)
		return
	}
	next(huma.WithValue(ctx, callerKey{}, who))
}

func (s *server) callerOf(ctx context.Context, authorization string) (caller, error) {
	scheme, key, _ := strings.Cut(authorization, " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || !strings.HasPrefix(key, db.APIKeyPrefix) {
		return caller{}, fail(codeUnauthorized, "send Authorization: Bearer and a key made by mailhook key create")
	}
	account, err := s.queries.FindAPIKey(ctx, db.HashAPIKey(key))
	if errors.Is(err, pgx.ErrNoRows) {
		return caller{}, fail(codeUnauthorized, "the key is not valid")
	}
	return caller{account}, err
}

func callerFrom(ctx context.Context) caller {
	who, _ := ctx.Value(callerKey{}).(caller)
	return who
}

func (c caller) isAdmin() bool { return c.account == nil }

// scope is the account that a request is about, nil for all: its own for an account key, which may name no other; the
// one named, if any, for an admin.
func (c caller) scope(named string) (*string, error) {
	switch {
	case c.isAdmin() && named == "":
		return nil, nil
	case c.isAdmin():
		return &named, nil
	case named != "" && named != *c.account:
		return nil, notFound()
	}
	return c.account, nil
}

// reason is the status_reason of what the caller does.
func (c caller) reason() string {
	if c.isAdmin() {
		return "operator"
	}
	return "user"
}
