package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// A behaviour is how a request is answered.
type behaviour int

const (
	answerNow behaviour = iota
	answerLate
	answerNever
)

// lateAfter is when a late answer is given.
const lateAfter = 5 * time.Second

const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A loop serves all connections from one thread with epoll. The runtime's poller would take a read that fails, a pause
// and a wake-up more for each request.
type loop struct {
	poll, listener int
	peers          map[int32]*peer
	late           []lateAnswer // by time, for the delay is always the same
	request        func(path, id, body []byte) behaviour
	accepted       func()
}

// A peer is one connection: requests come one after the other, none is pipelined.
type peer struct {
	fd     int
	buffer []byte
	filled int
}

type lateAnswer struct {
	peer *peer
	at   time.Time
}

// listen starts a loop on a port of loopback.
func listen(request func(path, id, body []byte) behaviour, accepted func()) (*loop, string, error) {
	l := &loop{peers: map[int32]*peer{}, request: request, accepted: accepted}
	var err error
	if l.listener, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
		return nil, "", os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(l.listener, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, "", os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(l.listener, 4096); err != nil {
		return nil, "", os.NewSyscallError("listen", err)
	}
	address, err := syscall.Getsockname(l.listener)
	if err != nil {
		return nil, "", os.NewSyscallError("getsockname", err)
	}
	if l.poll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, "", os.NewSyscallError("epoll_create1", err)
	}
	if err := l.add(l.listener); err != nil {
		return nil, "", err
	}
	go l.serve()
	return l, fmt.Sprintf("http://127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port), nil
}

func (l *loop) add(fd int) error {
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)} //nolint:gosec // descriptors are small
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(l.poll, syscall.EPOLL_CTL_ADD, fd, &event))
}

func (l *loop) serve() {
	runtime.LockOSThread()
	events := make([]syscall.EpollEvent, 256)
	for {
		n, err := syscall.EpollWait(l.poll, events, l.answerLate())
		if err != nil && !errors.Is(err, syscall.EINTR) {
			panic(os.NewSyscallError("epoll_wait", err)) // nothing can be measured any more
		}
		for _, event := range events[:max(0, n)] {
			if int(event.Fd) == l.listener {
				l.accept()
			} else if p := l.peers[event.Fd]; p != nil {
				l.read(p)
			}
		}
	}
}

func (l *loop) accept() {
	for {
		fd, _, err := syscall.Accept4(l.listener, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != nil {
			return // none is left, or the client has gone
		}
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1) //nolint:errcheck // an answer is one write
		if err := l.add(fd); err != nil {
			syscall.Close(fd) //nolint:errcheck // the client sees it
			continue
		}
		l.peers[int32(fd)] = &peer{fd: fd, buffer: make([]byte, 4<<10)} //nolint:gosec // as above
		l.accepted()
	}
}

// read takes what has come, once: epoll reports the rest again.
func (l *loop) read(p *peer) {
	if p.filled == len(p.buffer) {
		p.buffer = append(p.buffer, make([]byte, len(p.buffer))...)
	}
	n, err := syscall.Read(p.fd, p.buffer[p.filled:])
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return
	}
	if err != nil || n == 0 {
		l.close(p)
		return
	}
	p.filled += n
	path, id, body, whole := parse(p.buffer[:p.filled])
	if !whole {
		return
	}
	switch l.request(path, id, body) {
	case answerNow:
		l.answer(p)
	case answerLate:
		l.late = append(l.late, lateAnswer{p, time.Now().Add(lateAfter)})
	case answerNever:
	}
	p.filled = 0
}

func (l *loop) answer(p *peer) {
	if _, err := syscall.Write(p.fd, []byte(answer)); err != nil {
		l.close(p)
	}
}

// answerLate gives the late answers that are due, and says in how many milliseconds the next one is; -1 is never.
func (l *loop) answerLate() int {
	for len(l.late) > 0 {
		next := l.late[0]
		if wait := time.Until(next.at); wait > 0 {
			return int(wait.Milliseconds()) + 1
		}
		if l.peers[int32(next.peer.fd)] == next.peer { //nolint:gosec // descriptors are small
			l.answer(next.peer)
		}
		l.late = l.late[1:]
	}
	return -1
}

func (l *loop) close(p *peer) {
	delete(l.peers, int32(p.fd)) //nolint:gosec // as above
	syscall.Close(p.fd)          //nolint:errcheck // takes it out of the poll, too
}

// parse takes a request apart, once it is whole.
func parse(request []byte) (path, id, body []byte, whole bool) {
	line, rest, found := bytes.Cut(request, []byte("\r\n"))
	if !found {
		return nil, nil, nil, false
	}
	_, line, _ = bytes.Cut(line, []byte(" "))
	path, _, _ = bytes.Cut(line, []byte(" "))
	length := 0
	for {
		line, rest, found = bytes.Cut(rest, []byte("\r\n"))
		if !found {
			return nil, nil, nil, false
		}
		if len(line) == 0 {
			break
		}
		switch name, value, _ := bytes.Cut(line, []byte(": ")); {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			length, _ = strconv.Atoi(string(value))
		case len(name) == len("Webhook-Id") && bytes.EqualFold(name, []byte("Webhook-Id")):
			id = value
		}
	}
	if len(rest) < length {
		return nil, nil, nil, false
	}
	return path, id, rest[:length], true
}
