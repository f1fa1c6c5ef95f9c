package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Proxy passes TCP connections on to a server and does to them what networks
// do: it swallows, resets and refuses. Its methods may be called from several
// goroutines.
type Proxy struct {
	target, addr string
	running      sync.WaitGroup
	ctx          context.Context // ends with Close; bounds dials
	cancel       context.CancelFunc

	mu       sync.Mutex
	closed   bool
	listener net.Listener // nil while refusing
	conns    map[*Conn]struct{}
	swallow  func(*Conn) bool // nil: no fault
}

// Conn is a connection of a client through a Proxy.
type Conn struct {
	client *net.TCPConn

	mu        sync.Mutex
	server    *net.TCPConn // nil until dialled
	swallowed bool         // for good: bytes of the stream are lost
	cut       bool
	head      []byte
}

// headSize bounds what Sent can look at. A mailhook connection says what it is
// for in its first kilobyte.
const headSize = 64 << 10

// StartProxy listens on a free port of 127.0.0.1 and passes connections on to
// target, a host:port. A target that does not answer is a reset to the client.
// The caller must Close it.
func StartProxy(target string) (*Proxy, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, ctx: ctx, cancel: cancel, conns: map[*Conn]struct{}{}}
	var err error
	for range 5 { // another process may take the port between our look and our bind
		var port int
		if port, err = freePort(ctx); err != nil {
			break
		}
		p.addr = fmt.Sprintf("127.0.0.1:%d", port)
		if err = p.Accept(); err == nil {
			return p, nil
		}
	}
	cancel()
	return nil, fmt.Errorf("start proxy: %w", err)
}

// Addr is the host:port that the proxy listens on, the same for its whole life.
func (p *Proxy) Addr() string { return p.addr }

// Blackhole makes the network half open: the bytes of all connections are
// swallowed both ways and nothing is closed, so that neither end learns of the
// other's close. New connections are accepted and get nothing. What is on its
// way at this moment may still arrive. It returns how many connections it hit.
func (p *Proxy) Blackhole() int { return p.BlackholeWhere(func(*Conn) bool { return true }) }

// BlackholeWhere is Blackhole for the connections that match, now or by what
// they send later; the bytes that make one match are swallowed already. With
// Restore directly after it, only the connections of this moment are hit. It
// returns how many those are. match is called often, from several goroutines.
func (p *Proxy) BlackholeWhere(match func(*Conn) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow = match
	hit := 0
	for c := range p.conns {
		if match(c) && c.lose() {
			hit++
		}
	}
	return hit
}

// Restore ends Blackhole and BlackholeWhere for new connections. Those that
// were hit stay dead, for their streams have a hole; Cut ends them.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow = nil
}

// Cut resets all connections at both ends, swallowed ones too, and returns how
// many. New connections work.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.reset()
	}
	return len(p.conns)
}

// Refuse makes new connections fail with "connection refused". Those that are
// there go on.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close() // it has nothing to flush
		p.listener = nil
	}
}

// Accept ends Refuse. It fails when another process has taken the port, or
// after Close.
func (p *Proxy) Accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.listener != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener = l
	p.running.Add(1)
	go p.accept(l)
	return nil
}

// Close resets all connections, frees the port and waits until all goroutines
// are gone. A second Close does nothing.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Refuse()
	p.cancel()
	p.Cut()
	p.running.Wait()
}

// Sent says whether the client's first 64 KiB so far hold the marker, such as
// an application_name or "LISTEN".
func (c *Conn) Sent(marker string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.head, []byte(marker))
}

func (p *Proxy) accept(l net.Listener) {
	defer p.running.Done()
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, or the client has gone
			select {
			case <-p.ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		p.admit(&Conn{client: client.(*net.TCPConn)})
	}
}

// admit serves a connection, unless the proxy was closed since it was accepted.
func (p *Proxy) admit(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.reset()
		return
	}
	p.conns[c] = struct{}{}
	p.running.Add(1)
	go p.serve(c)
}

func (p *Proxy) serve(c *Conn) {
	defer p.running.Done()
	defer p.forget(c)
	if p.swallows(c) {
		_, _ = io.Copy(io.Discard, c.client) // ends with the client
		return
	}
	if err := c.dial(p.ctx, p.target); err != nil {
		c.reset()
		return
	}
	var back sync.WaitGroup
	back.Go(func() { p.pump(c, c.client, c.server, func([]byte) {}) })
	p.pump(c, c.server, c.client, c.note)
	back.Wait()
}

func (p *Proxy) forget(c *Conn) {
	c.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pump passes bytes on, or swallows them, until from ends. The end is passed on
// as well, in order or as a reset, unless the connection is swallowed.
func (p *Proxy) pump(c *Conn, to, from *net.TCPConn, note func([]byte)) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		note(buf[:n])
		swallowed := p.swallows(c)
		if n > 0 && !swallowed {
			if _, writeErr := to.Write(buf[:n]); writeErr != nil {
				err = writeErr
			}
		}
		switch {
		case err == nil:
			continue
		case swallowed:
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite() // fails if it has ended as well
		default:
			c.reset()
		}
		return
	}
}

// swallows says whether the connection is lost, and loses it if the fault that
// is on matches it.
func (p *Proxy) swallows(c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallow != nil && p.swallow(c) {
		c.lose()
	}
	return c.isLost()
}

func (c *Conn) dial(ctx context.Context, target string) error {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		_ = server.Close() // nothing was sent on it
		return net.ErrClosed
	}
	c.server = server.(*net.TCPConn)
	return nil
}

// note remembers what the client sends.
func (c *Conn) note(sent []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head = append(c.head, sent[:min(len(sent), headSize-len(c.head))]...)
}

// lose marks the connection as swallowed; false if it was already.
func (c *Conn) lose() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.swallowed
	c.swallowed = true
	return !was
}

func (c *Conn) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.swallowed
}

// reset ends both sides by RST.
func (c *Conn) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for _, side := range []*net.TCPConn{c.client, c.server} {
		if side != nil {
			_ = side.SetLinger(0) // fails if it has ended already
			_ = side.Close()
		}
	}
}

func (c *Conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.client.Close() // both have ended, or were reset
	if c.server != nil {
		_ = c.server.Close()
	}
}
