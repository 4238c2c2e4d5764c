package attention

import (
	"context"
	"sync"
	"time"
	"weak"
)

// leaseRenewer renews the leases of the handles that a client has given out: by one
// goroutine, which begins with the first of them and ends with the client.
type leaseRenewer struct {
	client *Client
	ctx    context.Context
	cancel context.CancelFunc
	// Told of a handle that was added, which may be due before all others.
	added chan struct{}
	done  sync.WaitGroup

	mutex sync.Mutex
	// Weak: a handle that nobody has any more is not renewed.
	sessions map[weak.Pointer[Session]]struct{}
	running  bool
}

const (
	// After a renewal that failed, unless a third of the lease is less.
	renewAgainAfter = 5 * time.Second
	soonestRenewal  = 50 * time.Millisecond
	renewalTimeout  = 10 * time.Second
	renewalsAtOnce  = 8
)

func (r *leaseRenewer) start(client *Client) {
	r.client = client
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.added = make(chan struct{}, 1)
	r.sessions = make(map[weak.Pointer[Session]]struct{})
}

func (r *leaseRenewer) stop() {
	r.cancel()
	r.mutex.Lock()
	clear(r.sessions)
	r.mutex.Unlock()
	r.done.Wait()
}

func (r *leaseRenewer) add(session *Session) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	r.sessions[weak.Make(session)] = struct{}{}
	if !r.running {
		r.running = true
		r.done.Add(1)
		go r.run()
	}
	select {
	case r.added <- struct{}{}:
	default:
	}
}

func (r *leaseRenewer) remove(session *Session) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	delete(r.sessions, weak.Make(session))
}

func (r *leaseRenewer) run() {
	defer r.done.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.added:
		case <-timer.C:
		}
		timer.Reset(max(r.renewDue(), soonestRenewal))
	}
}

// renewDue renews the leases that are due, and tells when the next one is.
func (r *leaseRenewer) renewDue() time.Duration {
	var renewals sync.WaitGroup
	slots := make(chan struct{}, renewalsAtOnce)
	due, next := r.due(time.Now())
	for _, session := range due {
		slots <- struct{}{}
		renewals.Add(1)
		go func() {
			defer renewals.Done()
			r.renew(session)
			<-slots
		}()
	}
	renewals.Wait()
	return next
}

func (r *leaseRenewer) due(now time.Time) (due []*Session, next time.Duration) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	next = time.Hour
	for pointer := range r.sessions {
		session := pointer.Value()
		if session == nil || session.check(r.client) != nil {
			delete(r.sessions, pointer)
			continue
		}
		left := session.renewIn(now)
		if left <= 0 {
			due = append(due, session)
			left = min(session.third(), renewAgainAfter)
		}
		next = min(next, left)
	}
	return due, next
}

func (r *leaseRenewer) renew(session *Session) {
	// One try: the next round is another.
	begun := time.Now()
	_, err := r.client.getSession(r.ctx, session.id, session.incarnation, []CallOption{WithTimeout(renewalTimeout), WithMaxAttempts(1)})
	session.callEnded(begun, err)
}

// third of the lease: unused for so long, it is renewed.
func (s *Session) third() time.Duration {
	lease := s.config.Lease
	if lease <= 0 { // A server tells it always.
		lease = time.Minute
	}
	return lease / 3
}

func (s *Session) renewIn(now time.Time) time.Duration {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.third() - now.Sub(s.lastUsed)
}
