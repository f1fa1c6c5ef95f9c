package main

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A receiver answers every POST with 200 at the least cost: it reads the request line, the content length and the body,
// and writes one fixed answer. The path says how it behaves:
//
//	/ok…     answers at once
//	/slow…   answers after 5 s
//	/fail…   answers 500
type receiver struct {
	url      string
	listener net.Listener

	count       atomic.Int64 // requests to /ok
	slow        atomic.Int64 // requests to /slow
	failed      atomic.Int64 // requests to /fail
	connections atomic.Int64 // accepted since the last reset

	mu     sync.Mutex
	marks  []time.Time // of the first request, and of every markEvery-th
	last   atomic.Int64
	seen   map[int64]time.Time // by the number in data, where it is watched
	watch  atomic.Bool
	reach  int64 // reached is closed when count comes to it
	reach1 chan struct{}
}

// markEvery is how many requests lie between two marks.
const markEvery = 1000

func newReceiver() (*receiver, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &receiver{url: "http://" + listener.Addr().String(), listener: listener}
	r.reset(0)
	go r.accept()
	return r, nil
}

// reset forgets what came in; the channel it answers closes when n more requests have come to /ok.
func (r *receiver) reset(n int64) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count.Store(0)
	r.slow.Store(0)
	r.failed.Store(0)
	r.connections.Store(0)
	r.last.Store(0)
	r.marks = nil
	r.seen = map[int64]time.Time{}
	r.reach, r.reach1 = n, make(chan struct{})
	return r.reach1
}

func (r *receiver) accept() {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.connections.Add(1)
		go r.serve(conn)
	}
}

const (
	answerOK   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	answerFail = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
)

// serve answers one request after the other on a connection; none is pipelined.
func (r *receiver) serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the client has gone
	buffer := make([]byte, 8<<10)
	for {
		path, body, err := readRequest(conn, &buffer)
		if err != nil {
			return
		}
		answer := answerOK
		switch {
		case strings.HasPrefix(path, "/slow"):
			r.slow.Add(1)
			time.Sleep(5 * time.Second)
		case strings.HasPrefix(path, "/fail"):
			r.failed.Add(1)
			answer = answerFail
		default:
			r.came(body)
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func readRequest(conn net.Conn, buffer *[]byte) (path string, body []byte, err error) {
	n, head, length := 0, -1, 0
	for head < 0 || n < head+length {
		if n == len(*buffer) {
			*buffer = append(*buffer, make([]byte, len(*buffer))...)
		}
		m, err := conn.Read((*buffer)[n:])
		if err != nil {
			return "", nil, err
		}
		n += m
		if head < 0 {
			if i := bytes.Index((*buffer)[:n], []byte("\r\n\r\n")); i >= 0 {
				head, length = i+4, contentLength((*buffer)[:i+2])
			}
		}
	}
	line := (*buffer)[:head]
	from := bytes.IndexByte(line, ' ') + 1
	return string(line[from : from+bytes.IndexByte(line[from:], ' ')]), (*buffer)[head : head+length], nil
}

func contentLength(head []byte) int {
	const name = "\r\nContent-Length: "
	_, rest, _ := bytes.Cut(head, []byte(name))
	digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
	n, _ := strconv.Atoi(string(digits))
	return n
}

func (r *receiver) came(body []byte) {
	now := time.Now()
	n := r.count.Add(1)
	r.last.Store(now.UnixNano())
	if n%markEvery == 1 || n == r.reach {
		r.mu.Lock()
		r.marks = append(r.marks, now)
		if n == r.reach {
			close(r.reach1)
		}
		r.mu.Unlock()
	}
	if r.watch.Load() {
		_, rest, _ := bytes.Cut(body, []byte(`"n":`))
		end := bytes.IndexAny(rest, ",}")
		if number, err := strconv.ParseInt(string(rest[:max(0, end)]), 10, 64); err == nil {
			r.mu.Lock()
			if _, again := r.seen[number]; !again {
				r.seen[number] = now
			}
			r.mu.Unlock()
		}
	}
}

// rate is requests a second between two shares of those that came: rate(0, 1) is all of them.
func (r *receiver) rate(from, to float64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, b := int(from*float64(len(r.marks)-1)), int(to*float64(len(r.marks)-1))
	if b <= a {
		return 0
	}
	n := float64((b - a) * markEvery)
	if b == len(r.marks)-1 {
		n = float64(r.count.Load()-1) - float64(a*markEvery)
	}
	return n / r.marks[b].Sub(r.marks[a]).Seconds()
}

// firstAt is when the first request came.
func (r *receiver) firstAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.marks) == 0 {
		return time.Time{}
	}
	return r.marks[0]
}

// arrivals is when each number came first.
func (r *receiver) arrivals() map[int64]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = map[int64]time.Time{}
	return seen
}
