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
)

// client sends requests. One for the process: its connections are reused.
type client struct {
	transport    *http.Transport
	userAgent    string
	excerptBytes int
	insecure     bool
}

func newClient(cfg Config) *client {
	return &client{
		transport: &http.Transport{
			// No proxy from the environment: it would dial for us, past the check of the address.
			DialContext:            newDialer(cfg.AllowCIDR).DialContext,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxIdleConns:           cfg.MaxInFlight,
			MaxIdleConnsPerHost:    cfg.MaxInFlight,
			IdleConnTimeout:        60 * time.Second,
			DisableCompression:     true,     // a small answer must not become a large one
			MaxResponseHeaderBytes: 16 << 10, // endless headers took 51 MB without it
		},
		userAgent:    "mailhook/" + cfg.Version,
		excerptBytes: cfg.ExcerptBytes,
		insecure:     cfg.AllowInsecureHTTP,
	}
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// attempt makes one request and says what came of it. It never follows a redirect, and the whole of it, reading the
// answer too, ends with the subscription's timeout.
func (c *client) attempt(ctx context.Context, s *subscription, d *delivery) outcome {
	o := outcome{delivery: d, startedAt: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var connected atomic.Bool
	request, err := c.request(ctx, s, d, &connected, o.startedAt)
	if err != nil {
		o.word = outcomeRenderFailed
		if errors.Is(err, errNoSecret) {
			o.word = outcomeNoSecret
		}
		return o
	}
	if !c.insecure && request.URL.Scheme != "https" {
		o.word = outcomeBlockedAddress
		return o
	}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		o.word = errorOutcome(err, connected.Load())
		o.duration = time.Since(o.startedAt)
		return o
	}
	defer response.Body.Close() //nolint:errcheck // nothing to do about it
	o.word = statusOutcome(response.StatusCode)
	o.statusCode = response.StatusCode
	o.retryAfter = retryAfter(response.Header, time.Now())
	// After 101 the body is the raw connection, which no deadline bounds: it is never read.
	if response.StatusCode != http.StatusSwitchingProtocols {
		o.excerpt = c.read(response.Body)
	}
	o.duration = time.Since(o.startedAt)
	return o
}

// read keeps the first bytes of an answer, and reads a little further so that the connection can be used again.
func (c *client) read(body io.Reader) []byte {
	excerpt, err := io.ReadAll(io.LimitReader(body, int64(c.excerptBytes)))
	if err == nil {
		io.CopyN(io.Discard, body, 16<<10) //nolint:errcheck // the status has decided
	}
	return excerpt
}

func (c *client) request(ctx context.Context, s *subscription, d *delivery, connected *atomic.Bool, now time.Time) (*http.Request, error) {
	body, err := d.event.body()
	if err != nil {
		return nil, err
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:        func(httptrace.GotConnInfo) { connected.Store(true) },
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return errInterim },
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the URL cannot be parsed")
	}
	for name, value := range s.headers {
		request.Header.Set(name, value)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", c.userAgent)
	// Set and empty, so not sent: net/http then takes the request for repeatable, and tries again by itself when a
	// kept connection turns out to be closed. Receivers know a repetition by webhook-id.
	request.Header["Idempotency-Key"] = nil
	if err := sign(request.Header, d.event.id.String(), now, body, s.keys); err != nil {
		return nil, err
	}
	return request, nil
}

// start takes deliveries that this worker has just leased to their ends: one goroutine each, of which there are never
// more than MaxInFlight.
func (w *Worker) start(ctx context.Context, deliveries []*delivery) {
	if len(deliveries) == 0 {
		return
	}
	if err := w.cache.load(ctx, deliveries); err != nil {
		w.complain(ctx, "load subscriptions", err)
	}
	for _, d := range deliveries {
		go w.deliver(ctx, d)
	}
}

// deliver is the whole way of one delivery through this process: look once more whether it may start, wait for its
// turn, send, hand over what came of it.
func (w *Worker) deliver(ctx context.Context, d *delivery) {
	s, delay := w.turn(ctx, d)
	if s == nil {
		w.returns <- returned{d, delay}
		return
	}
	o := w.client.attempt(ctx, s, d)
	if ctx.Err() != nil && !o.delivered() {
		// We gave up, not the receiver: no attempt is burned.
		w.returns <- returned{d, 0}
		return
	}
	w.metrics.attempted(o)
	w.outcomes <- o
}

// turn is the subscription to send to, or nil and how long the delivery is to rest: its subscription is closed off,
// this worker must not start requests, or the rate is used up for longer than a slot should be held.
func (w *Worker) turn(ctx context.Context, d *delivery) (*subscription, time.Duration) {
	s := w.cache.get(d.subscriptionID)
	if s == nil {
		return nil, time.Second
	}
	if wait := s.reserve(); wait > time.Second {
		return nil, wait
	} else if wait > 0 && !pause(ctx, wait) {
		return nil, 0
	}
	// Read again after the wait: a pause or delete in between counts.
	if s = w.cache.get(d.subscriptionID); s == nil || !s.mayStart || ctx.Err() != nil || !w.state.sending() || w.state.alive(time.Now()) != nil {
		return nil, 0
	}
	return s, 0
}
