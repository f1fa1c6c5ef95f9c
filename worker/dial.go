package worker

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// attemptKey is where the context of an attempt holds itself. net/http detaches a dial from the request that asked for
// it, so that another may have the connection, and keeps only the values.
type attemptKey struct{}

// withinAttempt is a dial's context that ends with the attempt, too: an endpoint that never lets a connection come about
// must not keep one, and a goroutine, beyond the subscription's timeout.
func withinAttempt(ctx context.Context) (context.Context, context.CancelFunc) {
	attempt, ok := ctx.Value(attemptKey{}).(context.Context)
	ctx, cancel := context.WithCancel(ctx)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(attempt, cancel)
	return ctx, func() { stop(); cancel() }
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
