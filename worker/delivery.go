package worker

import (
	"sync"
	"time"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/format"
)

// An event is what a request tells about; its deliveries share it, and its bodies.
type event struct {
	format.Event
	id      db.EventID
	urgent  bool // of a type that goes by the urgent lane
	holders int  // deliveries in memory; guarded by leases.mu

	mu     sync.Mutex
	bodies []body // by format; few events go out in more than one
}

// A body is an event in one format.
type body struct {
	format string
	text   []byte
	err    error
}

// publicID is the id that receivers see.
func (e *event) publicID() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ID == "" {
		e.ID = e.id.String()
	}
	return e.ID
}

// body is the request body for a subscription. It is rendered once for all deliveries of the event, unless it is made for the
// subscription alone, and is the same over retries.
func (e *event) body(f format.Format, to *format.Target) ([]byte, error) {
	e.publicID()
	if f.Personal {
		return f.One(&e.Event, to)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.bodies {
		if b.format == f.Name {
			return b.text, b.err
		}
	}
	text, err := f.One(&e.Event, to)
	e.bodies = append(e.bodies, body{f.Name, text, err})
	return text, err
}

// empty lets go of what a request needed.
func (e *event) empty() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Data, e.bodies = nil, nil
}

// size is what the event takes in memory, about: its data, and the body made of it.
func (e *event) size() int64 { return int64(2*len(e.Data)) + 512 }

// A delivery is one leased row of deliveries.
type delivery struct {
	id             uuid.UUID
	leaseID        uuid.UUID
	subscriptionID uuid.UUID
	attempt        int   // made before this one
	claimed        bool  // by claim, not by dispatch
	urgent         bool  // leased by the urgent lane; an ordinary dispatch may bring urgent events, too
	orderKey       int64 // 0: in no order
	event          *event

	// requests is how many with batches of its subscription may be under way in this process; 0: it gets no batches.
	requests int
	batchID  uuid.UUID // to be sent with the others of this one; the zero id: with any
	isProbe  bool      // of an open circuit: no others will come
	isWell   bool      // its endpoint has taken something since it failed, or was asked for nothing else
	since    time.Time // it waits in this process
}

func (d *delivery) isBatched() bool { return d.requests > 0 }
