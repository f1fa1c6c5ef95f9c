package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mailhook/cmd/receiver"
)

// A behaviour is how an endpoint answers. The zero value answers 200 at once.
type behaviour struct {
	status  int           // 0 is 200
	delay   time.Duration // before the answer
	flaky   float64       // the share of requests that get 503 instead
	manner  manner
	proper  float64     // the share of requests that are answered properly, whatever the manner
	perTurn []behaviour // the nth request of an event gets the nth of these, and those after them the last
}

// A manner is how an endpoint answers that does not answer properly.
type manner int

const (
	properly   manner = iota
	blackholed        // takes the request and never answers
	dripping          // a header line, byte by byte, without end
	resetting         // ends the connection

	// Those of scenario_hostile.go.
	endlessHeader
	drippingBody
	endlessBody
	heldHeader
	endlessInterim
	endlessStream
	endlessTrailers
)

// A receipt is one request in the ledger, written before it is answered; one that is not to be answered, when it came.
type receipt struct {
	At           int64  `json:"at"`       // µs; when it had come in whole
	Answered     int64  `json:"answered"` // µs; just before the answer
	Subscription int    `json:"subscription"`
	ID           string `json:"id"` // webhook-id
	Key          int64  `json:"key"`
	Status       int    `json:"status"` // 0: none was given
	Connection   string `json:"connection"`
	Problem      string `json:"problem,omitempty"`
}

// receivers are all endpoints of a field; each subscription has its path.
type receivers struct {
	field  *field
	url    string
	ledger *ledger
	server *http.Server
	ended  context.Context
	end    context.CancelFunc

	open  atomic.Int64 // requests that have come in and are not answered
	count atomic.Int64
	flood *flood // if there is one, what answers as it should not is done there
	// answered, if set, is called for each answer that is on its way.
	answered atomic.Pointer[func(*subscription, receipt)]

	mu     sync.Mutex
	turns  map[pair]int
	random *rand.Rand
}

func newReceivers(f *field) (*receivers, error) {
	r := &receivers{field: f, turns: map[pair]int{}, random: f.random("receivers")}
	r.ended, r.end = context.WithCancel(context.Background())
	var err error
	if r.ledger, err = newLedger(filepath.Join(f.dir, "receipts.jsonl")); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(r.ended, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.url = "http://" + listener.Addr().String()
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go r.server.Serve(listener) //nolint:errcheck // it ends with close
	return r, nil
}

func (r *receivers) path(subscription int) string { return r.url + "/" + strconv.Itoa(subscription) }

func (r *receivers) close() {
	r.end()
	r.server.Close() //nolint:errcheck // it was ours alone
}

// hangUp closes connections that nobody uses, so that workers keep no goroutines for them.
func (r *receivers) hangUp() { r.server.SetKeepAlivesEnabled(false) }

func (r *receivers) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	number, err := strconv.Atoi(strings.Trim(strings.SplitN(request.URL.Path, "/", 3)[1], "/"))
	all := r.field.everySubscription()
	if err != nil || number >= len(all) {
		r.field.problem("a request to %s, where nobody is", request.URL.Path)
		http.NotFound(w, request)
		return
	}
	s := all[number]
	body, err := io.ReadAll(request.Body)
	entry := receipt{At: r.field.at(time.Now()), Subscription: number, ID: request.Header.Get("webhook-id"), Connection: request.RemoteAddr}
	if err != nil {
		return // the sender has gone: it will come again
	}
	r.count.Add(1)
	r.open.Add(1)
	defer r.open.Add(-1)
	var envelope struct {
		Data struct {
			K int64 `json:"k"`
		} `json:"data"`
	}
	err = errors.Join(s.verify(request, body), json.Unmarshal(body, &envelope))
	if err != nil {
		entry.Problem = err.Error()
	}
	entry.Key = envelope.Data.K
	r.answer(request.Context(), w, s, entry, request.Header.Get("webhook-timestamp"))
}

// answer behaves as the endpoint does at the moment.
func (r *receivers) answer(sender context.Context, w http.ResponseWriter, s *subscription, entry receipt, sentAt string) {
	b := r.behaviour(s, entry.Key)
	if b.proper > 0 && b.manner == properly && s.hasGivenUp(sentAt) {
		b.manner = resetting // on a machine that is busy with the others' floods: an answer would come too late to count
	}
	if b.delay > 0 {
		r.wait(b.delay)
	}
	// Who has gone learns of no answer.
	if b.manner == properly && sender.Err() == nil {
		entry.Status = b.status
	}
	entry.Answered = r.field.at(time.Now())
	if err := r.ledger.append(entry); err != nil {
		r.field.problem("the ledger of receipts: %v", err)
		return
	}
	if b.manner != properly {
		r.misbehave(w, b.manner)
		return
	}
	if entry.Status == 0 {
		return
	}
	w.WriteHeader(b.status)
	if hook := r.answered.Load(); hook != nil {
		http.NewResponseController(w).Flush() //nolint:errcheck // the sender may have gone
		(*hook)(s, entry)
	}
}

// hasGivenUp says whether a request is so old that its sender may wait no longer. sentAt is in whole seconds.
func (s *subscription) hasGivenUp(sentAt string) bool {
	seconds, err := strconv.ParseInt(sentAt, 10, 64)
	return err != nil || time.Since(time.Unix(seconds, 0)) > s.timeout-time.Second
}

func (r *receivers) behaviour(s *subscription, key int64) behaviour {
	s.mu.Lock()
	b := s.behaviour
	s.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(b.perTurn) > 0 {
		p := pair{s.number, key}
		turn := r.turns[p]
		r.turns[p]++
		b = b.perTurn[min(turn, len(b.perTurn)-1)]
	}
	if b.flaky > 0 && r.random.Float64() < b.flaky {
		b.status = http.StatusServiceUnavailable
	}
	if b.proper > 0 && r.random.Float64() < b.proper {
		b.manner = properly
	}
	if b.status == 0 {
		b.status = http.StatusOK
	}
	return b
}

func (r *receivers) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.ended.Done():
	}
}

// misbehave holds the raw connection until the sender gives it up.
func (r *receivers) misbehave(w http.ResponseWriter, m manner) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // that is the fault
	if m == resetting {
		conn.(*net.TCPConn).SetLinger(0) //nolint:errcheck // an ordinary end would do, too
		return
	}
	if r.flood != nil {
		r.field.complain("hand a connection over", r.flood.take(conn, m))
		return
	}
	stop := context.AfterFunc(r.ended, func() { conn.Close() }) //nolint:errcheck // ours
	defer stop()
	go answerHostile(conn, m)
	io.Copy(io.Discard, conn) //nolint:errcheck // until it ends
}

// verify holds a request against the secrets that the subscription has or had within the grace.
func (s *subscription) verify(request *http.Request, body []byte) error {
	s.mu.Lock()
	secrets := s.secrets
	s.mu.Unlock()
	var problem error
	for _, secret := range secrets {
		verifier := receiver.Receiver{Secret: func(string) string { return secret }, Answer: func(_ http.ResponseWriter, got receiver.Receipt) { problem = got.Problem }}
		copied := *request
		copied.Body = io.NopCloser(bytes.NewReader(body))
		verifier.ServeHTTP(nil, &copied)
		if problem == nil {
			return nil
		}
	}
	return problem
}
