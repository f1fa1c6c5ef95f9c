// Package format renders events as receivers expect them: one file for each format, which registers itself. A format of
// channel web is a vendor's spelling that a customer chooses; the other channels have one format each, by their own name:
// a message for people (message.go).
package format

import (
	"maps"
	"net/http"
	"slices"
	"time"
)

// Web is the channel of customers' own endpoints; the others are services of third parties.
const Web = "web"

// A Format is one way to write events into a request.
type Format struct {
	// Name is what a subscription calls it: standard, mailjet, …; of another channel than web, that channel's.
	Name string
	// Channel is web, pushover, slack or teams.
	Channel string
	// ContentType is that of one event, ArrayContentType that of an array where it is another.
	ContentType, ArrayContentType string
	// Arrays says whether requests may carry several events.
	Arrays Arrays
	// Personal says that Render looks at its target: such a body is made for each subscription anew.
	Personal bool
	// Render appends one event to b. An error never quotes the event.
	Render func(b []byte, e *Event, to *Target) ([]byte, error)
	// Sign sets the headers by which the receivers of this format verify, beside those that every request has; nil: none.
	// keys are those of the live secrets, the newest first.
	Sign func(header http.Header, at time.Time, body []byte, keys [][]byte) error
	// HasPublicKey says that its receivers verify by the public key of the subscription (PublicKey).
	HasPublicKey bool
	// IsPermanent says of a status that is no success that the request will never be taken; nil: of none.
	IsPermanent func(status int) bool
	// IsTaken says of the beginning of the body of a 2xx whether it is a yes; nil: any is.
	IsTaken func(answer []byte) bool
	// ResetHeader says, with a 429 that has no Retry-After, when there is room again, in Unix seconds; empty: there is no such header.
	ResetHeader string
	// RetryAfter is how long to wait after a failure at least.
	RetryAfter time.Duration
}

// Arrays says whether a format puts events into a JSON array.
type Arrays int

// Never, where a subscription has batches, or always: a single event, too.
const (
	NoArrays Arrays = iota
	OptionalArrays
	OnlyArrays
)

// A Target is what a body may need to know of the subscription that it goes to.
type Target struct {
	// Settings are those of the channel that anybody may read, Secrets those that nobody may: by the names of the API.
	Settings, Secrets map[string]string
}

//nolint:gochecknoglobals // so that a format is one file
var formats = map[string]Format{}

// register makes a format known; each file calls it once.
//
//nolint:unparam // a variable at the top of a file takes a value
func register(f Format) bool {
	formats[f.Name] = f
	return true
}

// Find is the format of that name.
func Find(name string) (Format, bool) {
	f, ok := formats[name]
	return f, ok
}

// Names are the formats of a channel, in alphabetical order.
func Names(channel string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(formats)) {
		if formats[name].Channel == channel {
			names = append(names, name)
		}
	}
	return names
}

// One is the body of a request for one event.
func (f Format) One(e *Event, to *Target) ([]byte, error) {
	b := make([]byte, 0, len(e.Data)+512)
	if f.Arrays != OnlyArrays {
		return f.Render(b, e, to)
	}
	b, err := f.Render(append(b, '['), e, to)
	return append(b, ']'), err
}
