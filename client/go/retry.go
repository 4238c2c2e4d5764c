package attention

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	defaultMaxAttempts = 4

	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second

	firstUnderWayPause   = 10 * time.Millisecond
	longestUnderWayPause = 500 * time.Millisecond
)

// kind is what may be done with a call that failed.
type kind int

const (
	// Nobody knows whether a failed call was done, and it must not be done twice.
	doOnce kind = iota
	// To do it twice is to do it once.
	repeatable
	// Repeatable by its request id; and an earlier try may still run.
	appending
)

// retrier decides about the tries of one call. Not for several goroutines.
type retrier struct {
	kind kind
	// The most attempts, at least 1.
	max int
	// Attempts that count, those of appends under way not among them.
	counted       int
	attempts      int
	underWayPause time.Duration
}

func newRetrier(k kind, maxAttempts int) *retrier {
	return &retrier{kind: k, max: maxAttempts, underWayPause: firstUnderWayPause}
}

// begin counts an attempt that begins.
func (r *retrier) begin() {
	r.counted++
	r.attempts++
}

// pauseAfter is the pause before the next try; not ok where there is none.
func (r *retrier) pauseAfter(e *Error) (pause time.Duration, ok bool) {
	if e.neverRetry {
		return 0, false
	}
	told, isTold := e.RetryDelay()
	if e.Code == codes.Unavailable && e.Reason == reasonAppendUnderWay {
		if r.kind != appending || r.max <= 1 {
			return 0, false
		}
		r.counted--
		pause = r.underWayPause
		r.underWayPause = min(2*r.underWayPause, longestUnderWayPause)
		if isTold {
			pause = told
		}
		return jittered(pause), true
	}
	if !r.mayRepeat(e, isTold) || r.counted >= r.max {
		return 0, false
	}
	pause = min(firstPause<<min(r.counted-1, 10), longestPause)
	if isTold {
		pause = told
	}
	return jittered(pause), true
}

func (r *retrier) mayRepeat(e *Error, isTold bool) bool {
	switch e.Code {
	case codes.ResourceExhausted:
		return isTold
	case codes.Unavailable:
		return e.Reason == reasonDraining || e.Reason == "" && r.kind != doOnce
	}
	return false
}

// jittered is the pause times a random number in [1, 1.2].
func jittered(pause time.Duration) time.Duration {
	longer := float64(pause) * (1 + 0.2*rand.Float64())
	if longer >= 1<<62 {
		return 1 << 62
	}
	return time.Duration(longer)
}

// sleep waits, and tells whether it did. It does not begin a pause that would pass
// the context's deadline, and ends one at once when the context ends.
func sleep(ctx context.Context, pause time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// retry makes a call until it is done or another try is no use. try makes one
// attempt.
func retry(ctx context.Context, r *retrier, try func() *Error) *Error {
	for {
		r.begin()
		failed := try()
		if failed == nil {
			return nil
		}
		failed.Attempts = r.attempts
		pause, ok := r.pauseAfter(failed)
		if !ok {
			return failed
		}
		if !sleep(ctx, pause) {
			if ctx.Err() == context.Canceled {
				cancelled := contextError(ctx)
				cancelled.Attempts = r.attempts
				return cancelled
			}
			return failed
		}
	}
}
