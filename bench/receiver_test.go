package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
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
	r, err := newReceiver()
	if err != nil {
		t.Fatal(err)
	}
	r.watch()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, piece := range []string{"POST /ok/1 HT", "TP/1.1\r\nwebhook-id: evt_1\r", "\nContent-Length: 7\r\n\r\n", `{"n":1`, "}"} {
		if _, err := io.WriteString(conn, piece); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != answer {
		t.Fatalf("%q, %v", got, err)
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
	time.Sleep(50 * time.Millisecond)
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
