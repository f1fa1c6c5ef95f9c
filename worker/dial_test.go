package worker

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

// A tarpit serves its first connection, and lets all others wait in the handshake for as long as the client does.
type tarpit struct {
	net.Listener
	accepted atomic.Int64
	waiting  atomic.Int64
}

func (l *tarpit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.accepted.Add(1) == 1 {
			return c, err
		}
		l.waiting.Add(1)
		go func() {
			io.Copy(io.Discard, c) // until the client closes it
			c.Close()
			l.waiting.Add(-1)
		}()
	}
}

// Attempts succeed by the one connection that serves, and each has begun to dial another that never comes about: hardly one
// of these is kept.
func TestDialsOfAttemptsThatSucceedEnd(t *testing.T) {
	t.Parallel()
	authority := newAuthority()
	came, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		came <- struct{}{}
		<-release
	}))
	pit := &tarpit{Listener: server.Listener}
	server.Listener = tls.NewListener(pit, authority.config(1))
	server.Config.ErrorLog = discardLog()
	server.Start()
	t.Cleanup(server.Close)
	client := newClient(testClientConfig())
	t.Cleanup(client.close)
	client.transports.shared.TLSClientConfig = authority.trusted()
	client.transports.shared.TLSHandshakeTimeout = time.Hour // what ends, ends with its attempt
	s := &subscription{format: standardFormat, url: "https://" + pit.Addr().String() + "/", timeout: time.Minute, keys: [][]byte{[]byte("k")}}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := client.newSender(ctx), client.newSender(ctx)
	attempt := func(by *sender) <-chan outcome {
		ended := make(chan outcome, 1)
		go func() { ended <- by.attempt(s, testDelivery()) }()
		return ended
	}
	const rounds = 10
	for round := range int64(rounds) {
		one := attempt(first)
		<-came
		two := attempt(second)
		dbtest.Eventually(t, "the second dials", func() bool { return pit.accepted.Load() == 2+round })
		release <- struct{}{}
		<-came
		release <- struct{}{}
		for _, ended := range []<-chan outcome{one, two} {
			if o := <-ended; o.word != outcomeOK {
				t.Fatal(o.word)
			}
		}
	}
	dbtest.Eventually(t, "all dials but one have ended", func() bool { return pit.waiting.Load() <= 1 })
	first.close()
	second.close()
	dbtest.Eventually(t, "the last one has ended", func() bool { return pit.waiting.Load() == 0 })
}
