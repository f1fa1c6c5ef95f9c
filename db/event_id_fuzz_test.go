package db

import "testing"

// FuzzEventID: an id has one spelling, and each of our spellings one meaning.
func FuzzEventID(f *testing.F) {
	for _, text := range []string{"", "evt_", "evt_018d0c8a5b3f7a2e9c41d6f0b8a37e5501234567", "evt_ffffffffffffffffffffffffffffffff00000000", "EVT_018D0C8A5B3F7A2E9C41D6F0B8A37E5501234567", "evt_+18d0c8a5b3f7a2e9c41d6f0b8a37e5501234567"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseEventID(text)
		if err == nil && id.String() != text {
			t.Fatalf("%q is read as %q", text, id.String())
		}
		if other, err := ParseID(DeliveryPrefix, text); err == nil && FormatID(DeliveryPrefix, other) != text {
			t.Fatalf("%q is read as %v", text, other)
		}
	})
}
