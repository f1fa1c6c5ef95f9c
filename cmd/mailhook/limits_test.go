package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// What a client cannot do to a server that people run: send endless headers, or none, or an endless body, or ask at any
// rate; and what the server of a worker answers has the headers of the API's.
func TestAServerBoundsItsClients(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL, "MAILHOOK_SECRET_KEY=" + db.NewMasterKey()}
	key, _, _ := mailhook(t, env, "key", "create")
	key = key[strings.LastIndex(key, " ")+1 : len(key)-1]
	address := started(t, command(t, env, "api", "--listen", "127.0.0.1:0", "--api-rate-limit", "1e-9"))

	raw := func(request string) *http.Response {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go io.WriteString(conn, request) // the server may not read it all
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return nil // the server has closed the connection
		}
		t.Cleanup(func() { answer.Body.Close() })
		return answer
	}
	const head = "GET /v1/subscriptions HTTP/1.1\r\nHost: x\r\n"
	if r := raw(head + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"); r == nil || r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %v", r)
	}
	post := fmt.Sprintf("POST /v1/subscriptions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n", key)
	if r := raw(post + strings.Repeat("10000\r\n"+strings.Repeat(" ", 0x10000)+"\r\n", 40)); r == nil || r.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("2.5 MiB of a body without an end: %v", r)
	}
	if r := raw(head); r != nil && r.StatusCode != http.StatusRequestTimeout { // the connection ends, after ReadHeaderTimeout
		t.Errorf("headers without an end: %v", r)
	}
	if text := request(t, key, http.MethodGet, "http://"+address+"/v1/subscriptions", "", http.StatusTooManyRequests, nil); !strings.Contains(text, "too_many_requests") {
		t.Error(text)
	}

	worker := started(t, command(t, env, "worker", "--listen", "127.0.0.1:0"))
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/nope"} {
		answer, err := http.Get("http://" + worker + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.Header.Get("X-Content-Type-Options") != "nosniff" || answer.Header.Get("X-Frame-Options") != "DENY" || answer.Header.Get("Server") != "" {
			t.Errorf("%s: %v", path, answer.Header)
		}
	}
}
