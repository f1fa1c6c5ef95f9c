package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// concurrency is how many requests each contestant has under way at most, and so how many connections it opens.
const concurrency = 1000

// A poster makes the request that mailhook makes, for those that mailhook is compared with: the same client with the
// same settings, the same headers, the same two signatures, the answer read to its end.
type poster struct {
	transport *http.Transport
	key       []byte
}

func newPoster() *poster {
	return &poster{
		transport: &http.Transport{MaxIdleConns: concurrency, MaxIdleConnsPerHost: concurrency, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10},
		key:       []byte(secret),
	}
}

func (p *poster) post(ctx context.Context, url, id string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body)) //nolint:gosec // to our own receiver
	if err != nil {
		return err
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	standard := hmac.New(sha256.New, p.key)
	standard.Write([]byte(id + "." + timestamp + "."))
	standard.Write(body)
	plain := hmac.New(sha256.New, p.key)
	plain.Write(body)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "mailhook/bench")
	request.Header.Set("Webhook-Id", id)
	request.Header.Set("Webhook-Timestamp", timestamp)
	request.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(standard.Sum(nil)))
	request.Header.Set("X-Signature", "hmac-sha256="+hex.EncodeToString(plain.Sum(nil)))
	response, err := p.transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end
	if _, err := io.ReadAll(io.LimitReader(response.Body, 4096)); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// body is what mailhook sends for event n of the throughput row, but for the id and the time: the same length.
func body(n int64) []byte {
	return fmt.Appendf(nil, `{"id":"%s","type":"email.delivered","timestamp":"2026-11-21T12:00:00.000Z","data":{"recipient":"user%d@example.com","message_id":"message-%d","n":%d,%s}}`,
		eventID(n), n, n, n, eventDetails)
}

func eventID(n int64) string {
	return fmt.Sprintf("evt_%016x%016x%s", 1_764_000_000_000_000+n, n, "0123abcd")
}

// eventDetails is what an SMTP server typically says of a delivery.
const eventDetails = `"smtp_code":250,"smtp_response":"250 2.0.0 OK 1764000000 4fb4d7f45d1cf-64b2c3d4e5fsi1234567a12.345 - gsmtp","mx":"mx1.example.com","tls":"TLSv1.3"`
