package db

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// An EventID is the identity of an event as the host's commit fixed it. Its text, evt_ and 40 hexadecimal
// digits, is the webhook-id of every request about the event; mailhook.event_id builds the same in SQL.
type EventID struct {
	InsertedAt   time.Time // microseconds
	ID           int64
	Installation string // eight hexadecimal digits
}

// String is the public form: evt_, inserted_at in microseconds, the outbox id, the installation code.
func (e EventID) String() string {
	var key [16]byte
	binary.BigEndian.PutUint64(key[:8], uint64(e.InsertedAt.UnixMicro())) // two's complement, as to_hex writes it
	binary.BigEndian.PutUint64(key[8:], uint64(e.ID))                     //nolint:gosec // as above
	text := append(make([]byte, 0, 44), "evt_"...)
	return string(append(hex.AppendEncode(text, key[:]), e.Installation...))
}

// ErrBadID is the error of every id that has not the form of its kind.
var ErrBadID = errors.New("not an id of this kind")

// ParseEventID reads the public form. The installation code is not compared: the caller knows its own.
func ParseEventID(s string) (EventID, error) {
	digits, ok := strings.CutPrefix(s, "evt_")
	if !ok || len(digits) != 40 || strings.ToLower(digits) != digits {
		return EventID{}, ErrBadID
	}
	micros, err1 := strconv.ParseUint(digits[:16], 16, 64)
	id, err2 := strconv.ParseUint(digits[16:32], 16, 64)
	_, err3 := hex.DecodeString(digits[32:])
	if err := errors.Join(err1, err2, err3); err != nil {
		return EventID{}, ErrBadID
	}
	return EventID{time.UnixMicro(int64(micros)).UTC(), int64(id), digits[32:]}, nil //nolint:gosec // as above
}

// Prefixes of the public ids that are a UUIDv7 in hexadecimal.
const (
	SubscriptionPrefix = "sub_"
	DeliveryPrefix     = "dlv_"
	AttemptPrefix      = "att_"
	ReplayPrefix       = "rpl_"
	BatchPrefix        = "bat_"
	KeyPrefix          = "key_" // of the id of an API key, which is no secret; the key begins with APIKeyPrefix
	ErasurePrefix      = "ers_"
)

// FormatID is the public form of id: its prefix and 32 hexadecimal digits.
func FormatID(prefix string, id uuid.UUID) string {
	return prefix + hex.EncodeToString(id[:])
}

// ParseID reads what FormatID wrote, or answers ErrBadID.
func ParseID(prefix, s string) (uuid.UUID, error) {
	var id uuid.UUID
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) != 32 || strings.ToLower(digits) != digits {
		return id, ErrBadID
	}
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return id, ErrBadID
	}
	return id, nil
}
