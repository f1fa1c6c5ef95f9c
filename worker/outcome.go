package worker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"mailhook/db/egress"
	"mailhook/db/format"
)

// The outcomes of an attempt: a closed list, the same words in SQL, API, metrics and docs.
const (
	outcomeOK              = "ok"
	outcomeHTTP1xx         = "http_1xx"
	outcomeHTTP2xx         = "http_2xx" // of a subscription to which 200 alone is success
	outcomeHTTP3xx         = "http_3xx"
	outcomeHTTP4xx         = "http_4xx"
	outcomeHTTP410         = "http_410"
	outcomeHTTP429         = "http_429"
	outcomeHTTP5xx         = "http_5xx"
	outcomeDNS             = "dns"
	outcomeRefused         = "refused"
	outcomeConnectTimeout  = "connect_timeout"
	outcomeResponseTimeout = "response_timeout"
	outcomeTLS             = "tls"
	outcomeReset           = "reset"
	outcomeBadResponse     = "bad_response"
	outcomeBlockedAddress  = "blocked_address"
	outcomeRenderFailed    = "render_failed"
	outcomeNoSecret        = "no_secret"
	outcomePartialFailure  = "partial_failure"
)

// An outcome is what came of one attempt, as it is recorded.
type outcome struct {
	delivery   *delivery
	word       string
	statusCode int // 0: none came
	startedAt  time.Time
	duration   time.Duration
	retryAfter time.Duration // 0: none asked for
	permanent  bool          // by the format: it will never be taken, and no further attempt is made
	excerpt    []byte

	// Of one that failed in a batch: those with the same batchID are put off together, by the same jitter. Of the failures of
	// a batch one counts against the endpoint.
	batchID   uuid.UUID
	jitter    float64
	uncounted bool
}

// answered says what a final answer means to a format; body is the beginning of it. Only formats of other channels than web know
// permanent failures: what a third party's service refuses, nobody there repairs.
func (o *outcome) answered(f format.Format, only200 bool, response *http.Response, body []byte) {
	o.statusCode = response.StatusCode
	o.word = statusOutcome(response.StatusCode, only200)
	if o.delivered() {
		if f.IsTaken != nil && !f.IsTaken(body) {
			o.word = outcomeBadResponse
		}
		return
	}
	o.permanent = f.IsPermanent != nil && f.IsPermanent(response.StatusCode)
	o.retryAfter = max(f.RetryAfter, retryAfter(response.Header, time.Now()))
	if o.word == outcomeHTTP429 && f.ResetHeader != "" && response.Header.Get("Retry-After") == "" {
		o.retryAfter = max(f.RetryAfter, resetAfter(response.Header, f.ResetHeader, time.Now()))
	}
}

// delivered: 2xx, or 200 where the subscription says so, and nothing else. Everything else is retried on the schedule; people
// repair 4xx, too.
func (o outcome) delivered() bool { return o.word == outcomeOK }

// suspends: the receiver has said that it is gone for good (Standard Webhooks, "410 Gone").
func (o outcome) suspends() bool { return o.word == outcomeHTTP410 }

// refuses: the receiver will not have this batch, because of one of its events perhaps, or of their number. What is about
// the endpoint, whatever it is sent, refuses nothing.
func (o outcome) refuses() bool {
	switch o.statusCode {
	case http.StatusRequestTimeout, http.StatusGone, http.StatusTooManyRequests:
		return false
	}
	return o.statusCode >= 400 && o.statusCode <= 499
}

// breaks: the receiver failed over the request, because of the endpoint or of an event in it.
func (o outcome) breaks() bool { return o.statusCode >= 500 && o.statusCode <= 599 && !o.slows() }

// vanishes: the request came to its receiver, and no answer of its own came back. It may be dead, or an event in the request
// brings it down.
func (o outcome) vanishes() bool {
	return o.word == outcomeReset || o.word == outcomeResponseTimeout || o.statusCode == http.StatusBadGateway || o.statusCode == http.StatusGatewayTimeout
}

// slows: the receiver has more than it can take, or says so (RFC 9110, 15.6.3 to 15.6.5; RFC 6585, 4): fewer requests go
// there, and none before its Retry-After.
func (o outcome) slows() bool {
	switch o.statusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// statusOutcome is the word for an HTTP status; only200 is the success rule "200".
func statusOutcome(status int, only200 bool) string {
	switch {
	case only200 && status > http.StatusOK && status <= 299:
		return outcomeHTTP2xx
	case status >= 200 && status <= 299:
		return outcomeOK
	case status >= 100 && status <= 199:
		return outcomeHTTP1xx
	case status >= 300 && status <= 399:
		return outcomeHTTP3xx
	case status == http.StatusGone:
		return outcomeHTTP410
	case status == http.StatusTooManyRequests:
		return outcomeHTTP429
	case status >= 400 && status <= 499:
		return outcomeHTTP4xx
	case status >= 500 && status <= 599:
		return outcomeHTTP5xx
	}
	return outcomeBadResponse
}

// errInterim is the error of a request that was answered with a 1xx.
var errInterim = errors.New("interim response")

// errorOutcome is the word for a request without a final answer. connected says whether it had a connection, which
// tells the two timeouts apart.
func errorOutcome(err error, connected bool) string {
	var (
		dns        *net.DNSError
		record     tls.RecordHeaderError
		alert      tls.AlertError
		verify     *tls.CertificateVerificationError
		invalid    x509.CertificateInvalidError
		hostname   x509.HostnameError
		authority  x509.UnknownAuthorityError
		timeoutErr net.Error
	)
	switch {
	case errors.Is(err, errInterim):
		return outcomeHTTP1xx
	case errors.Is(err, egress.ErrBlocked):
		return outcomeBlockedAddress
	case errors.As(err, &dns):
		return outcomeDNS
	case errors.As(err, &record), errors.As(err, &alert), errors.As(err, &verify), errors.As(err, &invalid), errors.As(err, &hostname), errors.As(err, &authority):
		return outcomeTLS
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return outcomeRefused
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeoutErr) && timeoutErr.Timeout():
		if connected {
			return outcomeResponseTimeout
		}
		return outcomeConnectTimeout
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		strings.Contains(err.Error(), "server closed idle connection"):
		return outcomeReset
	case strings.Contains(err.Error(), "tls: "): // handshake errors that have no type
		return outcomeTLS
	}
	return outcomeBadResponse
}

// mostRetryAfter is beyond any schedule and its hour.
const mostRetryAfter = 48 * time.Hour

// retryAfter reads the header (RFC 9110, 10.2.3): seconds, or a date against the receiver's own Date where it gives
// one. What is no such value asks for nothing; the statement bounds the rest.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, mostRetryAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return until(at, header, now)
}

// resetAfter is how long until the time that a header names in Unix seconds; 0 where it names none.
func resetAfter(header http.Header, name string, now time.Time) time.Duration {
	seconds, err := strconv.ParseInt(strings.TrimSpace(header.Get(name)), 10, 64)
	if err != nil {
		return 0
	}
	return until(time.Unix(seconds, 0), header, now)
}

func until(at time.Time, header http.Header, now time.Time) time.Duration {
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(0, at.Sub(now)), mostRetryAfter)
}
