package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	// useNotedEvery is how exact api_keys.last_used_at is.
	useNotedEvery = time.Minute
	// useNotedWithin bounds the statement that writes it.
	useNotedWithin = 5 * time.Second
)

// A caller is who asks: an account, or with account nil an admin, who may act for all.
type caller struct {
	keyID    uuid.UUID
	account  *string
	readOnly bool
}

type callerKey struct{}

// authenticate finds the caller by the key of the request, or answers 401; 429 if there were too many; 403 if the key is
// for reading only and the route is not.
func (s *server) authenticate(ctx huma.Context, next func(huma.Context)) {
	who, err := s.callerOf(ctx.Context(), ctx.Header("Authorization"), ctx.RemoteAddr())
	if err == nil && who.readOnly && ctx.Operation().Method != http.MethodGet {
		err = fail(codeForbidden, "this key may only read: take one made with --scope write")
	}
	if err == nil && slices.Contains(queryOf(ctx)["account_id"], "") { // a variable that a script has not set must not mean all
		err = invalid(FieldError{"account_id", "too_short", "must not be empty: leave it out for all accounts"})
	}
	if err != nil {
		_, w := humago.Unwrap(ctx)
		var problem *Problem
		errors.As(s.problemOf(ctx.Context(), ctx.Operation().OperationID, err), &problem)
		if problem.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		writeProblem(w, problem)
		return
	}
	next(huma.WithValue(ctx, callerKey{}, who))
}

func queryOf(ctx huma.Context) url.Values {
	address := ctx.URL()
	return address.Query()
}

// callerOf finds the caller. A key that has been good here before is counted by itself. For all else the failures are
// counted by where they come from, and beyond their rate the database is not asked: neither can use up what the other has.
// A place is taken before the look-up, and given back when the key is good, so that many at a time count as one after another.
func (s *server) callerOf(ctx context.Context, authorization, remote string) (caller, error) {
	key, isKey := bearerKey(authorization)
	hash, network := keyHash(db.HashAPIKey(key)), networkOf(remote)
	isKnown := isKey && s.keys.knows(hash)
	settle := func(bool) {}
	if isKnown {
		if wait := s.keys.take(hash); wait > 0 {
			return caller{}, tooMany(wait, "the key is used too often: wait as long as Retry-After says")
		}
	} else {
		var wait time.Duration
		if settle, wait = s.strangers.reserve(network); wait > 0 {
			return caller{}, tooMany(wait, "too many requests without a valid key: wait as long as Retry-After says")
		}
	}
	isRefused := false
	defer func() { settle(isRefused) }()
	row, err := s.findKey(ctx, isKey, hash)
	if err != nil {
		var refused *Problem
		isRefused = errors.As(err, &refused)
		return caller{}, err
	}
	if !isKnown {
		s.keys.take(hash)
	}
	s.noteUse(ctx, row.ID, hash)
	return caller{row.ID, row.AccountID, row.Scope != "write"}, nil
}

// findKey looks a key up that is still good.
func (s *server) findKey(ctx context.Context, isKey bool, hash keyHash) (db.FindAPIKeyRow, error) {
	if !isKey {
		return db.FindAPIKeyRow{}, fail(codeUnauthorized, "send Authorization: Bearer and a key made by mailhook key create")
	}
	row, err := s.queries.FindAPIKey(ctx, hash[:])
	if errors.Is(err, pgx.ErrNoRows) {
		return row, fail(codeUnauthorized, "the key is not valid")
	}
	if err != nil {
		return row, fmt.Errorf("find key: %w", err)
	}
	noteKey(ctx, row.ID)
	// Only who has the key learns this.
	switch {
	case row.IsRevoked:
		return row, fail(codeUnauthorized, "the key has been revoked")
	case row.IsExpired:
		return row, fail(codeUnauthorized, "the key has expired: make another with mailhook key create")
	}
	return row, nil
}

func bearerKey(authorization string) (key string, ok bool) {
	scheme, key, _ := strings.Cut(authorization, " ")
	key = strings.TrimSpace(key)
	return key, strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(key, db.APIKeyPrefix)
}

// noteUse writes last_used_at beside the request, which neither waits for it nor fails with it.
func (s *server) noteUse(ctx context.Context, id uuid.UUID, hash keyHash) {
	if !s.keys.mustNote(hash, useNotedEvery) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), useNotedWithin)
	if !s.notes.begin() {
		cancel()
		return
	}
	go func() {
		defer s.notes.pending.Done()
		defer cancel()
		if err := s.queries.TouchAPIKey(ctx, id); err != nil {
			s.config.Logger.WarnContext(ctx, "the use of a key is not noted", "key_id", db.FormatID(db.KeyPrefix, id), "error", err)
		}
	}()
}

// notes are the statements beside requests that have not ended.
type notes struct {
	mutex   sync.Mutex
	closed  bool
	pending sync.WaitGroup
}

// begin says whether there may be one more; its end is pending.Done.
func (n *notes) begin() bool {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if !n.closed {
		n.pending.Add(1)
	}
	return !n.closed
}

// close lets none begin and waits for those that have, which end within useNotedWithin.
func (n *notes) close() {
	n.mutex.Lock()
	n.closed = true
	n.mutex.Unlock()
	n.pending.Wait()
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
