package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

func outcomes() []string {
	return []string{
		outcomeOK, outcomeHTTP1xx, outcomeHTTP2xx, outcomeHTTP3xx, outcomeHTTP4xx, outcomeHTTP410, outcomeHTTP429, outcomeHTTP5xx, outcomeDNS, outcomeRefused, outcomeConnectTimeout,
		outcomeResponseTimeout, outcomeTLS, outcomeReset, outcomeBadResponse, outcomeBlockedAddress, outcomeRenderFailed, outcomeNoSecret,
	}
}

// FuzzAnswer: whatever comes back is one of the words, asks for a bounded time, and keeps a bounded part.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 429 Slow\r\nRetry-After: 120\r\n\r\n", "HTTP/1.1 503 x\r\nRetry-After: Mon, 15 Jan 2024 10:31:00 GMT\r\nDate: Mon, 15 Jan 2024 10:30:00 GMT\r\n\r\n",
		"HTTP/1.1 000 x\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "HTTP/0.9", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 101 x\r\n\r\n", "", "\xff", "HTTP/1.1 500 x\r\n\r\n\x00\xff",
		"HTTP/1.1 429 Slow\r\nRetry-After: 18446744073709551615\r\n\r\n", "HTTP/1.1 429 Slow\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\nDate: Mon, 01 Jan 0001 00:00:00 GMT\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	now := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, answer []byte) {
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
		if err != nil {
			if word := errorOutcome(err, true); !slices.Contains(outcomes(), word) || word == outcomeOK {
				t.Fatalf("%v is %q", err, word)
			}
			return
		}
		o := outcome{word: statusOutcome(response.StatusCode, false), statusCode: response.StatusCode, retryAfter: retryAfter(response.Header, now)}
		if !slices.Contains(outcomes(), o.word) || o.delivered() != (response.StatusCode/100 == 2) {
			t.Fatalf("%d is %q", response.StatusCode, o.word)
		}
		if response.StatusCode < -1<<15 || response.StatusCode >= 1<<15 {
			t.Fatalf("%d is no smallint", response.StatusCode)
		}
		if o.retryAfter < 0 || o.retryAfter > 48*time.Hour {
			t.Fatalf("Retry-After %q is %v", response.Header["Retry-After"], o.retryAfter)
		}
		s := &sender{answer: make([]byte, 64)}
		if kept := s.read(response.Body); len(kept) > 64 || !bytes.Contains(answer, kept) && response.TransferEncoding == nil {
			t.Fatalf("%q keeps %q", answer, kept)
		}
	})
}

// FuzzErrors: an error with any text is a word, and never a success.
func FuzzErrors(f *testing.F) {
	for _, text := range []string{"", "tls: handshake failure", "EOF", "server closed idle connection"} {
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, text string, connected bool) {
		for _, err := range []error{errors.New(text), errors.Join(errors.New(text), io.EOF), errors.Join(context.DeadlineExceeded, errors.New(text))} {
			if word := errorOutcome(err, connected); !slices.Contains(outcomes(), word) || word == outcomeOK {
				t.Fatalf("%q is %q", err, word)
			}
		}
	})
}
