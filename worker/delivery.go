package worker

import (
	"sync"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
)

// An event is what a request tells about; its deliveries share it.
type event struct {
	id           db.EventID
	eventType    string
	occurredAt   time.Time
	recipient    string
	messageID    string
	campaignID   string
	sendingDom   string
	sendingNode  string
	bridge       string
	dedicatedIP  string
	data         []byte // a JSON object
	isTest       bool
	holders      int // deliveries in memory; guarded by leases.mu
	renderOnce   sync.Once
	text         string // the public id
	rendered     []byte
	renderFailed error
}

// publicID is the id that receivers see.
func (e *event) publicID() string {
	e.render()
	return e.text
}

// body is the request body in format standard. It is rendered once for all deliveries of the event, and is the same
// over retries.
func (e *event) body() ([]byte, error) {
	e.render()
	return e.rendered, e.renderFailed
}

func (e *event) render() {
	e.renderOnce.Do(func() {
		e.text = e.id.String()
		e.rendered, e.renderFailed = renderStandard(e)
	})
}

// size is what the event takes in memory, about: its data, and the body made of it.
func (e *event) size() int64 { return int64(2*len(e.data)) + 512 }

// A delivery is one leased row of deliveries.
type delivery struct {
	id             uuid.UUID
	leaseID        uuid.UUID
	subscriptionID uuid.UUID
	attempt        int  // made before this one
	claimed        bool // by claim, not by dispatch
	event          *event
}
