package worker

import (
	"slices"
	"testing"
	"time"
)

func TestFloorRemembersWhatIsMissing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var f floor
	f.saw([]int64{5, 7, 10}, now)
	if f.after != 10 {
		t.Fatalf("after %d", f.after)
	}
	// Below the first id ever seen nothing is known to be missing.
	if got := f.probes(now, false); !slices.Equal(got, []int64{6, 8, 9}) {
		t.Fatalf("probes %v", got)
	}
	f.saw([]int64{6, 9, 12}, now.Add(time.Second))
	if got := f.probes(now.Add(time.Second), false); !slices.Equal(got, []int64{8, 11}) || f.after != 12 {
		t.Fatalf("probes %v, after %d", got, f.after)
	}
	if got := f.probes(now.Add(holeAge+500*time.Millisecond), false); !slices.Equal(got, []int64{11}) {
		t.Fatalf("old holes are left to the sweep: %v", got)
	}
}

func TestFloorIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var f floor
	f.saw([]int64{1}, now)
	f.saw([]int64{10_000_000}, now)
	if len(f.holes) > maxHoles {
		t.Fatalf("%d holes", len(f.holes))
	}
	f.probedAt = now
	if got := f.probes(now, false); len(got) != maxProbes || got[len(got)-1] != 9_999_999 {
		t.Fatalf("%d probes up to %d", len(got), got[len(got)-1])
	}
	if got := f.probes(now.Add(probeAllInterval), false); len(got) != maxHoles {
		t.Fatalf("%d of all holes probed", len(got))
	}
	if got := f.probes(now.Add(2*probeAllInterval), true); len(got) != 0 {
		t.Fatalf("%d holes probed in a backlog", len(got))
	}
	if got := f.probes(now.Add(probeAllInterval+backlogInterval), true); len(got) != maxHoles {
		t.Fatalf("%d of all holes probed in a backlog, after a while", len(got))
	}
}

func BenchmarkFloor(b *testing.B) {
	var f floor
	now := time.Now()
	id := int64(1)
	for b.Loop() {
		ids := make([]int64, 500)
		for i := range ids {
			id += 2
			ids[i] = id
		}
		f.probes(now, false)
		f.saw(ids, now)
	}
}
