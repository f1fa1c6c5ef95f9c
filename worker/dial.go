package worker

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
)

// dialsKey is where the context of a request holds the dials of its sender. net/http detaches a dial from the request that
// asked for it, so that another may have the connection, and keeps only the values.
type dialsKey struct{}

// dials are what a sender's attempts have begun to dial and has not come about. An endpoint that never lets it must not
// collect descriptors and goroutines, whether its attempts fail, or succeed by a connection that was free before.
//
// One dial a sender may outlive an attempt that succeeds: were all of them ended, an endpoint that is far away and asked by
// many senders would hardly get more connections than it has, for those that are free serve the requests sooner.
type dials struct {
	mu      sync.Mutex
	current []*dial // begun since the last attempt has ended
	left    *dial
	closed  bool
}

type dial struct{ cancel context.CancelFunc }

// withinAttempt is a dial's context that ends with the attempt, too, and what to call when the dial is over.
func withinAttempt(ctx context.Context) (context.Context, context.CancelFunc) {
	d, _ := ctx.Value(dialsKey{}).(*dials)
	if d == nil {
		return ctx, func() {}
	}
	// A dial by this dial is part of it.
	ctx, cancel := context.WithCancel(context.WithValue(ctx, dialsKey{}, (*dials)(nil)))
	one := &dial{cancel}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		cancel()
		return ctx, cancel
	}
	d.current = append(d.current, one)
	return ctx, func() {
		cancel()
		d.over(one)
	}
}

func (d *dials) over(one *dial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current = slices.DeleteFunc(d.current, func(other *dial) bool { return other == one })
	if d.left == one {
		d.left = nil
	}
}

// attempted ends what an attempt has begun to dial, but for one dial if the receiver has answered.
func (d *dials) attempted(answered bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, one := range d.current {
		if answered && d.left == nil {
			d.left = one
		} else {
			one.cancel()
		}
		d.current[i] = nil
	}
	d.current = d.current[:0]
}

// close ends all, and what begins late.
func (d *dials) close() {
	d.attempted(false)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.left != nil {
		d.left.cancel()
	}
}

// dialWithinAttempt lets a transport's dials end with the attempt.
func dialWithinAttempt(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, stop := withinAttempt(ctx)
		defer stop()
		return dial(ctx, network, address)
	}
	t.DialTLSContext = dialTLS(t)
}

// dialTLS connects by a transport's dial and shakes hands; net/http's own handshake would go on after the attempt.
func dialTLS(t *http.Transport) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, stop := withinAttempt(ctx)
		defer stop()
		plain, err := t.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if t.TLSClientConfig != nil {
			config = t.TLSClientConfig.Clone()
		}
		config.ServerName = host
		conn := tls.Client(plain, config)
		ctx, cancel := context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
		if err := conn.HandshakeContext(ctx); err != nil {
			plain.Close() //nolint:errcheck // the handshake's error says more
			return nil, err
		}
		return conn, nil
	}
}
