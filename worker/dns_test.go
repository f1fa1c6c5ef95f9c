package worker

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A dnsAnswer is what a name leads to.
type dnsAnswer struct {
	addresses []string // of both families; a question is answered with those of its own
	cnames    []string // before the addresses
	code      dnsmessage.RCode
	silent    bool // no answer at all
}

// A dnsServer answers by a function of the name, in lower case and without the dot at its end, and of how often this
// question came before. Everything it says is to be forgotten at once.
type dnsServer struct {
	conn   net.PacketConn
	answer func(name string, before int) dnsAnswer

	mu    sync.Mutex
	asked map[string]int
}

func serveDNS(t *testing.T, answer func(name string, before int) dnsAnswer) *dnsServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dnsServer{conn: conn, answer: answer, asked: map[string]int{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buffer := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply := s.reply(buffer[:n]); reply != nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return s
}

// resolver asks this server, whatever the machine is set up with. A question that nobody waits for any more ends at once:
// net would wait for its answer, and the test would leave that goroutine behind.
func (s *dnsServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", s.conn.LocalAddr().String())
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}}
}

// questions is how many came.
func (s *dnsServer) questions() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.asked {
		n += times
	}
	return n
}

func (s *dnsServer) reply(query []byte) []byte {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil {
		return nil
	}
	question, err := parser.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	before := s.asked[question.Name.String()+question.Type.String()]
	s.asked[question.Name.String()+question.Type.String()]++
	s.mu.Unlock()
	answer := s.answer(strings.ToLower(strings.TrimSuffix(question.Name.String(), ".")), before)
	if answer.silent {
		return nil
	}
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, RecursionAvailable: true, RCode: answer.code},
		Questions: []dnsmessage.Question{question},
	}
	name := question.Name
	add := func(body dnsmessage.ResourceBody) {
		message.Answers = append(message.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: question.Class}, Body: body})
	}
	for _, cname := range answer.cnames {
		next := dnsmessage.MustNewName(cname + ".")
		add(&dnsmessage.CNAMEResource{CNAME: next})
		name = next
	}
	for _, text := range answer.addresses {
		switch a := netip.MustParseAddr(text); {
		case a.Is4() && question.Type == dnsmessage.TypeA:
			add(&dnsmessage.AResource{A: a.As4()})
		case a.Is6() && question.Type == dnsmessage.TypeAAAA:
			add(&dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	packed, err := message.Pack()
	if err != nil {
		panic(err)
	}
	return packed
}
