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

// A message is what a request carries.
type message struct {
	id, contentType string
	body            []byte
	// mostRead is how much of the answer to a success is read, because it may say something; 0: nothing but an excerpt.
	mostRead int64
}

// message is the request about one delivery: an array of one where the subscription has batches.
func (s *subscription) message(d *delivery) (message, error) {
	if s.format.Render == nil {
		return message{}, errNoFormat
	}
	if len(s.keys) == 0 { // then its secrets are not there either
		return message{}, errNoSecret
	}
	if s.hasBatches() {
		a, broken, _ := s.array([]*delivery{d})
		if len(broken) > 0 {
			return message{}, errNotRendered
		}
		return a.message(a.whole()), nil
	}
	body, err := d.event.body(s.format, s.target)
	return message{id: d.event.publicID(), contentType: s.format.ContentType, body: body}, err
}

// attempt makes one request about one delivery and says what came of it.
func (s *sender) attempt(to *subscription, d *delivery) outcome {
	m, err := to.message(d)
	if err != nil {
		return outcome{delivery: d, word: requestOutcome(err), startedAt: time.Now()}
	}
	o, answer := s.post(to, m)
	o.delivery = d
	if to.hasBatches() {
		o.batchID, o.jitter = batchID([]*delivery{d}), jitter()
		if failuresIn(answer).has(d) {
			o.word = outcomePartialFailure
		}
	}
	return o
}

// post makes one request and says what came of it, and, of a success, what was answered as far as it is asked for. It never
// follows a redirect, and the whole of it, reading the answer too, ends with the subscription's timeout.
func (s *sender) post(to *subscription, m message) (o outcome, answer []byte) {
	o = outcome{startedAt: time.Now(), retryAfter: to.format.RetryAfter}
	s.connected.Store(false)
	s.timer.Reset(to.timeout)
	defer func() {
		s.dials.attempted(o.statusCode != 0)
		if !s.timer.Stop() {
			s.cancel(nil)
			s.renew()
		}
	}()
	request, err := s.request(to, m, o.startedAt)
	if err != nil {
		o.word = requestOutcome(err)
		return o, nil
	}
	if s.show != nil {
		s.show(request)
	}
	if !s.client.policy.AllowsScheme(request.URL.Scheme, to.allowsHTTP) {
		o.word = outcomeBlockedAddress
		return o, nil
	}
	response, err := s.client.transports.of(to.scope).RoundTrip(request)
	if err != nil {
		o.word = errorOutcome(err, s.connected.Load())
		o.duration = time.Since(o.startedAt)
		return o, nil
	}
	defer response.Body.Close() //nolint:errcheck // nothing to do about it
	// After 101 the body is the raw connection, which no deadline bounds: it is never read.
	switch {
	case response.StatusCode == http.StatusSwitchingProtocols:
	case m.mostRead > 0 && response.StatusCode >= 200 && response.StatusCode <= 299:
		answer, _ = io.ReadAll(io.LimitReader(response.Body, m.mostRead)) // what came is what was said
		o.excerpt = hide(bytes.Clone(answer[:min(len(answer), s.client.excerptBytes)]), to.hidden)
	default:
		answer = s.read(response.Body)
		o.excerpt = hide(bytes.Clone(answer[:min(len(answer), s.client.excerptBytes)]), to.hidden)
	}
	o.answered(to.format, to.only200, response, answer)
	o.duration = time.Since(o.startedAt)
	if m.mostRead == 0 || !o.delivered() {
		answer = nil
	}
	return o, answer
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

var (
	errNoFormat    = errors.New("its format is of a newer version")
	errNotRendered = errors.New("the event cannot be rendered")
)

func (s *sender) request(to *subscription, m message, now time.Time) (*http.Request, error) {
	body := m.body
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
	values := []string{m.contentType, s.client.userAgent}
	request.Header["Content-Type"], request.Header["User-Agent"] = values[:1:1], values[1:]
	// Set and empty, so not sent: net/http then takes the request for repeatable, and tries again by itself when a
	// kept connection turns out to be closed. Receivers know a repetition by webhook-id.
	request.Header["Idempotency-Key"] = nil
	return request, signAll(request.Header, to, m.id, now, body)
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
