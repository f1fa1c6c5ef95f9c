package roundtrip

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/sendgrid/sendgrid-go/helpers/eventwebhook"
)

// What a receiver reads out of one event.
type reading struct{ event, email, messageID string }

// A platform is a receiver written for it: the words that it documents, and how it reads a request. Where it publishes a
// library that verifies or parses, that is what reads; where not, a strict decoder does, of a struct as it is documented.
type platform struct {
	words []string
	read  func(header http.Header, body []byte, publicKey string) ([]reading, error)
}

func platforms() map[string]platform {
	return map[string]platform{
		"standard": {nil, readStandard},
		"mumara": {[]string{
			"received", "delivered", "bounced", "rejected", "delayed", "newsletter_opened", "newsletter_clicked", "transactional_opened", "transactional_clicked",
			"complaints", "opened", "clicked",
		}, readMumara},
		"mumara-one":     {[]string{"delivery", "open", "click", "bounce", "complaint", "unsubscribe", "form_submit", "trigger_action", "workflow_step"}, readMumaraOne},
		"mumara-classic": {[]string{"sent", "opened", "clicked", "bounced", "complained", "unsubscribed", "delivered", "soft_bounced", "hard_bounced"}, readMumaraClassic},
		"mailjet":        {[]string{"sent", "open", "click", "bounce", "blocked", "spam", "unsub"}, readMailjet},
		"sendgrid":       {[]string{"processed", "deferred", "delivered", "bounce", "dropped", "open", "click", "spamreport", "unsubscribe"}, readSendGrid},
		"cloudevents":    {nil, readCloudEvents},
		"xml":            {nil, readXML},
	}
}

// strict decodes one JSON value, and refuses what the struct has no field for.
func strict(body []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("there is more after the body")
	}
	return nil
}

func readStandard(_ http.Header, body []byte, _ string) ([]reading, error) {
	var events []struct {
		ID        string    `json:"id"`
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      struct {
			Recipient string `json:"recipient"`
			MessageID string `json:"message_id"`
		} `json:"data"`
	}
	if !bytes.HasPrefix(body, []byte("[")) {
		body = slices.Concat([]byte("["), body, []byte("]"))
	}
	err := json.Unmarshal(body, &events)
	var readings []reading
	for _, e := range events {
		readings = append(readings, reading{e.Type, e.Data.Recipient, e.Data.MessageID})
	}
	return readings, err
}

// campaignsEvent is the flat payload of Mumara Campaigns; data is there with events that the platform does not have.
type campaignsEvent struct {
	Event         string          `json:"event"`
	Timestamp     time.Time       `json:"timestamp"`
	Email         string          `json:"email"`
	CampaignID    int64           `json:"campaign_id"`
	BroadcastName string          `json:"broadcast_name"`
	SendingDomain string          `json:"sending_domain"`
	SendingNode   string          `json:"sending_node"`
	MessageID     string          `json:"message_id"`
	BounceType    string          `json:"bounce_type"`
	ComplaintType string          `json:"complaint_type"`
	Data          json.RawMessage `json:"data"`
}

func readMumara(_ http.Header, body []byte, _ string) ([]reading, error) {
	var e struct {
		campaignsEvent
		LinkURL string `json:"link_url"`
	}
	err := strict(body, &e)
	if isClick := e.Event == "clicked" || e.Event == "newsletter_clicked" || e.Event == "transactional_clicked"; isClick != (e.LinkURL != "") {
		return nil, errors.New("link_url is of clicks")
	}
	return []reading{{e.Event, e.Email, e.MessageID}}, errors.Join(err, e.check("bounced", "complaints"))
}

func readMumaraOne(_ http.Header, body []byte, _ string) ([]reading, error) {
	var e struct {
		campaignsEvent
		URL string `json:"url"`
	}
	err := strict(body, &e)
	if (e.Event == "click") != (e.URL != "") {
		return nil, errors.New("url is of clicks")
	}
	return []reading{{e.Event, e.Email, e.MessageID}}, errors.Join(err, e.check("bounce", "complaint"))
}

func (e *campaignsEvent) check(bounce, complaint string) error {
	if e.Event == "" || e.Timestamp.IsZero() || e.Event != bounce && e.BounceType != "" || (e.Event == complaint) != (e.ComplaintType != "") {
		return fmt.Errorf("not an event of Mumara: %+v", *e)
	}
	return nil
}

func readMumaraClassic(_ http.Header, body []byte, _ string) ([]reading, error) {
	var e struct {
		Event           string          `json:"event"`
		Timestamp       int64           `json:"timestamp"`
		CampaignID      string          `json:"campaign_id"`
		ListID          string          `json:"list_id"`
		SubscriberEmail string          `json:"subscriber_email"`
		SubscriberID    string          `json:"subscriber_id"`
		LinkURL         string          `json:"link_url"`
		IPAddress       string          `json:"ip_address"`
		UserAgent       string          `json:"user_agent"`
		MetaData        map[string]any  `json:"meta_data"`
		Data            json.RawMessage `json:"data"`
	}
	err := strict(body, &e)
	if e.Timestamp == 0 || e.MetaData == nil || (e.Event == "clicked") != (e.LinkURL != "" && e.IPAddress != "" && e.UserAgent != "") {
		err = errors.Join(err, fmt.Errorf("not an event of Mumara: %+v", e))
	}
	return []reading{{e.Event, e.SubscriberEmail, ""}}, err
}

// mailjetEvent has the fields of Mailjet's Event API, of all its events. Neither mailjet-apiv3-go nor node-mailjet parses
// events.
type mailjetEvent struct {
	Event          string          `json:"event"`
	Time           int64           `json:"time"`
	MessageID      int64           `json:"MessageID"`
	Email          string          `json:"email"`
	CampaignID     int64           `json:"mj_campaign_id"`
	ContactID      int64           `json:"mj_contact_id"`
	CustomCampaign *string         `json:"customcampaign"`
	CustomID       *string         `json:"CustomID"`
	Payload        *string         `json:"Payload"`
	OldMessageID   string          `json:"mj_message_id"`
	SMTPReply      *string         `json:"smtp_reply"`
	URL            string          `json:"url"`
	IP             *string         `json:"ip"`
	Geo            *string         `json:"geo"`
	Agent          *string         `json:"agent"`
	Blocked        *bool           `json:"blocked"`
	HardBounce     *bool           `json:"hard_bounce"`
	ErrorRelatedTo string          `json:"error_related_to"`
	Error          string          `json:"error"`
	Comment        string          `json:"comment"`
	Source         string          `json:"source"`
	ListID         int64           `json:"mj_list_id"`
	Data           json.RawMessage `json:"data"`
}

// mailjetErrors are the pairs that Mailjet documents.
func mailjetErrors() map[string][]string {
	return map[string][]string{
		"recipient": {"user unknown", "mailbox inactive", "quota exceeded", "blacklisted", "spam reporter"},
		"domain":    {"invalid domain", "no mail host", "relay/access denied", "greylisted", "typofix"},
		"spam":      {"sender blocked", "content blocked", "policy issue"},
		"system":    {"system issue", "protocol issue", "connection issue"},
		"mailjet":   {"preblocked", "duplicate in campaign"},
	}
}

// readMailjet takes one object (version 1) or an array (version 2).
func readMailjet(_ http.Header, body []byte, _ string) (readings []reading, err error) {
	list := []json.RawMessage{body}
	if body[0] == '[' {
		err = json.Unmarshal(body, &list)
	}
	for _, text := range list {
		var e mailjetEvent
		if err = errors.Join(err, strict(text, &e)); err != nil {
			return nil, err
		}
		failed := e.Event == "bounce" || e.Event == "blocked"
		acted := e.Event == "open" || e.Event == "click" || e.Event == "unsub"
		switch {
		case e.Time == 0, e.CustomCampaign == nil, e.CustomID == nil, e.Payload == nil:
			err = errors.New("lacks what every event has")
		case failed != slices.Contains(mailjetErrors()[e.ErrorRelatedTo], e.Error), failed != (e.Blocked != nil && e.HardBounce != nil):
			err = errors.New("an error that Mailjet does not have")
		case acted != (e.IP != nil && e.Geo != nil && e.Agent != nil), (e.Event == "click") != (e.URL != ""), (e.Event == "spam") != (e.Source != ""):
			err = errors.New("fields of another event")
		case (e.Event == "unsub") != (e.ListID != 0), (e.Event == "sent") != (e.SMTPReply != nil && e.OldMessageID == fmt.Sprint(e.MessageID)):
			err = errors.New("fields of another event")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, text)
		}
		readings = append(readings, reading{e.Event, e.Email, fmt.Sprint(e.MessageID)})
	}
	return readings, nil
}

// sendGridEvent has the fields of SendGrid's Event Webhook, of all its events, and the unique arguments of our samples.
type sendGridEvent struct {
	Email        string          `json:"email"`
	Timestamp    int64           `json:"timestamp"`
	Event        string          `json:"event"`
	EventID      string          `json:"sg_event_id"`
	MessageID    string          `json:"sg_message_id"`
	SMTPID       string          `json:"smtp-id"`
	Category     []string        `json:"category"`
	CampaignID   int64           `json:"marketing_campaign_id"`
	CampaignName string          `json:"marketing_campaign_name"`
	URL          string          `json:"url"`
	IP           string          `json:"ip"`
	UserAgent    string          `json:"useragent"`
	Reason       string          `json:"reason"`
	Status       string          `json:"status"`
	Response     string          `json:"response"`
	Attempt      string          `json:"attempt"`
	Type         string          `json:"type"`
	Plan         string          `json:"plan"`
	Order        string          `json:"order"`
	Data         json.RawMessage `json:"data"`
}

// readSendGrid verifies by SendGrid's own library, with the key that the API shows.
func readSendGrid(header http.Header, body []byte, publicKey string) (readings []reading, err error) {
	key, err := eventwebhook.ConvertPublicKeyBase64ToECDSA(publicKey)
	if err != nil {
		return nil, err
	}
	signature, at := header.Get(eventwebhook.VerificationHTTPHeader), header.Get(eventwebhook.TimestampHTTPHeader)
	if ok, err := eventwebhook.VerifySignature(key, body, signature, at); err != nil || !ok {
		return nil, fmt.Errorf("the signature does not verify: %w", err)
	}
	if ok, err := eventwebhook.VerifySignature(key, append(body[:len(body):len(body)], ' '), signature, at); err != nil || ok {
		return nil, fmt.Errorf("the signature verifies another body: %w", err)
	}
	var list []json.RawMessage
	if err := strict(body, &list); err != nil {
		return nil, err
	}
	for _, text := range list {
		var e sendGridEvent
		if err := strict(text, &e); err != nil {
			return nil, err
		}
		isClick, isBounce := e.Event == "click", e.Event == "bounce"
		if e.Timestamp == 0 || e.EventID == "" || isClick != (e.URL != "") || isBounce != (e.Type == "bounce" || e.Type == "blocked") || isBounce && e.Reason == "" {
			return nil, fmt.Errorf("not an event of SendGrid: %s", text)
		}
		readings = append(readings, reading{e.Event, e.Email, e.MessageID})
	}
	return readings, nil
}

// readCloudEvents parses and validates by the SDK of the specification.
func readCloudEvents(header http.Header, body []byte, _ string) (readings []reading, err error) {
	request, err := http.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header = header
	var events []cloudevents.Event
	if header.Get("Content-Type") == "application/cloudevents-batch+json" {
		events, err = cloudevents.NewEventsFromHTTPRequest(request)
	} else {
		var one *cloudevents.Event
		if one, err = cloudevents.NewEventFromHTTPRequest(request); err == nil {
			events = append(events, *one)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		var data struct {
			Recipient string `json:"recipient"`
			MessageID string `json:"message_id"`
		}
		if err := errors.Join(e.Validate(), e.DataAs(&data)); err != nil {
			return nil, err
		}
		if e.SpecVersion() != "1.0" || e.Source() != "/mailhook" || e.Time().IsZero() || e.DataContentType() != "application/json" || e.Subject() != data.MessageID {
			return nil, fmt.Errorf("not as documented: %s", e)
		}
		readings = append(readings, reading{e.Type(), data.Recipient, data.MessageID})
	}
	return readings, nil
}

func readXML(header http.Header, body []byte, _ string) ([]reading, error) {
	var e struct {
		XMLName   xml.Name  `xml:"event"`
		ID        string    `xml:"id,attr"`
		Type      string    `xml:"event_type"`
		Timestamp time.Time `xml:"timestamp"`
		Recipient string    `xml:"recipient_email"`
		MessageID string    `xml:"message_id"`
		Data      *struct{} `xml:"data"`
	}
	err := xml.Unmarshal(body, &e)
	if header.Get("Content-Type") != "application/xml" || e.ID != header.Get("webhook-id") || e.Timestamp.IsZero() || e.Data == nil {
		err = errors.Join(err, fmt.Errorf("not as documented: %+v", e))
	}
	return []reading{{e.Type, e.Recipient, e.MessageID}}, err
}
