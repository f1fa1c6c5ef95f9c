package httpapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mailhook/db"
	"mailhook/db/format"
)

type channelInput struct {
	Type    optional[string]            `json:"type,omitempty" enum:"web,pushover,slack,teams" doc:"Default: web. With another type nothing of the channel before it stays."`
	URL     optional[string]            `json:"url,omitempty" doc:"Of web, slack and teams, required: absolute, https. That of slack and teams is a secret: only scheme and host are answered."`
	Headers optional[map[string]string] `json:"headers,omitempty" writeOnly:"true" doc:"Of web: sent with every request. Never answered: they may carry credentials. PATCH replaces all of them; null removes them."`
	Auth    optional[authInput]         `json:"auth,omitempty" writeOnly:"true" doc:"Of web: the Authorization header of every request. Never answered. PATCH replaces it as a whole; null removes it."`

	UserKey  optional[string] `json:"user_key,omitempty" writeOnly:"true" doc:"Of pushover, required: the key of the user or group. Never answered. PATCH replaces it together with api_token."`
	APIToken optional[string] `json:"api_token,omitempty" writeOnly:"true" doc:"Of pushover, required: the token of the application. Never answered."`
	Sound    optional[string] `json:"sound,omitempty" doc:"Of pushover: a sound by its name in the apps or in Pushover's API. Default: pushover."`
	Priority optional[int]    `json:"priority,omitempty" minimum:"-2" maximum:"2" doc:"Of pushover. Default: 0. 2 is repeated each minute for an hour, until somebody acknowledges it."`
	Device   optional[string] `json:"device,omitempty" doc:"Of pushover: the devices, with commas. Default: all."`
}

// A Channel is where the requests of a subscription go.
type Channel struct {
	Type        string   `json:"type" enum:"web,pushover,slack,teams"`
	URL         string   `json:"url,omitempty" doc:"Not with pushover. Of slack and teams scheme and host, and … for the rest, which is a secret; given back so, it stays as it is."`
	HeaderNames []string `json:"header_names" nullable:"false" doc:"The names of the custom headers; their values are never answered."`
	AuthType    *string  `json:"auth_type" doc:"What the Authorization header is made of, basic or bearer; null: none. The credential is never answered."`
	Sound       string   `json:"sound,omitempty" doc:"Of pushover."`
	Priority    *int     `json:"priority,omitempty" doc:"Of pushover."`
	Device      string   `json:"device,omitempty" doc:"Of pushover, if not all."`
}

// The types of channels. Those of format.Web are customers' own endpoints.
const (
	channelPushover = "pushover"
	channelSlack    = "slack"
	channelTeams    = "teams"
)

func channelOf(row db.Subscription) Channel {
	channel := Channel{Type: row.ChannelType, URL: row.URL, HeaderNames: row.HeaderNames, AuthType: row.AuthType}
	if row.ChannelType == channelPushover {
		settings := channelSettings(&row)
		priority, _ := strconv.Atoi(settings["priority"])
		channel.URL, channel.Sound, channel.Priority, channel.Device = "", settings["sound"], &priority, settings["device"]
	}
	return channel
}

// channelSettings are what is stored, which only this file writes.
func channelSettings(row *db.Subscription) map[string]string {
	settings := map[string]string{}
	_ = json.Unmarshal(row.ChannelSettings, &settings)
	return settings
}

// applyChannel is apply for the channel. Another type is another channel, of which everything is said anew.
func (s *server) applyChannel(in optional[channelInput], to *db.Subscription, allowsHTTP bool) (credentials, []FieldError) {
	channel, before := in.value, to.ChannelType
	if in.null { // everything in it back to its default
		channel = channelInput{Type: optional[string]{set: true, null: true}}
	}
	to.ChannelType = channel.Type.pick(to.ChannelType, format.Web)
	sealed := credentials{}
	isNew := in.null || to.ChannelType != before || to.URL == ""
	if isNew && to.URL != "" { // it was there before
		sealed = credentials{db.SealedHeaders: nil, db.SealedAuth: nil, db.SealedChannel: nil}
		to.URL, to.HeaderNames, to.AuthType, to.ChannelSettings = "", []string{}, nil, []byte("{}")
	}
	var found []FieldError
	switch to.ChannelType {
	case channelPushover:
		found = s.applyPushover(channel, to, sealed, isNew)
	case channelSlack, channelTeams:
		found = s.applySecretURL(channel.URL, to, sealed, isNew, allowsHTTP)
	default:
		found = s.applyWeb(channel, to, sealed, allowsHTTP)
	}
	return sealed, append(found, checkChannelFields(channel, to.ChannelType)...)
}

// checkChannelFields refuses what belongs to another type of channel.
func checkChannelFields(in channelInput, channelType string) (found []FieldError) {
	for _, f := range []struct {
		name    string
		isGiven bool
		types   []string
	}{
		{"url", in.URL.isValue(), []string{format.Web, channelSlack, channelTeams}}, {"headers", in.Headers.isValue(), []string{format.Web}}, {"auth", in.Auth.isValue(), []string{format.Web}},
		{"user_key", in.UserKey.isValue(), []string{channelPushover}}, {"api_token", in.APIToken.isValue(), []string{channelPushover}},
		{"sound", in.Sound.isValue(), []string{channelPushover}}, {"priority", in.Priority.isValue(), []string{channelPushover}}, {"device", in.Device.isValue(), []string{channelPushover}},
	} {
		if f.isGiven && !slices.Contains(f.types, channelType) {
			found = append(found, FieldError{"channel." + f.name, "not_allowed", fmt.Sprintf("does not go with the type %s, only with %s: leave it out", channelType, strings.Join(f.types, ", "))})
		}
	}
	return found
}

func (s *server) applyWeb(in channelInput, to *db.Subscription, sealed credentials, allowsHTTP bool) (found []FieldError) {
	to.URL = in.URL.pick(to.URL, "")
	switch {
	case to.URL == "":
		found = append(found, FieldError{"channel.url", "required", "is required"})
	case in.URL.set:
		if err := s.config.CheckURL(to.URL, allowsHTTP); err != nil {
			found = append(found, FieldError{"channel.url", "invalid_url", err.Error()})
		}
	}
	found = append(found, applyHeaders(in.Headers, to, sealed)...)
	found = append(found, applyAuth(in.Auth, to, sealed)...)
	return append(found, checkOneAuthorization(in, to)...)
}

// masked is what stands for the secret part of a URL.
const masked = "/…"

// applySecretURL is for the incoming webhooks of chats, whose URL is all that they ask for: it is sealed as a credential, and
// what is stored openly is scheme and host. What GET answers may be given back: it changes nothing, and no mask is ever stored.
func (s *server) applySecretURL(in optional[string], to *db.Subscription, sealed credentials, isNew, allowsHTTP bool) []FieldError {
	switch {
	case in.null, isNew && !in.set, in.set && in.value == "":
		return []FieldError{{"channel.url", "required", "is required: the URL of the incoming webhook"}}
	case !in.set, in.value == to.URL:
		return nil
	case strings.Contains(in.value, "…"):
		return []FieldError{{"channel.url", "invalid_url", "is a mask, not the whole URL: give that, or leave it out to keep the one that is stored"}}
	}
	if err := s.config.CheckURL(in.value, allowsHTTP); err != nil {
		return []FieldError{{"channel.url", "invalid_url", err.Error()}}
	}
	u, err := url.Parse(in.value)
	if err != nil {
		return []FieldError{{"channel.url", "invalid_url", "must be an absolute URL"}} // CheckURL has refused it
	}
	to.URL = u.Scheme + "://" + u.Host + masked
	return seal(sealed, map[string]string{"url": in.value})
}

func seal(sealed credentials, secrets map[string]string) []FieldError {
	text, err := json.Marshal(secrets)
	if err != nil {
		return []FieldError{{"channel", "invalid", "cannot be stored"}} // strings: it does not happen
	}
	sealed[db.SealedChannel] = text
	return nil
}

// applyPushover stores sound, priority and devices openly, and the two keys sealed, one not without the other. The URL is that of
// the operator, at each change.
func (s *server) applyPushover(in channelInput, to *db.Subscription, sealed credentials, isNew bool) (found []FieldError) {
	to.URL = s.config.PushoverURL
	if isNew || in.UserKey.set || in.APIToken.set {
		found = append(found, checkPushoverKey("user_key", in.UserKey)...)
		found = append(found, checkPushoverKey("api_token", in.APIToken)...)
		found = append(found, seal(sealed, map[string]string{"user_key": in.UserKey.value, "api_token": in.APIToken.value})...)
	}
	settings := channelSettings(to)
	if isNew || in.Sound.set {
		sound, ok := format.PushoverSound(in.Sound.pick("pushover", "pushover"))
		if !ok {
			found = append(found, FieldError{"channel.sound", "not_allowed", "must be one of " + strings.Join(format.PushoverSounds(), ", ") + ", or what Pushover's apps call it (Piano Bar)"})
		}
		settings["sound"] = sound
	}
	if isNew || in.Priority.set {
		settings["priority"] = strconv.Itoa(in.Priority.pick(0, 0))
	}
	if in.Device.set {
		settings["device"] = in.Device.value
		if in.Device.value != "" && !pushoverDevices().MatchString(in.Device.value) {
			found = append(found, FieldError{"channel.device", "invalid", "must be names of devices with commas between them, each of at most 25 letters, digits, _ and -"})
		}
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return append(found, FieldError{"channel", "invalid", "cannot be stored"}) // strings: it does not happen
	}
	to.ChannelSettings = text
	return found
}

func pushoverDevices() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_-]{1,25}(,[A-Za-z0-9_-]{1,25}){0,9}$`)
}

// checkPushoverKey says what is wrong with a key of Pushover. The message never holds any of it.
func checkPushoverKey(name string, in optional[string]) []FieldError {
	isKey := len(in.value) == 30 && !strings.ContainsFunc(in.value, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
	switch {
	case !in.isValue():
		return []FieldError{{"channel." + name, "required", "is required: user_key and api_token are set together"}}
	case !isKey:
		return []FieldError{{"channel." + name, "invalid_credentials", "must be 30 letters and digits, as Pushover shows it"}}
	}
	return nil
}

// applyFormat takes the formats of the channel. Another channel has another default.
func applyFormat(in optional[formatName], to *db.Subscription, isOtherChannel bool) []FieldError {
	byDefault := to.ChannelType
	if byDefault == format.Web {
		byDefault = defaultSubscription().Format
	}
	if isOtherChannel {
		to.Format = byDefault
	}
	to.Format = string(in.pick(formatName(to.Format), formatName(byDefault)))
	names := format.Names(to.ChannelType)
	if in.isValue() && !slices.Contains(names, to.Format) {
		return []FieldError{{"format", "not_allowed", fmt.Sprintf("must be one of %s with the channel %s", strings.Join(names, ", "), to.ChannelType)}}
	}
	return nil
}
