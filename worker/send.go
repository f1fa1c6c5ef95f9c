package worker

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"

	"mailhook/db/egress"
)

// senderIdle is how long a goroutine that sends waits for another delivery.
const senderIdle = 10 * time.Second

// client sends requests. One for each worker: its connections are reused.
type client struct {
	transports   *transports
	dialer       *egress.Dialer
	policy       egress.Policy
	userAgent    string
	excerptBytes int
}

func newClient(cfg Config) *client {
	dialer := egress.NewDialer(cfg.Policy)
	return &client{
		transports:   newTransports(newTransport(cfg, dialer), cfg.MaxInFlight),
		dialer:       dialer,
		policy:       cfg.Policy,
		userAgent:    "mailhook/" + cfg.Version,
		excerptBytes: cfg.ExcerptBytes,
	}
}

func newTransport(cfg Config, dialer *egress.Dialer) *http.Transport {
	t := &http.Transport{
		// No proxy from the environment: it would dial for us, past the check of the address.
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           cfg.MaxInFlight,
		MaxIdleConnsPerHost:    cfg.MaxInFlight,
		IdleConnTimeout:        60 * time.Second,
		DisableCompression:     true,     // a small answer must not become a large one
		MaxResponseHeaderBytes: 16 << 10, // endless headers took 51 MB without it
	}
	// HTTP/1.1 only: with a dial of our own net/http does not offer h2, in which one answer could hold up another.
	dialWithinAttempt(t)
	return t
}

func (c *client) close() { c.transports.close() }

// A job is what a sender does next: one delivery, or those of a batch, whose slot is taken already.
type job struct {
	delivery *delivery
	batch    []*delivery
}

// attempt makes one request with a sender of its own.
func (c *client) attempt(ctx context.Context, s *subscription, d *delivery) outcome {
	sender := c.newSender(ctx)
	defer sender.close()
	return sender.attempt(s, d)
}

// start takes deliveries that this worker has just leased to their ends, side by side: each by a goroutine that has
// nothing to do, or by a new one. There are hardly more than MaxInFlight.
func (w *Worker) start(ctx context.Context, deliveries []*delivery) {
	if len(deliveries) == 0 {
		return
	}
	if err := w.cache.load(ctx, deliveries); err != nil {
		w.complain(ctx, "load subscriptions", err)
	}
	w.calm.unstarted.Add(int64(len(deliveries) - countBatched(deliveries)))
	type shipment struct {
		to         *subscription // as it was when it was looked at: it may change meanwhile
		deliveries []*delivery
	}
	var batched map[uuid.UUID]shipment
	for _, d := range deliveries {
		s := w.cache.get(d.subscriptionID)
		switch {
		case !d.isBatched():
			w.hand(ctx, job{delivery: d})
		case s == nil || s.batch == nil:
			w.returns <- returned{d, time.Second} // not loaded, or changed: it gets a slot the next time
		default:
			if batched == nil {
				batched = map[uuid.UUID]shipment{}
			}
			batched[d.subscriptionID] = shipment{s, append(batched[d.subscriptionID].deliveries, d)}
		}
	}
	for _, l := range batched {
		w.batches.add(ctx, l.to, l.deliveries)
	}
}

// hand gives a job to a goroutine that has nothing to do, or to a new one.
func (w *Worker) hand(ctx context.Context, j job) {
	select {
	case w.started <- j:
	default:
		go w.send(ctx, j)
	}
}

// send takes one job after the other, until none has come for a while: goroutines that live on keep the stack that
// a request grows, which was a tenth of the worker's CPU time.
func (w *Worker) send(ctx context.Context, j job) {
	sender := w.client.newSender(ctx)
	defer sender.close()
	idle := time.NewTimer(senderIdle)
	defer idle.Stop()
	for {
		if j.delivery != nil {
			w.deliver(ctx, sender, j.delivery)
		} else {
			w.deliverBatch(ctx, sender, j.batch)
		}
		idle.Reset(senderIdle)
		select {
		case j = <-w.started:
		case <-idle.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// deliver is the whole way of one delivery through this process: look once more whether it may start, wait for its
// turn, send, hand over what came of it.
func (w *Worker) deliver(ctx context.Context, sender *sender, d *delivery) {
	w.calm.unstarted.Add(-1)
	s, delay := w.turn(ctx, d)
	if s == nil {
		w.returns <- returned{d, delay}
		return
	}
	o := sender.attempt(s, d)
	if ctx.Err() != nil && !o.delivered() {
		// We gave up, not the receiver: no attempt is burned.
		w.returns <- returned{d, 0}
		return
	}
	w.metrics.attempted(o)
	w.outcomes <- o // waits while recording does not keep up
	w.leases.finished(d, o.duration)
}

// turn is the subscription to send to, or nil and how long the delivery is to rest: its subscription is closed off,
// this worker must not start requests, or the rate is used up for longer than a slot should be held.
func (w *Worker) turn(ctx context.Context, d *delivery) (*subscription, time.Duration) {
	s := w.cache.get(d.subscriptionID)
	if s == nil {
		return nil, time.Second
	}
	if wait := s.pace.wait(ctx, d.event.urgent); wait > 0 {
		return nil, wait
	}
	// Read again after the wait: a pause or delete in between counts.
	if s = w.cache.get(d.subscriptionID); s == nil || !s.mayStart || ctx.Err() != nil || !w.state.sending() || w.state.alive(time.Now()) != nil {
		return nil, 0
	}
	return s, 0
}
