package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"mailhook/db"
	"mailhook/db/egress"
)

// maxBodyBytes is the most that a request body may have.
const maxBodyBytes = 1 << 20

// Config is what the API needs. Start from DefaultConfig.
type Config struct {
	// Pool reaches the database. Its sessions must have plan_cache_mode force_custom_plan, as db.Open sets it.
	Pool *db.Pool
	// Keyring seals signing secrets and custom headers.
	Keyring *db.Keyring
	// Policy says which URLs a subscription may have: that of the workers.
	egress.Policy
	// PushoverURL is where requests of channel pushover go.
	PushoverURL string
	// PublishAddresses are what requests to receivers come from, as GET /v1/egress answers it.
	PublishAddresses []netip.Prefix
	// DefaultSubscriptionLimit is how many subscriptions an account without a limit of its own may have.
	DefaultSubscriptionLimit int
	// TestsPerMinute is how many test sends an account may ask for within a minute, of all API processes; at least 1.
	TestsPerMinute int
	// RateLimit is how many requests a second one key may make, and twice as many at once after a pause; 0 is no limit. It
	// is counted in this process.
	RateLimit float64
	// StrangerRateLimit is how many requests a second without a valid key may come from one address (of IPv6, one /64), and
	// twenty times as many at once after a pause; 0 is no limit. Beyond it only keys that have been good here are looked up.
	StrangerRateLimit float64
	// TestWait is how long a test send may take beyond the timeout of its subscription.
	TestWait time.Duration
	// NoWorkerAfter is how long a test send waits for a worker to take it.
	NoWorkerAfter time.Duration
	// Version shows in the OpenAPI document.
	Version string
	// Logger gets what is broken on our side. It never gets URLs, keys or secrets.
	Logger *slog.Logger
	// Healthy, if given, decides /healthz: an error is 503.
	Healthy func() error
	// Ready, if given, has its say in /readyz, beside the database: an error is 503.
	Ready func() error
	// Metrics, if given, serves /metrics.
	Metrics http.Handler
}

// DefaultConfig has every setting that has a default. Pool and Keyring have none.
func DefaultConfig() Config {
	return Config{
		PushoverURL:              "https://api.pushover.net/1/messages.json",
		DefaultSubscriptionLimit: 100,
		TestsPerMinute:           20,
		RateLimit:                500,
		StrangerRateLimit:        10,
		TestWait:                 5 * time.Second,
		NoWorkerAfter:            5 * time.Second,
		Version:                  "dev",
		Logger:                   slog.Default(),
	}
}

// server holds what the handlers share.
type server struct {
	config       Config
	pool         *db.Pool
	queries      *db.Queries
	installation string
	masterKey    atomic.Pointer[db.MasterKey] // the installation's, as last seen; never nil
	keys         *limiters[keyHash]           // requests by a key that has been good in this process
	strangers    *limiters[netip.Prefix]      // requests without a valid key
	notes        notes
	readiness    readiness
	scans        *scans
}

// An API serves the requests. Close it after the last of them.
type API struct {
	http.Handler
	server *server
}

// Close waits for what is written beside requests, five seconds at most. The pool stays open.
func (a *API) Close() { a.server.notes.close() }

// New builds the handler of the API and of healthz, readyz and metrics. It reads the code of the installation from
// the database, so it fails without one, and checks that the sessions may do what the API does. A test send holds its request open for the timeout of its subscription and
// config.TestWait, so the server needs a write timeout of 65 s and more, or none.
func New(ctx context.Context, config Config) (*API, error) {
	if config.Pool == nil || config.Keyring == nil {
		return nil, errors.New("httpapi needs a pool and a keyring")
	}
	if config.TestsPerMinute < 1 {
		return nil, errors.New("--test-sends-per-minute must be at least 1")
	}
	if err := config.CheckURL(config.PushoverURL, false); err != nil {
		return nil, fmt.Errorf("--pushover-url %w", err)
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	s := &server{config: config, pool: config.Pool, queries: db.New(config.Pool), scans: newScans()}
	s.keys = newLimiters[keyHash](config.RateLimit, int(2*config.RateLimit)+1)
	s.strangers = newLimiters[netip.Prefix](config.StrangerRateLimit, int(20*config.StrangerRateLimit)+1)
	if err := db.CheckPrivileges(ctx, s.pool, db.APIRole); err != nil {
		return nil, err
	}
	if err := s.pool.QueryRow(ctx, "SELECT mailhook.installation_code()").Scan(&s.installation); err != nil {
		return nil, fmt.Errorf("read installation code: %w", err)
	}
	key, err := config.Keyring.Installed(ctx, s.queries)
	if err != nil {
		return nil, err
	}
	s.masterKey.Store(key)
	mux := http.NewServeMux()
	s.addHealth(mux)
	if err := s.addRoutes(mux); err != nil {
		return nil, err
	}
	mux.HandleFunc("/", answerUnknown(mux))
	return &API{s.logAccess(SecurityHeaders(s.recoverPanics(prepare(mux)))), s}, nil
}

// addRoutes registers the routes of all resources and the OpenAPI document.
func (s *server) addRoutes(mux *http.ServeMux) error {
	api := humago.New(mux, s.humaConfig())
	api.UseMiddleware(s.authenticate)
	s.addSubscriptions(api)
	s.addPreview(api)
	s.addTestSend(api)
	s.addReplays(api)
	s.addErasures(api)
	s.addDeliveries(api)
	s.addEvents(api)
	s.addExplain(api)
	s.addQuarantine(api)
	s.addEventTypes(api)
	s.addAccounts(api)
	s.addEgress(api)
	return addOpenAPI(mux, api)
}

// addOpenAPI serves the OpenAPI document, made once all routes are there.
func addOpenAPI(mux *http.ServeMux, api huma.API) error {
	// huma registers its own error types, whatever is served.
	schemas := api.OpenAPI().Components.Schemas.Map()
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	document, err := json.Marshal(api.OpenAPI())
	if err != nil {
		return fmt.Errorf("write OpenAPI document: %w", err)
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(document) //nolint:errcheck // the client has gone
	})
	return nil
}

func (s *server) humaConfig() huma.Config {
	config := huma.DefaultConfig("mailhook", s.config.Version)
	config.Info.Description = "Webhooks of mail events: subscriptions, and what became of every event."
	config.OpenAPIPath = ""  // served by addOpenAPI
	config.DocsPath = ""     // its pages load scripts from elsewhere
	config.SchemasPath = ""  // openapi.json has them
	config.CreateHooks = nil // no $schema in bodies
	config.Transformers = []huma.Transformer{asProblem}
	config.Formats = strictFormats()
	config.RejectUnknownQueryParameters = true
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"key": {Type: "http", Scheme: "bearer", Description: "A key made by mailhook key create: mhk_…"},
	}
	config.Security = []map[string][]string{{"key": {}}}
	return config
}

// register adds one operation: its handler gets the caller, and its errors become problems.
func register[I, O any](s *server, api huma.API, op huma.Operation, handler func(context.Context, caller, *I) (*O, error)) {
	op.MaxBodyBytes = maxBodyBytes + 1 // huma refuses what reaches the bound
	op.BodyReadTimeout = -1            // the server's ReadTimeout bounds it; huma's also ran while a handler waited
	op.Responses = problemResponses(api, op)
	op.Errors = nil
	huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, callerFrom(ctx), in)
		if err != nil {
			return nil, s.problemOf(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// problemResponses documents the errors of an operation: those that every route has, and op.Errors.
func problemResponses(api huma.API, op huma.Operation) map[string]*huma.Response {
	schema := api.OpenAPI().Components.Schemas.Schema(typeOf[Problem](), true, "")
	responses := map[string]*huma.Response{}
	if op.Method != http.MethodGet {
		op.Errors = append(op.Errors, http.StatusForbidden)
	}
	for _, status := range append(op.Errors, http.StatusUnauthorized, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusTooManyRequests) {
		responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
		}
	}
	responses["default"] = &huma.Response{
		Description: "Any other error",
		Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
	}
	return responses
}

// SecurityHeaders sets headers on every answer that keep a browser from making anything of it: what is answered may hold
// what strangers wrote.
func SecurityHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r)
	})
}

// prepare takes from requests what handlers need not care about.
func prepare(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hasUnstorable(r) {
			writeProblem(w, fail(codeUnreadable, "the path or query holds NUL or bad UTF-8"))
			return
		}
		if given := r.Header.Get("Content-Type"); given != "" {
			// huma compares the text as it is.
			if media, _, err := mime.ParseMediaType(given); err == nil {
				r.Header.Set("Content-Type", media)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// recoverPanics answers 500 where a handler panics, and logs it.
func (s *server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			reason := recover()
			if reason == nil {
				return
			}
			if reason == http.ErrAbortHandler { //nolint:errorlint // the value itself, by its documentation
				panic(reason)
			}
			s.config.Logger.ErrorContext(r.Context(), "api handler panicked", "reason", panicReason(reason), "stack", string(debug.Stack()))
			writeProblem(w, fail(codeInternal, "mailhook failed; its log says why"))
		}()
		next.ServeHTTP(w, r)
	})
}

// panicReason is what of a panic may be logged. Go's own errors tell of types and numbers; any other value may have been made
// of what a customer sent, so its type and the stack must do.
func panicReason(reason any) string {
	var known runtime.Error
	if err, ok := reason.(error); ok && errors.As(err, &known) {
		return known.Error()
	}
	return fmt.Sprintf("a panic with a %T", reason)
}

// answerUnknown answers what no route takes: 405 where the path has routes for other methods, else 404.
func answerUnknown(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			other := r.Clone(r.Context())
			other.Method = method
			if _, pattern := mux.Handler(other); pattern != "/" {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) == 0 {
			writeProblem(w, notFound())
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeProblem(w, fail(codeMethodNotAllowed, "this path takes "+strings.Join(allowed, ", ")))
	}
}
