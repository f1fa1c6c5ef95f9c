package main

import (
	"context"
	"hash/maphash"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReceiverCountsEachDeliveryOnce(t *testing.T) {
	r, err := newReceiver()
	if err != nil {
		t.Fatal(err)
	}
	reached := r.reset(3)
	for _, id := range []string{"evt_1", "evt_2", "evt_2"} {
		post(t, r.url+"/ok/1", id)
	}
	<-reached
	if err := r.check(3); err == nil {
		t.Error("a delivery came twice, and that was not seen")
	}
	r.reset(2)
	post(t, r.url+"/ok/1", "evt_2")
	post(t, r.url+"/ok/2", "evt_2")
	if err := r.check(2); err != nil {
		t.Error(err)
	}
}

func TestReceiverTakesRequestsInPieces(t *testing.T) {
	// A pair of sockets and no thread, so that each piece is read by itself.
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(ends[0])
	defer syscall.Close(ends[1])
	r := &receiver{seed: maphash.MakeSeed()}
	r.watch(0)
	l := &loop{peers: map[int32]*peer{}, request: r.request}
	p := &peer{fd: ends[0], buffer: make([]byte, 16)}
	pieces := []string{"POST /ok/1 HT", "TP/1.1\r\nwebhook-id: evt_1\r", "\nContent-Length: 7\r\n\r\n", `{"n":1`, "}"}
	for i, piece := range pieces {
		if n := r.tally().count; n != 0 {
			t.Fatalf("taken for whole after %d pieces", i)
		}
		if _, err := syscall.Write(ends[1], []byte(piece)); err != nil {
			t.Fatal(err)
		}
		for read := 0; read < len(piece); {
			before := p.filled
			l.read(p)
			if p.filled <= before { // answered
				break
			}
			read += p.filled - before
		}
	}
	got := make([]byte, len(answer))
	if n, err := syscall.Read(ends[1], got); err != nil || string(got[:n]) != answer {
		t.Fatalf("%q, %v", got[:n], err)
	}
	if _, came := r.arrivals()[1]; !came {
		t.Error("number 1 was not noted")
	}
}

// Late answers come 5 s after their request, and hold up nobody.
func TestReceiverAnswersLate(t *testing.T) {
	r, err := newReceiver()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	late := make(chan time.Duration)
	go func() {
		post(t, r.url+"/slow/1", "evt_1")
		late <- time.Since(began)
	}()
	for tick := time.Tick(time.Millisecond); r.tally().slow == 0; {
		<-tick // until it waits for its answer
	}
	post(t, r.url+"/ok/1", "evt_1")
	if took := time.Since(began); took > time.Second {
		t.Errorf("a late answer held up another: %v", took)
	}
	if took := <-late; took < lateAfter || took > lateAfter+time.Second {
		t.Errorf("the late answer came after %v", took)
	}
}

func post(t *testing.T, url, id string) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(`{"n":1}`))
	if err != nil {
		t.Error(err)
		return
	}
	request.Header.Set("Webhook-Id", id)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Error(response.Status)
	}
}
