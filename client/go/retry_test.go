package attention

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func failure(code codes.Code, reason string) *Error {
	return &Error{Code: code, Reason: reason}
}

func (e *Error) withDelay(delay time.Duration) *Error {
	e.retryDelay = &delay
	return e
}

// TestPauses of a retrier, error after error; 0: there is no other try.
func TestPauses(t *testing.T) {
	lost, underWay := failure(codes.Unavailable, ""), failure(codes.Unavailable, reasonAppendUnderWay)
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		kind   kind
		max    int
		errors []*Error
		want   []time.Duration
	}{
		"own pauses":             {repeatable, 10, []*Error{lost, lost, lost, lost, lost, lost, lost}, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms}},
		"four attempts":          {repeatable, 4, []*Error{lost, lost, lost, lost}, []time.Duration{100 * ms, 200 * ms, 400 * ms, 0}},
		"told":                   {doOnce, 4, []*Error{failure(codes.ResourceExhausted, "QUEUE_FULL").withDelay(30 * ms)}, []time.Duration{30 * ms}},
		"not told":               {repeatable, 4, []*Error{failure(codes.ResourceExhausted, "QUEUE_FULL")}, []time.Duration{0}},
		"once, lost":             {doOnce, 4, []*Error{lost}, []time.Duration{0}},
		"once, draining":         {doOnce, 4, []*Error{failure(codes.Unavailable, reasonDraining)}, []time.Duration{100 * ms}},
		"another reason":         {repeatable, 4, []*Error{failure(codes.Unavailable, "SHARD_LOST")}, []time.Duration{0}},
		"under way":              {appending, 4, []*Error{underWay, underWay, underWay, underWay, underWay, underWay, underWay, underWay}, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 500 * ms, 500 * ms}},
		"under way counts not":   {appending, 3, []*Error{lost, underWay, underWay, underWay, lost, underWay, lost}, []time.Duration{100 * ms, 10 * ms, 20 * ms, 40 * ms, 200 * ms, 80 * ms, 0}},
		"under way of no append": {repeatable, 4, []*Error{underWay}, []time.Duration{0}},
		"turned off":             {appending, 1, []*Error{underWay}, []time.Duration{0}},
		"deadline":               {appending, 4, []*Error{failure(codes.DeadlineExceeded, "")}, []time.Duration{0}},
		"never":                  {repeatable, 4, []*Error{{Code: codes.Unavailable, Reason: reasonDraining, neverRetry: true}}, []time.Duration{0}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRetrier(c.kind, c.max)
			for i, e := range c.errors {
				r.begin()
				pause, ok := r.pauseAfter(e)
				want := c.want[i]
				if ok != (want > 0) || pause < want || pause > want*6/5 {
					t.Errorf("error %d: got %v %v, wanted %v to a fifth more", i, pause, ok, want)
				}
			}
			if r.attempts != len(c.errors) {
				t.Errorf("got %d attempts", r.attempts)
			}
		})
	}
}

func TestSleep(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if sleep(ctx, time.Second) || time.Since(begun) > 40*time.Millisecond {
		t.Error("a pause was begun that would pass the deadline")
	}
	if !sleep(ctx, time.Millisecond) {
		t.Error("a short pause was not made")
	}
}
