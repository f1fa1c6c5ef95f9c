package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
)

// A Problem is what every error of the API looks like (RFC 9457).
type Problem struct {
	Type   string       `json:"type" example:"urn:mailhook:invalid" doc:"urn:mailhook: and the code of the problem."`
	Title  string       `json:"title" example:"Unprocessable Entity"`
	Status int          `json:"status" example:"422"`
	Detail string       `json:"detail" example:"channel.url: must be an absolute https URL"`
	Errors []FieldError `json:"errors" nullable:"false" doc:"At least one."`

	retryAfter time.Duration // 0: none is told
}

// A FieldError is one thing that is wrong with a request.
type FieldError struct {
	Field   string `json:"field,omitempty" example:"channel.url" doc:"The dotted name in the body, or the name of the query parameter; absent when it is about the request as a whole."`
	Code    string `json:"code" example:"invalid_url"`
	Message string `json:"message" example:"must be an absolute https URL"`
}

// Error makes a Problem an error. Values of the request are never part of it.
func (p *Problem) Error() string { return p.Detail }

// GetStatus makes a Problem an error that huma answers as it is.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type of RFC 9457.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders are what huma answers beside it: Retry-After in whole seconds (RFC 9110, 10.2.3).
func (p *Problem) GetHeaders() http.Header {
	if p.retryAfter <= 0 {
		return nil
	}
	return http.Header{"Retry-After": {strconv.Itoa(seconds(p.retryAfter))}}
}

// seconds are as many as have to be waited for d to be over.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// typeOf is the type that the OpenAPI document describes.
func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// Codes of problems. Those of fields are written where they are found.
const (
	codeUnreadable          = "unreadable"
	codeUnauthorized        = "unauthorized"
	codeForbidden           = "forbidden"
	codeNotFound            = "not_found"
	codeMethodNotAllowed    = "method_not_allowed"
	codeRequestTimeout      = "request_timeout"
	codeLimitReached        = "limit_reached"
	codeInFlight            = "in_flight"
	codeUnfinished          = "unfinished"
	codeInactive            = "inactive"
	codeSubscriptionDeleted = "subscription_deleted"
	codeEventDropped        = "event_dropped"
	codeErasing             = "erasing"
	codeBlocked             = "blocked"
	codeTooLarge            = "too_large"
	codeUnsupportedMedia    = "unsupported_media_type"
	codeInvalid             = "invalid"
	codeTooManyRequests     = "too_many_requests"
	codeInternal            = "internal"
	codeUnavailable         = "unavailable"
	codeNoWorker            = "no_worker"
)

// statusOf is the one table of codes and HTTP statuses.
func statusOf(code string) int {
	switch code {
	case codeUnreadable:
		return http.StatusBadRequest
	case codeUnauthorized:
		return http.StatusUnauthorized
	case codeForbidden:
		return http.StatusForbidden
	case codeNotFound:
		return http.StatusNotFound
	case codeMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case codeRequestTimeout:
		return http.StatusRequestTimeout
	case codeLimitReached, codeInFlight, codeUnfinished, codeInactive, codeSubscriptionDeleted, codeEventDropped, codeErasing, codeBlocked:
		return http.StatusConflict
	case codeTooLarge:
		return http.StatusRequestEntityTooLarge
	case codeUnsupportedMedia:
		return http.StatusUnsupportedMediaType
	case codeInvalid:
		return http.StatusUnprocessableEntity
	case codeTooManyRequests:
		return http.StatusTooManyRequests
	case codeUnavailable:
		return http.StatusServiceUnavailable
	case codeNoWorker:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// codeOfStatus is the way back, for the problems that huma finds.
func codeOfStatus(status int) string {
	for _, code := range []string{codeUnreadable, codeNotFound, codeRequestTimeout, codeTooLarge, codeUnsupportedMedia, codeInvalid} {
		if statusOf(code) == status {
			return code
		}
	}
	return codeInternal
}

// fail is a problem with the request as a whole.
func fail(code, message string) *Problem {
	return newProblem(code, message, []FieldError{{Code: code, Message: message}})
}

// invalid is the problem of fields that are wrong, nil when none is.
func invalid(found ...FieldError) error {
	if len(found) == 0 {
		return nil
	}
	detail := found[0].Message
	if found[0].Field != "" {
		detail = found[0].Field + ": " + detail
	}
	return newProblem(codeInvalid, detail, found)
}

// notFound is the answer for what is absent and for what belongs to another account.
func notFound() *Problem { return fail(codeNotFound, "there is no such thing") }

func newProblem(code, detail string, found []FieldError) *Problem {
	status := statusOf(code)
	return &Problem{Type: "urn:mailhook:" + code, Title: http.StatusText(status), Status: status, Detail: detail, Errors: found}
}

// problemOf turns an error of a handler into what is answered: a Problem stays, a row that is not there is 404, and
// all else is ours, so it is logged and not told.
func (s *server) problemOf(ctx context.Context, operation string, err error) error {
	var problem *Problem
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &problem):
		return problem
	case errors.Is(err, pgx.ErrNoRows):
		return notFound()
	case ctx.Err() != nil: // the client has gone; nobody reads this
		return fail(codeUnavailable, "the request was given up")
	case isOverTime(err):
		return fail(codeUnavailable, "the database took too long; ask for less, or try again")
	case errors.As(err, &pgErr) && (pgErr.Code == "40P01" || pgErr.Code == "55P03"): // a deadlock, or a lock that did not come
		return fail(codeUnavailable, "another change got in the way of this one; try again")
	}
	s.config.Logger.ErrorContext(ctx, "api request failed", "operation", operation, "error", db.Message(err))
	return fail(codeInternal, "mailhook failed; its log says why")
}

// maxErrors and maxFieldBytes bound what is told about a bad request: a body of 1 MiB may have 200,000 unknown fields, or
// one with a name of 1 MiB.
const (
	maxErrors     = 20
	maxFieldBytes = 200
)

// asProblem is a huma transformer: the errors that huma finds by itself get the form of all others. It never passes
// on the values that huma adds to them, which may be secrets.
func asProblem(ctx huma.Context, _ string, body any) (any, error) {
	model, ok := body.(*huma.ErrorModel)
	if !ok {
		return body, nil
	}
	code := codeOfStatus(model.Status)
	if code == codeInternal {
		return fail(code, "mailhook failed"), nil
	}
	found := make([]FieldError, 0, len(model.Errors))
	for _, detail := range model.Errors[:min(len(model.Errors), maxErrors)] {
		e := fieldErrorOf(code, detail)
		if e.Code == "unknown_field" && ctx.Operation().OperationID == patchSubscription && slices.Contains(readOnlyFields(), e.Field) {
			e.Message = "is read-only: leave it out"
		}
		found = append(found, e)
	}
	if len(found) == 0 {
		return fail(code, model.Detail), nil
	}
	problem := newProblem(code, found[0].Message, found)
	if found[0].Field != "" {
		problem.Detail = found[0].Field + ": " + problem.Detail
	}
	return problem, nil
}

func fieldErrorOf(code string, detail *huma.ErrorDetail) FieldError {
	field := cutField(fieldName(detail.Location))
	twice, isTwice := strings.CutPrefix(detail.Message, givenTwice)
	switch {
	case isTwice:
		return FieldError{Field: cutField(twice), Code: "duplicate_field", Message: "is given twice (upper and lower case count as one): leave one out"}
	case code == codeUnreadable:
		return FieldError{Code: code, Message: "the body is not JSON: " + detail.Message}
	case code == codeUnsupportedMedia:
		return FieldError{Code: code, Message: "send application/json, or application/merge-patch+json for PATCH"}
	case strings.HasPrefix(field, "filters.") && fieldCode(detail.Message) == "unknown_field":
		return FieldError{Field: field, Code: "unknown_field", Message: "is no filter: use one of " + strings.Join(filterNames(), ", ") + "; data takes any other field of an event's data"}
	case strings.HasPrefix(detail.Message, "json: cannot unmarshal number"):
		return FieldError{Field: field, Code: "wrong_type", Message: "a number must be whole, and written without point and exponent"}
	case strings.HasPrefix(detail.Message, "json: "):
		return FieldError{Field: field, Code: "wrong_type", Message: "a value is of the wrong type or out of range"}
	}
	if name, ok := missingProperty(detail.Message); ok {
		return FieldError{Field: strings.TrimPrefix(field+"."+name, "."), Code: "required", Message: "is required"}
	}
	message := detail.Message
	switch {
	case strings.HasPrefix(message, "invalid date/time"):
		message = "must be a time of RFC 3339, such as 2024-01-15T10:30:00Z; in a URL a + is written %2B"
	case strings.HasPrefix(message, "expected value to match exactly one schema") && strings.HasPrefix(field, "retry_schedule"):
		message = `must be the name of a preset, or a list of delays as texts, such as ["30s", "5m"]`
	case strings.HasPrefix(message, "expected value to match exactly one schema"):
		message = "must be a text, a number, true or false"
	}
	if values, ok := strings.CutPrefix(message, "expected value to be one of "); ok {
		message = "must be one of " + strings.Trim(values, `"`)
	}
	return FieldError{Field: field, Code: fieldCode(detail.Message), Message: message}
}

func cutField(name string) string {
	if len(name) <= maxFieldBytes {
		return name
	}
	return strings.ToValidUTF8(name[:maxFieldBytes], "") + "…"
}

// fieldName takes the place of huma's locations off: body.channel.url is channel.url, query.limit is limit.
func fieldName(location string) string {
	place, name, _ := strings.Cut(location, ".")
	switch place {
	case "body", "query", "path", "header":
		return name
	}
	return location
}

func missingProperty(message string) (string, bool) {
	var name string
	_, err := fmt.Sscanf(message, "expected required property %s to be present", &name)
	return name, err == nil
}

// fieldCode tells the kind of huma's validation messages (its package validation) by how they begin.
func fieldCode(message string) string {
	for _, known := range []struct{ beginning, code string }{
		{"unexpected property", "unknown_field"},
		{"unknown query parameter", "unknown_field"},
		{"expected value to be one of", "not_allowed"},
		{"expected length <=", "too_long"},
		{"expected length >=", "too_short"},
		{"expected array length <=", "too_many"},
		{"expected array length >=", "too_few"},
		{"expected object with at most", "too_many"},
		{"expected number >", "out_of_range"},
		{"expected number <", "out_of_range"},
		{"expected string to", "invalid"},
		{"expected ", "wrong_type"},
		{"required ", "required"},
	} {
		if strings.HasPrefix(message, known.beginning) {
			return known.code
		}
	}
	return "invalid"
}

// writeProblem answers a problem outside of huma's handlers.
func writeProblem(w http.ResponseWriter, problem *Problem) {
	body, err := json.Marshal(problem)
	if err != nil {
		body = []byte(`{}`) // a struct of strings and a number
	}
	maps.Copy(w.Header(), problem.GetHeaders())
	w.Header().Set("Content-Type", problem.ContentType(""))
	w.WriteHeader(problem.Status)
	w.Write(body) //nolint:errcheck // the client has gone
}
