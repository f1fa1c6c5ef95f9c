package worker

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// transports keep connections apart: one transport for all requests without credentials, and one for each scope. A receiver
// or a proxy before it that takes a connection for authenticated by one request must not serve another account by it.
//
// Of those with scopes, the one unused for longest goes, with its idle connections, when it has been unused for longer
// than connections are kept, or when all of them together have more than maxConnections connections.
type transports struct {
	shared         *http.Transport
	maxConnections int64
	connections    atomic.Int64 // of those with scopes

	mu     sync.Mutex
	scopes map[scope]*list.Element
	byUse  *list.List // of *scopedTransport, the last used first
}

type scopedTransport struct {
	*http.Transport
	scope  scope
	usedAt time.Time
}

// newTransports clones shared for each scope. maxIdle is how many idle connections those with scopes keep beside as many
// in use.
func newTransports(shared *http.Transport, maxIdle int) *transports {
	return &transports{shared: shared, maxConnections: 2 * int64(maxIdle), scopes: map[scope]*list.Element{}, byUse: list.New()}
}

// of is the transport for one request.
func (t *transports) of(s scope) *http.Transport {
	if s == (scope{}) {
		return t.shared
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	element := t.scopes[s]
	if element == nil {
		element = t.byUse.PushFront(&scopedTransport{Transport: t.open(), scope: s})
		t.scopes[s] = element
	}
	t.byUse.MoveToFront(element)
	used := element.Value.(*scopedTransport)
	used.usedAt = now
	for last := t.byUse.Back(); last != element; last = t.byUse.Back() {
		if now.Sub(last.Value.(*scopedTransport).usedAt) < 2*t.shared.IdleConnTimeout && t.connections.Load() < t.maxConnections {
			break
		}
		t.drop(last)
	}
	return used.Transport
}

// open makes a transport whose connections are counted.
func (t *transports) open() *http.Transport {
	own := t.shared.Clone()
	dial := own.DialContext
	own.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		t.connections.Add(1)
		return &countedConn{Conn: conn, closed: sync.OnceFunc(func() { t.connections.Add(-1) })}, nil
	}
	own.DialTLSContext = dialTLS(own) // by this dial
	return own
}

// drop forgets a transport. Its idle connections are closed, and those in use when their request is over.
func (t *transports) drop(element *list.Element) {
	gone := t.byUse.Remove(element).(*scopedTransport)
	delete(t.scopes, gone.scope)
	gone.CloseIdleConnections()
}

func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shared.CloseIdleConnections()
	for last := t.byUse.Back(); last != nil; last = t.byUse.Back() {
		t.drop(last)
	}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
