package roundtrip

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atc0005/go-teams-notify/v2/adaptivecard"
	"github.com/gregdel/pushover"
	"github.com/slack-go/slack"

	"mailhook/db/dbtest"
	"mailhook/db/format"
)

const (
	userKey  = "uQiRzpo4DXghDmr9QzzfQu27cmVRsG"
	apiToken = "azGDORePK8gMaC0QOYAMyEEuzJnyUi"
)

// A chat is the service behind a channel: read decodes as that service's published library does, and answers what the message says.
type chat struct {
	channel map[string]any
	status  int // of a message that is taken
	answer  string
	read    func(t *testing.T, contentType string, body []byte) (title string, err error)

	mu     sync.Mutex
	bodies []string
	types  map[string]bool // content types
}

func (c *chat) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bodies = append(c.bodies, string(body))
	c.types[r.Header.Get("Content-Type")] = true
	w.WriteHeader(c.status)
	fmt.Fprint(w, c.answer)
}

func (c *chat) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.bodies)
}

func chats(base string) map[string]*chat {
	return map[string]*chat{
		"slack":    {channel: map[string]any{"type": "slack", "url": base + "/slack/T/B/X"}, status: 200, answer: "ok", read: readSlack},
		"teams":    {channel: map[string]any{"type": "teams", "url": base + "/teams/workflows/1"}, status: 202, read: readTeams},
		"pushover": {channel: map[string]any{"type": "pushover", "user_key": userKey, "api_token": apiToken, "sound": "Tug Boat", "priority": 2, "device": "phone"}, status: 200, answer: `{"status":1,"request":"1"}`, read: readPushover},
	}
}

// TestChannels: a message of every type of the catalogue comes to each channel's service, whose library can read it.
func TestChannels(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	mux := http.NewServeMux()
	services := httptest.NewServer(mux)
	t.Cleanup(services.Close)
	w := workerConfig(t, d)
	api := serveAPI(t, d, w, services.URL+"/pushover")
	all := chats(services.URL)
	for name, c := range all {
		c.types = map[string]bool{}
		mux.Handle("/"+name, c)
		mux.Handle("/"+name+"/", c)
		var created struct{ ID string }
		api(map[string]any{"channel": c.channel, "event_types": []string{"*", "subscription"}}, &created)
	}
	run(t, w)
	ids := emitAll(t, d)
	for name, c := range all {
		dbtest.Eventually(t, fmt.Sprintf("%d messages at %s", len(ids), name), func() bool { return c.count() == len(ids) })
	}
	dbtest.Eventually(t, "all are delivered", func() bool {
		return dbtest.QueryOne[bool](t, d, "SELECT count(*) = $1 AND bool_and(outcome = 'ok') FROM mailhook.attempts", len(ids)*len(all))
	})
	for name, c := range all {
		c.judge(t, name)
	}
}

func (c *chat) judge(t *testing.T, name string) {
	t.Helper()
	if len(c.types) != 1 {
		t.Errorf("%s: content types %v", name, c.types)
	}
	contentType := slices.Collect(maps.Keys(c.types))[0]
	for _, body := range c.bodies {
		title, err := c.read(t, contentType, []byte(body))
		if err != nil || !strings.Contains(title, " ") {
			t.Errorf("%s: %q, %v: %s", name, title, err, body)
		}
	}
	if !slices.ContainsFunc(c.bodies, func(body string) bool {
		title, _ := c.read(t, contentType, []byte(body))
		return strings.HasPrefix(title, recipient+" clicked https://example.com/offer in ")
	}) {
		t.Errorf("%s has no click among %s", name, c.bodies)
	}
}

func readSlack(_ *testing.T, contentType string, body []byte) (string, error) {
	var message slack.WebhookMessage
	if err := strict(body, &message); err != nil || contentType != "application/json" || message.Blocks == nil || len(message.Blocks.BlockSet) != 2 {
		return "", errors.Join(err, errors.New("no two blocks"))
	}
	header, isHeader := message.Blocks.BlockSet[0].(*slack.HeaderBlock)
	section, isSection := message.Blocks.BlockSet[1].(*slack.SectionBlock)
	if !isHeader || !isSection || len([]rune(header.Text.Text)) > 150 || message.Text == "" {
		return "", errors.New("not a header and a section")
	}
	return header.Text.Text, errors.Join(header.Text.Validate(), section.Text.Validate())
}

// readTeams has the library check the card; it does not know the inlines of a RichTextBlock, so those are read by their schema.
func readTeams(_ *testing.T, contentType string, body []byte) (string, error) {
	var message adaptivecard.Message
	if err := json.Unmarshal(body, &message); err != nil || contentType != "application/json" || len(body) > 28<<10 {
		return "", errors.Join(err, fmt.Errorf("%d bytes", len(body)))
	}
	var runs struct {
		Attachments []struct {
			Content struct {
				Body []struct {
					Type    string
					Inlines []struct{ Type, Text, Size, Weight string }
				}
			}
		}
	}
	if err := json.Unmarshal(body, &runs); err != nil || len(runs.Attachments) != 1 {
		return "", errors.Join(err, errors.New("not one attachment"))
	}
	for _, block := range runs.Attachments[0].Content.Body {
		for _, inline := range block.Inlines {
			element := adaptivecard.Element{Type: inline.Type, Size: inline.Size, Weight: inline.Weight}
			if err := element.Validate(); err != nil || inline.Type != adaptivecard.TypeElementTextRun || inline.Text == "" {
				return "", errors.Join(err, fmt.Errorf("a run %+v", inline))
			}
		}
	}
	return runs.Attachments[0].Content.Body[0].Inlines[0].Text, message.Validate()
}

// readPushover gives what came to the library, which checks it as it would before it sends: it must send the same.
func readPushover(t *testing.T, contentType string, body []byte) (string, error) {
	t.Helper()
	form, err := url.ParseQuery(string(body))
	if err != nil || contentType != "application/x-www-form-urlencoded" {
		return "", errors.Join(err, errors.New("not a form"))
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(form.Get(name), 10, 64)
		return n
	}
	message := &pushover.Message{
		Message: form.Get("message"), Title: form.Get("title"), Priority: int(number("priority")), URL: form.Get("url"), Timestamp: number("timestamp"),
		Retry: time.Duration(number("retry")) * time.Second, Expire: time.Duration(number("expire")) * time.Second, DeviceName: form.Get("device"), Sound: form.Get("sound"),
	}
	var sent []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent, _ = io.ReadAll(r.Body)
		for _, name := range []string{"X-Limit-App-Limit", "X-Limit-App-Remaining", "X-Limit-App-Reset"} {
			w.Header().Set(name, "1")
		}
		fmt.Fprint(w, `{"status":1,"request":"1"}`)
	}))
	defer server.Close()
	pushover.APIEndpoint = server.URL
	_, err = pushover.New(form.Get("token")).SendMessage(message, pushover.NewRecipient(form.Get("user")))
	if !bytes.Equal(sent, body) {
		err = errors.Join(err, fmt.Errorf("the library sends %s", sent))
	}
	return message.Title, err
}

// The sounds are those that the library knows.
func TestPushoverSounds(t *testing.T) {
	t.Parallel()
	known := []string{
		pushover.SoundPushover, pushover.SoundBike, pushover.SoundBugle, pushover.SoundCashRegister, pushover.SoundClassical, pushover.SoundCosmic, pushover.SoundFalling,
		pushover.SoundGamelan, pushover.SoundIncoming, pushover.SoundIntermission, pushover.SoundMagic, pushover.SoundMechanical, pushover.SoundPianobar, pushover.SoundSiren,
		pushover.SoundSpaceAlarm, pushover.SoundTugBoat, pushover.SoundAlien, pushover.SoundClimb, pushover.SoundPersistent, pushover.SoundEcho, pushover.SoundUpDown,
		pushover.SoundVibrate, pushover.SoundNone,
	}
	if got := format.PushoverSounds(); !slices.Equal(got, known) {
		t.Errorf("%v, want %v", got, known)
	}
}
