package worker

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"slices"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/format"
)

// mostAnswered is how much of the answer to a batch is read for the ids of events that failed.
const mostAnswered = 128 << 10

// hasBatches says whether what the subscription gets is in arrays. A test send may be in a format that has none.
func (s *subscription) hasBatches() bool {
	return s.batch != nil && s.format.Arrays != format.NoArrays
}

// An array is the body of a batch: the events of its deliveries, in the order of their ids.
type array struct {
	to         *subscription
	deliveries []*delivery
	text       []byte
	ends       []int // of each event in text
}

// array renders as many of the deliveries as fit into a body. The events that cannot be rendered are left out of it and
// answered as broken, and those that did not fit as the rest.
func (s *subscription) array(deliveries []*delivery) (a *array, broken, rest []*delivery) {
	a = &array{to: s, deliveries: make([]*delivery, 0, len(deliveries)), ends: make([]int, 0, len(deliveries))}
	size := 2
	for _, d := range deliveries {
		size += bodySize(d) + 1
	}
	a.text = append(make([]byte, 0, min(size, 2*batchBodyBytes)), '[')
	for i, d := range deliveries {
		before := len(a.text)
		if err := a.render(d); err != nil {
			a.text = a.text[:before]
			broken = append(broken, d)
			continue
		}
		if len(a.text)+1 > batchBodyBytes && len(a.deliveries) > 0 {
			a.text, rest = a.text[:before], deliveries[i:]
			break
		}
		a.deliveries, a.ends = append(a.deliveries, d), append(a.ends, len(a.text))
	}
	a.text = append(a.text, ']')
	return a, broken, rest
}

func (a *array) render(d *delivery) (err error) {
	if a.to.format.Render == nil || a.to.format.Arrays == format.NoArrays {
		return errNoFormat
	}
	if len(a.deliveries) > 0 {
		a.text = append(a.text, ',')
	}
	d.event.publicID()
	a.text, err = a.to.format.Render(a.text, &d.event.Event, a.to.target)
	return err
}

// A part is some of an array, one after the other: from is in it, to is not.
type part struct{ from, to int }

func (p part) len() int { return p.to - p.from }

// cut makes n parts of it, or as many as it has events.
func (p part) cut(n int) []part {
	n = min(n, p.len())
	parts := make([]part, n)
	for i := range parts {
		parts[i] = part{p.from + p.len()*i/n, p.from + p.len()*(i+1)/n}
	}
	return parts
}

func (a *array) whole() part { return part{0, len(a.deliveries)} }

// message is the request about a part.
func (a *array) message(p part) message {
	m := message{
		id: db.FormatID(db.BatchPrefix, a.id(p)), contentType: cmp.Or(a.to.format.ArrayContentType, a.to.format.ContentType),
		body: a.text, mostRead: mostAnswered,
	}
	if p != a.whole() {
		begin := 1
		if p.from > 0 {
			begin = a.ends[p.from-1] + 1
		}
		text := a.text[begin:a.ends[p.to-1]]
		m.body = append(append(append(make([]byte, 0, len(text)+2), '['), text...), ']')
	}
	return m
}

// recipients are those of a part, as they are in the body. What is kept of its answer is kept with all of its deliveries, and an erasure
// of one person leaves that of the others.
func (a *array) recipients(p part) (all [][]byte) {
	for _, d := range a.deliveries[p.from:p.to] {
		if len(d.event.Recipient) >= shortestHidden {
			all = append(all, []byte(d.event.Recipient))
		}
	}
	return all
}

func (a *array) id(p part) uuid.UUID { return batchID(a.deliveries[p.from:p.to]) }

// batchID is the identity of a composition: the same events for the same subscription have the same, in each attempt and
// in each process. It is a UUIDv7 of the time of its oldest event; the rest is a hash.
func batchID(deliveries []*delivery) (id uuid.UUID) {
	hash := sha256.New()
	hash.Write(deliveries[0].subscriptionID[:])
	oldest := deliveries[0].event.id.InsertedAt
	for _, d := range deliveries {
		hash.Write([]byte(d.event.publicID()))
		if d.event.id.InsertedAt.Before(oldest) {
			oldest = d.event.id.InsertedAt
		}
	}
	copy(id[:], hash.Sum(nil))
	millis := max(0, oldest.UnixMilli())
	for i := 5; i >= 0; i-- {
		id[i] = byte(millis)
		millis >>= 8
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// byEvent orders deliveries by the ids of their events.
func byEvent(a, b *delivery) int {
	return cmp.Or(a.event.id.InsertedAt.Compare(b.event.id.InsertedAt), cmp.Compare(a.event.id.ID, b.event.id.ID))
}

// A failures is what the answer to a batch names as failed.
type failures struct {
	ids map[string]bool
	all bool // the list has no end: what else is on it is not known
}

func (f failures) has(d *delivery) bool { return f.all || len(f.ids) > 0 && f.ids[d.event.publicID()] }

// failuresIn reads {"failed": ["evt_…"]} from the answer to a batch, as far as it is JSON; any other answer names none.
func failuresIn(answer []byte) (f failures) {
	if !bytes.Contains(answer, []byte(`"failed"`)) {
		return f
	}
	decoder := json.NewDecoder(bytes.NewReader(answer))
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return f
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return f
		}
		var value json.RawMessage
		if name != "failed" {
			if decoder.Decode(&value) != nil {
				return f
			}
			continue
		}
		f = failures{ids: map[string]bool{}}
		if begin, err := decoder.Token(); err != nil || begin != json.Delim('[') {
			return f
		}
		for decoder.More() {
			var id any
			if decoder.Decode(&id) != nil {
				break
			}
			if id, ok := id.(string); ok {
				f.ids[id] = true
			}
		}
		_, err = decoder.Token()
		f.all = err != nil
		return f
	}
	return f
}

// takeLongest takes the longest of some parts out of them.
func takeLongest(parts []part) (part, []part) {
	most := 0
	for i, p := range parts {
		if p.len() > parts[most].len() {
			most = i
		}
	}
	p := parts[most]
	return p, slices.Delete(parts, most, most+1)
}
