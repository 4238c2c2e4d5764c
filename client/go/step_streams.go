package attention

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// stepStreams keeps streams of SessionService.Step open between messages. A stream
// answers one message after another: callers at the same time have one each. It has the
// headers that it was opened with, so calls with other headers have other streams.
type stepStreams struct {
	client *Client

	mutex sync.Mutex
	// The one used last at the end.
	idle   []*stepStream
	closed bool
}

// The most streams that stay open without a message.
const mostIdleStreams = 16

type stepStream struct {
	stream  grpc.ClientStream
	cancel  context.CancelFunc
	headers string
}

// headersOf tells the caller's headers from others.
func headersOf(ctx context.Context) string {
	headers, _ := metadata.FromOutgoingContext(ctx)
	if len(headers) == 0 {
		return ""
	}
	return fmt.Sprintf("%q", map[string][]string(headers)) // In the order of the names.
}

// exchange sends a message and reads its answer: one attempt. A stream that has ended
// between messages is opened anew, and the message sent again once.
func (s *stepStreams) exchange(ctx context.Context, message *writer, answer *stepResponse) *Error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	if kept := s.take(headersOf(ctx)); kept != nil {
		failed := s.exchangeOn(ctx, kept, message, answer)
		if failed == nil || !failed.endedBetweenMessages() {
			return failed
		}
		*answer = stepResponse{}
	}
	opened, failed := s.open(ctx, message.bytes)
	if failed != nil {
		return failed
	}
	return s.exchangeOn(ctx, opened, message, answer)
}

// endedBetweenMessages is whether a stream that was kept may have ended for lack of
// messages, or with its server.
func (e *Error) endedBetweenMessages() bool {
	if e.neverRetry {
		return false
	}
	switch e.Code {
	case codes.Unavailable:
		return e.Reason == "" || e.Reason == reasonDraining
	case codes.ResourceExhausted:
		return e.Reason == reasonMemoryBusy
	case codes.DeadlineExceeded:
		return e.Reason == reasonIdleTooLong
	case codes.Unauthenticated:
		// The token that the stream began with is good no more; there may be a new one.
		return true
	}
	return false
}

// open begins a stream, which outlives the call that opens it.
func (s *stepStreams) open(ctx context.Context, firstBytes int) (*stepStream, *Error) {
	headers := headersOf(ctx)
	outlives, cancel := context.WithCancel(context.WithoutCancel(ctx))
	outlives = metadata.AppendToOutgoingContext(outlives, sizeHeader(firstBytes)...)
	// Until the stream is there, the caller's context counts: connecting takes time.
	stop := context.AfterFunc(ctx, cancel)
	stream, err := s.client.conn.NewStream(outlives, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		attentionpb.SessionService_Step_FullMethodName)
	stopped := stop()
	if err == nil && stopped {
		return &stepStream{stream: stream, cancel: cancel, headers: headers}, nil
	}
	cancel()
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	return nil, errorFrom(ctx, err, nil)
}

// exchangeOn uses a stream, and keeps it if it goes on.
func (s *stepStreams) exchangeOn(ctx context.Context, stream *stepStream, message *writer, answer *stepResponse) *Error {
	stop := context.AfterFunc(ctx, stream.cancel)
	end, err := stream.exchange(message.finish(), answer)
	cancelled := !stop()
	var failed *Error
	switch {
	case err == nil && !cancelled:
		s.keep(stream)
	case err == nil:
		// The answer was there before.
		stream.cancel()
	case err == io.EOF:
		stream.cancel()
		failed = newError(codes.Unavailable, "", "the stream ended without an answer")
	case cancelled && ctx.Err() != nil:
		stream.cancel()
		failed = contextError(ctx)
	default:
		failed = errorFrom(ctx, err, stream.stream.Trailer())
		stream.cancel()
	}
	if end != nil {
		end.wait(s.client.conns)
	}
	return failed
}

func (s *stepStream) exchange(message *outgoing, answer *stepResponse) (*leaseEnd, error) {
	err := s.stream.SendMsg(message)
	end := message.release()
	if err != nil && err != io.EOF {
		return end, err
	}
	// After io.EOF this tells how the stream ended.
	return end, s.stream.RecvMsg(answer)
}

func (s *stepStreams) take(headers string) *stepStream {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i, stream := range slices.Backward(s.idle) {
		if stream.headers == headers {
			s.idle = slices.Delete(s.idle, i, i+1)
			return stream
		}
	}
	return nil
}

func (s *stepStreams) keep(stream *stepStream) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.closed {
		stream.cancel()
		return
	}
	if len(s.idle) == mostIdleStreams {
		s.idle[0].cancel()
		s.idle = slices.Delete(s.idle, 0, 1)
	}
	s.idle = append(s.idle, stream)
}

// close ends the idle streams; those in use end with the connection.
func (s *stepStreams) close() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.closed = true
	for _, stream := range s.idle {
		stream.cancel()
	}
	s.idle = nil
}
