package receiver

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"mailhook/db/format"
)

// told is what a receiver looks at first: an id where the format has one, and the type in its words.
type told struct {
	ID   string
	Type string
	Test bool
}

// readBody notes down what the body says, and fails where it is none of the format.
func (v *Receiver) readBody(to *Receipt) error {
	f, ok := format.Find(v.Format)
	if v.Format == "" {
		f, ok = format.Find("standard")
	}
	if !ok {
		return fmt.Errorf("there is no format %s", v.Format)
	}
	events, isArray, err := read(f, to.Body)
	if err != nil {
		return err
	}
	want := f.ContentType
	if isArray && f.ArrayContentType != "" {
		want = f.ArrayContentType
	}
	if got := to.Header.Get("Content-Type"); v.Format != "" && got != want {
		return fmt.Errorf("Content-Type is %q, not %s", got, want)
	}
	first := events[0]
	// A batch has an id of its own.
	if first.ID != "" && first.ID != to.ID && !strings.HasPrefix(to.ID, "bat_") {
		return fmt.Errorf("webhook-id is %s but the body's id is %s", to.ID, first.ID)
	}
	to.Type, to.Test = first.Type, first.Test
	for _, event := range events {
		to.Events = append(to.Events, event.ID)
	}
	return nil
}

// read takes a body apart: one event, or an array of at least one, as the format has them.
func read(f format.Format, body []byte) (events []told, isArray bool, err error) {
	if f.ContentType == "application/xml" {
		var document struct {
			XMLName xml.Name `xml:"event"`
			ID      string   `xml:"id,attr"`
			Test    bool     `xml:"test,attr"`
			Type    string   `xml:"event_type"`
		}
		if err := xml.Unmarshal(body, &document); err != nil {
			return nil, false, fmt.Errorf("the body is not the XML of an event: %w", err)
		}
		return []told{{document.ID, document.Type, document.Test}}, false, nil
	}
	var list []json.RawMessage
	isArray = bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("["))
	switch {
	case !isArray && f.Arrays == format.OnlyArrays:
		return nil, false, errors.New("the body is not an array")
	case isArray && f.Arrays == format.NoArrays:
		return nil, true, errors.New("the body is an array")
	case !isArray:
		list = []json.RawMessage{body}
	default:
		if err := json.Unmarshal(body, &list); err != nil || len(list) == 0 {
			return nil, true, errors.New("the body is not a JSON array of events")
		}
	}
	for _, text := range list {
		event, err := readJSON(f.Name, text)
		if err != nil {
			return nil, isArray, err
		}
		events = append(events, event)
	}
	return events, isArray, nil
}

func readJSON(name string, text []byte) (told, error) {
	ours := struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Test bool   `json:"test"`
	}{}
	theirs := struct {
		ID   string `json:"sg_event_id"`
		Type string `json:"event"`
		Test bool   `json:"test"`
	}{}
	var err error
	if name == "standard" || name == "cloudevents" {
		if err = json.Unmarshal(text, &ours); err == nil && ours.ID == "" {
			err = errors.New("it has no id")
		}
	} else {
		err = json.Unmarshal(text, &theirs)
		ours.ID, ours.Type, ours.Test = theirs.ID, theirs.Type, theirs.Test
	}
	if err != nil {
		return told{}, fmt.Errorf("the body is not the JSON of an event: %w", err)
	}
	return told(ours), nil
}
