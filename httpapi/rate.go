package httpapi

import (
	"container/list"
	"crypto/sha256"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// mostCounted is how many keys, and how many networks, are counted at a time: about 3 MB of each. Beyond it the one that
// was quiet for the longest starts anew.
const mostCounted = 10_000

// A keyHash is what db.HashAPIKey answers.
type keyHash [sha256.Size]byte

// limiters bound how often each of many may do something, in this process. They hold the mostCounted that did it last.
type limiters[K comparable] struct {
	limit rate.Limit
	burst int

	mutex  sync.Mutex
	byKey  map[K]*list.Element
	latest *list.List // of *counted[K], the latest first
}

type counted[K comparable] struct {
	key     K
	limiter *rate.Limiter
	notedAt time.Time // monotonic: when mustNote said yes
	pending int       // reserved, and not settled yet
}

// newLimiters lets each come perSecond times a second, and burst times at once after a pause; 0 perSecond is no limit.
func newLimiters[K comparable](perSecond float64, burst int) *limiters[K] {
	limit := rate.Limit(perSecond)
	if perSecond == 0 {
		limit = rate.Inf
	}
	return &limiters[K]{limit: limit, burst: burst, byKey: map[K]*list.Element{}, latest: list.New()}
}

// take counts one request of key; more than 0 is how long to wait before the next, and this one is not to be served.
func (l *limiters[K]) take(key K) (wait time.Duration) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	reserved := l.find(key).limiter.Reserve()
	wait = reserved.Delay()
	if wait > 0 {
		reserved.Cancel()
	}
	return wait
}

// reserve is take for what may turn out not to count: settle says whether it does, and must be called once. Of many at a
// time no more are let through than if all of them counted.
func (l *limiters[K]) reserve(key K) (settle func(counts bool), wait time.Duration) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.limit == rate.Inf {
		return func(bool) {}, 0
	}
	found := l.find(key)
	if missing := float64(found.pending+1) - found.limiter.Tokens(); missing > 0 {
		return nil, time.Duration(min(missing/float64(l.limit), math.MaxInt32) * float64(time.Second))
	}
	found.pending++
	return func(counts bool) {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		found.pending--
		if counts {
			found.limiter.Allow()
		}
	}, 0
}

// knows says whether key is among those that came last.
func (l *limiters[K]) knows(key K) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	_, ok := l.byKey[key]
	return ok
}

// mustNote says yes to key once in an interval.
func (l *limiters[K]) mustNote(key K, interval time.Duration) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	found := l.find(key)
	if !found.notedAt.IsZero() && time.Since(found.notedAt) < interval {
		return false
	}
	found.notedAt = time.Now()
	return true
}

// find makes key the latest, and room for it.
func (l *limiters[K]) find(key K) *counted[K] {
	if element, ok := l.byKey[key]; ok {
		l.latest.MoveToFront(element)
		return element.Value.(*counted[K])
	}
	if l.latest.Len() >= mostCounted {
		oldest := l.latest.Remove(l.latest.Back()).(*counted[K])
		delete(l.byKey, oldest.key)
	}
	found := &counted[K]{key: key, limiter: rate.NewLimiter(l.limit, l.burst)}
	l.byKey[key] = l.latest.PushFront(found)
	return found
}

// tooMany is the problem of who has to wait.
func tooMany(wait time.Duration, message string) *Problem {
	problem := fail(codeTooManyRequests, message)
	problem.retryAfter = min(wait, time.Hour)
	return problem
}

// networkOf is whom a remote address stands for: itself and, as a host with IPv6 has 2^64 of them, its /64.
func networkOf(remote string) netip.Prefix {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // a socket without addresses: all who use it count as one
	}
	address := from.Addr().Unmap().WithZone("")
	bits := address.BitLen()
	if address.Is6() {
		bits = 64
	}
	network, err := address.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}
