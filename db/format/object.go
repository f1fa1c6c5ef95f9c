package format

import (
	"strconv"
	"strings"
	"time"
)

// An object is a JSON object that is being appended to b. Names are ours: they need no escapes.
type object struct {
	b     []byte
	begun int
}

func newObject(b []byte) *object {
	b = append(b, '{')
	return &object{b, len(b)}
}

func (o *object) name(name string) {
	if len(o.b) > o.begun {
		o.b = append(o.b, ',')
	}
	o.b = append(append(append(o.b, '"'), name...), `":`...)
}

// string writes a member, "" too.
func (o *object) string(name, text string) {
	o.name(name)
	o.b = appendString(o.b, text)
}

// text writes a value as a string, byte for byte where it is one; nothing where it is absent.
func (o *object) text(name string, v raw) {
	if v != nil {
		o.textOrEmpty(name, v)
	}
}

func (o *object) textOrEmpty(name string, v raw) {
	if len(v) > 0 && v[0] == '"' {
		o.raw(name, v)
		return
	}
	o.string(name, v.text())
}

// id writes an id as a number where it has at most so many digits, else as a string; nothing where it is absent.
func (o *object) id(name string, v raw, digits int) {
	if number, ok := v.number(digits); ok {
		o.raw(name, raw(number))
		return
	}
	o.text(name, v)
}

func (o *object) idOrZero(name string, v raw, digits int) {
	if v == nil {
		v = raw("0")
	}
	o.id(name, v, digits)
}

// raw writes a value byte for byte; nothing where it is absent.
func (o *object) raw(name string, v raw) {
	if v != nil {
		o.name(name)
		o.b = append(o.b, v...)
	}
}

func (o *object) bool(name string, value bool) {
	o.name(name)
	o.b = strconv.AppendBool(o.b, value)
}

// unix writes a time in whole seconds.
func (o *object) unix(name string, at time.Time) {
	o.name(name)
	o.b = strconv.AppendInt(o.b, at.Unix(), 10)
}

// time writes a time as RFC 3339 in UTC, with the layout's decimals.
func (o *object) time(name string, at time.Time, layout string) {
	o.name(name)
	o.b = append(at.UTC().AppendFormat(append(o.b, '"'), layout), '"')
}

// end writes what another platform's shape has no place for: a test send says so, and an event that the platform has no word
// for, or that is about no mail, carries its data as format standard has them.
func (o *object) end(e *Event, isWord bool) ([]byte, error) {
	if e.IsTest {
		o.bool("test", true)
	}
	var err error
	if !isWord || !strings.HasPrefix(e.Type, "email.") {
		o.name("data")
		o.b, err = AppendData(o.b, e)
	}
	return append(o.b, '}'), err
}
