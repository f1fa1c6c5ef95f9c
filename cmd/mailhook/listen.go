package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"mailhook/cmd/receiver"
	"mailhook/db/format"
)

func listenCommand() *cli.Command {
	return &cli.Command{
		Name:  "listen",
		Usage: "receive webhooks here, verify their signatures, and print them",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "secret", EnvVars: []string{"MAILHOOK_LISTEN_SECRET"}, Usage: "the subscription's signing secret: whsec_…"},
			&cli.StringFlag{Name: "format", EnvVars: []string{"MAILHOOK_LISTEN_FORMAT"}, Value: "standard", Usage: "the subscription's format: " + strings.Join(format.Names("web"), ", ")},
			&cli.IntFlag{Name: "port", EnvVars: []string{"MAILHOOK_LISTEN_PORT"}, Value: 8000, Usage: "port on 127.0.0.1"},
			&cli.Float64Flag{Name: "fail-rate", EnvVars: []string{"MAILHOOK_LISTEN_FAIL_RATE"}, Usage: "share of requests to answer with 500, from 0 to 1"},
		},
		Action: func(c *cli.Context) error {
			if c.String("secret") == "" {
				return usagef("give the subscription's signing secret: --secret whsec_…")
			}
			if !slices.Contains(format.Names("web"), c.String("format")) {
				return usagef("--format %s is not one of %s", c.String("format"), strings.Join(format.Names("web"), ", "))
			}
			rate, port := c.Float64("fail-rate"), c.Int("port")
			if rate < 0 || rate > 1 {
				return usagef("--fail-rate %v is not between 0 and 1", rate)
			}
			if port < 0 || port > 65535 {
				return usagef("--port %d is not a port", port)
			}
			listener, err := listen(c.Context, fmt.Sprintf("127.0.0.1:%d", port), "port")
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
			return serveHTTP(c.Context, log, listener, printer(c.App.Writer, c.String("format"), c.String("secret"), rate))
		},
	}
}

// printer answers 200, which every success rule takes, to what verifies, 400 to what does not, and 500 to a share of all.
func printer(out io.Writer, name, secret string, failRate float64) http.Handler {
	var mu sync.Mutex
	return &receiver.Receiver{
		Format: name,
		Secret: func(string) string { return secret },
		Answer: func(w http.ResponseWriter, r receiver.Receipt) {
			status, verdict := http.StatusOK, "verified"
			switch {
			case r.Problem != nil:
				status, verdict = http.StatusBadRequest, r.Problem.Error()
			case rand.Float64() < failRate: //nolint:gosec // not a secret
				status = http.StatusInternalServerError
			}
			mu.Lock()
			fmt.Fprintf(out, "%s  answered %d, %s\n", r.At.Format("15:04:05.000"), status, inert(verdict))
			for _, line := range lines(r) {
				fmt.Fprintln(out, inert(line))
			}
			mu.Unlock()
			w.WriteHeader(status)
		},
	}
}

// lines are a body for people: a line for each event of an array, and for each element of XML; else the body as it came.
func lines(r receiver.Receipt) []string {
	var list []json.RawMessage
	switch {
	case r.Problem != nil:
	case strings.Contains(r.Header.Get("Content-Type"), "xml"):
		if lines, err := linesOfXML(r.Body); err == nil {
			return lines
		}
	case json.Unmarshal(r.Body, &list) == nil:
		lines := []string{"["}
		for _, event := range list {
			lines = append(lines, "  "+string(event))
		}
		return append(lines, "]")
	}
	return []string{string(r.Body)}
}

// linesOfXML is a document with a line for each element that has text, and two for each that has elements.
func linesOfXML(body []byte) (lines []string, err error) {
	decoder, depth, isOpen := xml.NewDecoder(bytes.NewReader(body)), 0, false // isOpen: the last line is a start without its end
	for {
		token, err := decoder.RawToken()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.ProcInst:
			lines = append(lines, fmt.Sprintf("<?%s %s?>", token.Target, token.Inst))
		case xml.StartElement:
			lines = append(lines, strings.Repeat("  ", depth)+startOf(token))
			depth, isOpen = depth+1, true
		case xml.CharData:
			if isOpen {
				lines[len(lines)-1] += escapeXML(string(token))
			}
		case xml.EndElement:
			depth--
			end := "</" + token.Name.Local + ">"
			if isOpen {
				lines[len(lines)-1] += end
			} else {
				lines = append(lines, strings.Repeat("  ", max(depth, 0))+end)
			}
			isOpen = false
		}
	}
}

func startOf(token xml.StartElement) string {
	text := "<" + token.Name.Local
	for _, attribute := range token.Attr {
		text += " " + attribute.Name.Local + `="` + escapeXML(attribute.Value) + `"`
	}
	return text + ">"
}

func escapeXML(text string) string {
	var out strings.Builder
	xml.EscapeText(&out, []byte(text)) //nolint:errcheck // into memory
	return out.String()
}
