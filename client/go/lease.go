package attention

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"
)

// lease lends the caller's memory to gRPC, and knows when gRPC has let go of it.
//
// gRPC gives each buffer back to its pool, which the lease is, once its bytes are
// copied into the connection's write buffer, or when the stream is given up. What
// was queued on a connection that is lost it forgets without giving it back. So the
// lease is over as well once nothing can reach it any more: every buffer that could
// still be read refers to it. Whoever waits must not, and waits on the leaseEnd.
type lease struct {
	end *leaseEnd
	// Buffers that are out, and 1 until close is called.
	out atomic.Int64
}

type leaseEnd struct {
	once sync.Once
	over chan struct{}
}

func newLease() *lease {
	l := &lease{end: &leaseEnd{over: make(chan struct{})}}
	l.out.Store(1)
	runtime.AddCleanup(l, (*leaseEnd).finish, l.end)
	return l
}

func (e *leaseEnd) finish() {
	e.once.Do(func() { close(e.over) })
}

// lend makes a buffer of memory. It has one reference.
func (l *lease) lend(memory []byte) mem.Buffer {
	l.out.Add(1)
	return mem.NewBuffer(&memory, l)
}

// close ends the lending; the lease is over once all buffers are back.
func (l *lease) close() { l.drop() }

func (l *lease) drop() {
	if l.out.Add(-1) == 0 {
		l.end.finish()
	}
}

// Get is part of mem.BufferPool; nobody asks a lease for memory.
func (l *lease) Get(length int) *[]byte {
	memory := make([]byte, length)
	return &memory
}

// Put takes a buffer back.
func (l *lease) Put(*[]byte) { l.drop() }

const (
	firstLook   = 5 * time.Millisecond
	longestLook = time.Second
	// For so long a connection may take nothing while a call waits.
	stuckAfter = time.Second
)

// wait returns once nothing of what was lent can be read any more. The lease must
// not be reachable from the caller.
func (e *leaseEnd) wait(conns *connections) {
	select {
	case <-e.over: // Nearly always.
		return
	default:
	}
	for look := firstLook; ; look = min(2*look, longestLook) {
		timer := time.NewTimer(look)
		select {
		case <-e.over:
			timer.Stop()
			return
		case <-timer.C:
		}
		// Finds out whether gRPC has forgotten the buffers: the call has failed.
		runtime.GC()
		conns.closeStuck(stuckAfter)
	}
}
