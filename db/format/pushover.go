package format

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of Pushover, in characters, and what its emergency priority needs: repeated each minute, for an hour.
const (
	pushoverMessage   = 1024
	pushoverTitle     = 250
	pushoverLink      = 512
	pushoverEmergency = "2"
	pushoverRetry     = "60"
	pushoverExpire    = "3600"
)

var _ = register(Format{
	Name: "pushover", Channel: "pushover", ContentType: "application/x-www-form-urlencoded", Personal: true, Render: renderPushover,
	// "If our API returns a 4xx status, your input is invalid, and repeating it will not help"; but for the monthly limit.
	IsPermanent: func(status int) bool {
		return status >= 400 && status <= 499 && status != http.StatusTooManyRequests
	},
	IsTaken:     saysStatusOne,
	ResetHeader: "X-Limit-App-Reset",
	// "no sooner than 5 seconds"
	RetryAfter: 5 * time.Second,
})

// renderPushover writes the form fields of POST /1/messages.json, in alphabetical order.
func renderPushover(b []byte, e *Event, to *Target) ([]byte, error) {
	m, err := e.message()
	if err != nil {
		return nil, err
	}
	form := url.Values{
		"token": {to.Secrets["api_token"]}, "user": {to.Secrets["user_key"]}, "title": {cut(m.title, pushoverTitle)}, "message": {pushoverText(m.lines)},
	}
	for _, name := range []string{"sound", "priority", "device"} {
		if value := to.Settings[name]; value != "" {
			form.Set(name, value)
		}
	}
	if to.Settings["priority"] == pushoverEmergency {
		form.Set("retry", pushoverRetry)
		form.Set("expire", pushoverExpire)
	}
	if at := e.OccurredAt.Unix(); at > 0 {
		form.Set("timestamp", strconv.FormatInt(at, 10))
	}
	if m.link != "" && utf8.RuneCountInString(m.link) <= pushoverLink {
		form.Set("url", m.link)
	}
	return append(b, form.Encode()...), nil
}

func pushoverText(lines []line) string {
	texts := make([]string, len(lines))
	for i, l := range lines {
		texts[i] = l.label + ": " + l.value
	}
	return cut(strings.Join(texts, "\n"), pushoverMessage)
}

// saysStatusOne is Pushover's yes: {"status":1,…}.
func saysStatusOne(answer []byte) bool {
	isOne := false
	err := eachMember(answer, func(key, value []byte) error {
		isOne = isOne || string(key) == `"status"` && string(value) == "1"
		return nil
	})
	return err == nil && isOne
}

// A sound is what Pushover plays: how its apps call it, and its name in the API.
type sound struct{ label, name string }

// pushoverSounds are 24, of which Mute and None are one.
func pushoverSounds() []sound {
	return []sound{
		{"Pushover", "pushover"}, {"Bike", "bike"}, {"Bugle", "bugle"}, {"Cash Register", "cashregister"}, {"Classical", "classical"}, {"Cosmic", "cosmic"},
		{"Falling", "falling"}, {"Gamelan", "gamelan"}, {"Incoming", "incoming"}, {"Intermission", "intermission"}, {"Magic", "magic"}, {"Mechanical", "mechanical"},
		{"Piano Bar", "pianobar"}, {"Siren", "siren"}, {"Space Alarm", "spacealarm"}, {"Tug Boat", "tugboat"}, {"Alien Alarm", "alien"}, {"Climb", "climb"},
		{"Persistent", "persistent"}, {"Echo", "echo"}, {"Up Down", "updown"}, {"Vibrate", "vibrate"}, {"Mute", "none"}, {"None", "none"},
	}
}

// PushoverSound is the name in Pushover's API of a sound that is given by that name or as its apps call it, in any case.
func PushoverSound(given string) (name string, ok bool) {
	for _, s := range pushoverSounds() {
		if strings.EqualFold(given, s.label) || strings.EqualFold(given, s.name) {
			return s.name, true
		}
	}
	return "", false
}

// PushoverSounds are the names of all sounds, the default first.
func PushoverSounds() []string {
	var names []string
	for _, s := range pushoverSounds() {
		names = append(names, s.name)
	}
	return slices.Compact(names)
}
