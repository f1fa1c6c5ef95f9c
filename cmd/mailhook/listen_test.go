package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"mailhook/db/format"
)

const listenSecret = "a secret of sixteen characters or more"

// signed is a request of one format, as a worker makes it; without the signature of the format where that is left out.
func signed(t *testing.T, f format.Format, contentType, body string, asFormat bool) *http.Request {
	t.Helper()
	now := time.Now()
	request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, []byte(listenSecret))
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	at := strconv.FormatInt(now.Unix(), 10)
	request.Header = http.Header{
		"Content-Type": {contentType}, "Webhook-Id": {"evt_1"}, "Webhook-Timestamp": {at},
		"Webhook-Signature": {"v1," + base64.StdEncoding.EncodeToString(mac("evt_1."+at+"."+body))}, "X-Signature": {"hmac-sha256=" + hex.EncodeToString(mac(body))},
	}
	if f.Sign != nil && asFormat {
		if err := f.Sign(request.Header, now, []byte(body), [][]byte{[]byte(listenSecret)}); err != nil {
			t.Fatal(err)
		}
	}
	return request
}

// printed is what listen prints of a request, and the status that it answers.
func printed(name string, request *http.Request) (string, int) {
	var out bytes.Buffer
	answer := httptest.NewRecorder()
	printer(inertWriter{&out}, name, listenSecret, 0).ServeHTTP(answer, request)
	return out.String(), answer.Code
}

// TestListenVerifiesEachFormat: what is rendered and signed verifies; as another format it does not, nor with another
// body, nor without the signature of the format.
func TestListenVerifiesEachFormat(t *testing.T) {
	t.Parallel()
	e := &format.Event{ID: "evt_1", Type: "email.clicked", OccurredAt: time.Now(), Data: []byte(`{"link_url":"https://example.com/","message_id":"42","x":"\u001b[31m"}`)}
	for _, name := range format.Names("web") {
		f, _ := format.Find(name)
		body, err := f.One(e, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, status := printed(name, signed(t, f, f.ContentType, string(body), true)); status != http.StatusOK || !strings.Contains(text, "verified\n") {
			t.Errorf("%s: %d, %s", name, status, text)
		}
		forged := signed(t, f, f.ContentType, string(body), true)
		forged.Header.Set("X-Signature", "hmac-sha256=00")
		wrongs := map[string]*http.Request{
			"another body":         signed(t, f, f.ContentType, "{}", true),
			"another content type": signed(t, f, "text/plain", string(body), true),
			"another signature":    forged,
		}
		if f.Sign != nil {
			wrongs["no signature of the format"] = signed(t, f, f.ContentType, string(body), false)
		}
		for what, request := range wrongs {
			if what == "another body" && (strings.HasPrefix(name, "mum") || name == "mailjet") {
				continue // it has nothing that an object must have
			}
			if text, status := printed(name, request); status != http.StatusBadRequest {
				t.Errorf("%s with %s: %d, %s", name, what, status, text)
			}
		}
	}
}

// TestListenPrintsReadably: each event of an array and each element of XML is a line, and nothing in them acts on a terminal.
func TestListenPrintsReadably(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, contentType, body string
		want                    []string
	}{
		{"standard", "application/json", `{"id":"evt_1","type":"x"}`, []string{`{"id":"evt_1","type":"x"}`}},
		{"standard", "application/json", `[{"id":"evt_1","type":"x"},{"id":"evt_2"}]`, []string{"[", `  {"id":"evt_1","type":"x"}`, `  {"id":"evt_2"}`, "]"}},
		{"cloudevents", "application/cloudevents-batch+json", `[{"id":"evt_1"}]`, []string{"[", `  {"id":"evt_1"}`, "]"}},
		{
			"xml", "application/xml", `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<event id="evt_1"><event_type>x</event_type><data><field name="a">&lt;1&#xA;2` + "\u202e" + `</field></data></event>`,
			[]string{`<?xml version="1.0" encoding="UTF-8"?>`, `<event id="evt_1">`, "  <event_type>x</event_type>", "  <data>", `    <field name="a">&lt;1&#xA;2\u202e</field>`, "  </data>", "</event>"},
		},
	} {
		f, _ := format.Find(c.name)
		text, status := printed(c.name, signed(t, f, c.contentType, c.body, true))
		_, got, _ := strings.Cut(text, "\n")
		if want := strings.Join(c.want, "\n") + "\n"; status != http.StatusOK || got != want {
			t.Errorf("%d, %s\nwant\n%s", status, text, want)
		}
		shownInert(t, "listen", text, len(c.want)+1)
	}
}
