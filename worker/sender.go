package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync/atomic"
	"time"

	"mailhook/db/format"
)

// A sender makes one request after the other. What a request needs and the next can use again, it keeps: the context
// that ends a request, its timer, and the buffer for the answer.
type sender struct {
	client    *client
	parent    context.Context
	base      *http.Request // carries the context; copied for each request
	timer     *time.Timer   // ends the context
	cancel    context.CancelCauseFunc
	dials     dials
	connected atomic.Bool
	answer    []byte
	show      func(*http.Request) // if not nil, gets each request before it is sent
}

// leastAnswer is how much of an answer a format may look at (IsTaken).
const leastAnswer = 1 << 10

func (c *client) newSender(ctx context.Context) *sender {
	s := &sender{client: c, parent: ctx, answer: make([]byte, max(c.excerptBytes, leastAnswer))}
	s.renew()
	return s
}

// renew makes a context, after the last one has ended.
func (s *sender) renew() {
	ctx, cancel := context.WithCancelCause(s.parent)
	ctx = context.WithValue(ctx, dialsKey{}, &s.dials)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:        func(httptrace.GotConnInfo) { s.connected.Store(true) },
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return errInterim },
	})
	s.base = (&http.Request{Method: http.MethodPost, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	s.cancel = cancel
	s.timer = time.AfterFunc(time.Hour, func() { cancel(context.DeadlineExceeded) })
	s.timer.Stop()
}

func (s *sender) close() {
	s.timer.Stop()
	s.cancel(nil)
	s.dials.close()
}

// attempt makes one request and says what came of it. It never follows a redirect, and the whole of it, reading the
// answer too, ends with the subscription's timeout.
func (s *sender) attempt(to *subscription, d *delivery) (o outcome) {
	o = outcome{delivery: d, startedAt: time.Now(), retryAfter: to.format.RetryAfter}
	s.connected.Store(false)
	s.timer.Reset(to.timeout)
	defer func() {
		s.dials.attempted(o.statusCode != 0)
		if !s.timer.Stop() {
			s.cancel(nil)
			s.renew()
		}
	}()
	request, err := s.request(to, d, o.startedAt)
	if err != nil {
		o.word = requestOutcome(err)
		return o
	}
	if s.show != nil {
		s.show(request)
	}
	if !s.client.policy.AllowsScheme(request.URL.Scheme, to.allowsHTTP) {
		o.word = outcomeBlockedAddress
		return o
	}
	response, err := s.client.transports.of(to.scope).RoundTrip(request)
	if err != nil {
		o.word = errorOutcome(err, s.connected.Load())
		o.duration = time.Since(o.startedAt)
		return o
	}
	defer response.Body.Close() //nolint:errcheck // nothing to do about it
	var answer []byte
	// After 101 the body is the raw connection, which no deadline bounds: it is never read.
	if response.StatusCode != http.StatusSwitchingProtocols {
		answer = s.read(response.Body)
		o.excerpt = hide(bytes.Clone(answer[:min(len(answer), s.client.excerptBytes)]), to.hidden)
	}
	o.answered(to.format, to.only200, response, answer)
	o.duration = time.Since(o.startedAt)
	return o
}

// requestOutcome is the word for a request that could not be made.
func requestOutcome(err error) string {
	if errors.Is(err, errNoSecret) {
		return outcomeNoSecret
	}
	return outcomeRenderFailed
}

// read answers the first bytes of a body, until the next call, and reads a little further so that the connection can be used
// again.
func (s *sender) read(body io.Reader) []byte {
	n, err := io.ReadFull(body, s.answer)
	if err == nil {
		io.CopyN(io.Discard, body, 16<<10) //nolint:errcheck // the status has decided
	}
	return s.answer[:n]
}

var errNoFormat = errors.New("its format is of a newer version")

func (s *sender) request(to *subscription, d *delivery, now time.Time) (*http.Request, error) {
	if to.format.Render == nil {
		return nil, errNoFormat
	}
	if len(to.keys) == 0 { // then its secrets are not there either
		return nil, errNoSecret
	}
	body, err := d.event.body(to.format, to.target)
	if err != nil {
		return nil, err
	}
	target, err := to.address()
	if err != nil {
		return nil, err
	}
	request := new(http.Request)
	*request = *s.base
	request.URL, request.Host = target, target.Host
	request.ContentLength = int64(len(body))
	request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	request.Body, _ = request.GetBody()
	request.Header = make(http.Header, 8+len(to.headers))
	for name, value := range to.headers {
		request.Header.Set(name, value)
	}
	values := []string{to.format.ContentType, s.client.userAgent}
	request.Header["Content-Type"], request.Header["User-Agent"] = values[:1:1], values[1:]
	// Set and empty, so not sent: net/http then takes the request for repeatable, and tries again by itself when a
	// kept connection turns out to be closed. Receivers know a repetition by webhook-id.
	request.Header["Idempotency-Key"] = nil
	return request, signAll(request.Header, to, d.event.publicID(), now, body)
}

// signAll sets what receivers verify by. The services behind the other channels have no secret to verify with, so they get none.
func signAll(header http.Header, to *subscription, id string, now time.Time, body []byte) error {
	if to.format.Channel != format.Web {
		return nil
	}
	if err := sign(header, id, now, body, to.keys); err != nil || to.format.Sign == nil {
		return err
	}
	return to.format.Sign(header, now, body, to.keys)
}
