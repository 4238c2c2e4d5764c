package attention_test

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	attention "github.com/attention-service/attention-service/client/go"
)

// overwritten is a request of so many bytes, and a function that writes to its
// memory: under the race detector that fails if gRPC still reads it.
func overwritten(keys int) (*attention.Request, func()) {
	query := make([]float32, 128)
	key := make([]float32, keys*128)
	value := make([]float32, keys*128)
	request := &attention.Request{
		Query: attention.Of(query, 1, 128), Key: attention.Of(key, keys, 128), Value: attention.Of(value, keys, 128),
	}
	return request, func() {
		for _, memory := range [][]float32{query, key, value} {
			for i := range memory {
				memory[i]++
			}
		}
	}
}

// TestMemoryIsFreeAfterCancel cancels calls at any time of their lives, and writes to
// what they have lent.
func TestMemoryIsFreeAfterCancel(t *testing.T) {
	for name, options := range map[string][]attention.ClientOption{"streams": nil, "whole": {attention.WithoutStreams()}} {
		t.Run(name, func(t *testing.T) {
			client := newServerClient(t, options...)
			request, write := overwritten(8 << 10)
			for range 40 {
				ctx, cancel := context.WithCancel(context.Background())
				timer := time.AfterFunc(time.Duration(rand.Int64N(int64(15*time.Millisecond))), cancel)
				_, err := client.Compute(ctx, request)
				write()
				if err != nil && asError(t, err).Code != codes.Canceled {
					t.Error(err)
				}
				timer.Stop()
				cancel()
			}
			if _, err := client.Compute(testContext(t), request); err != nil {
				t.Errorf("after all that: %v", err)
			}
		})
	}
}

// TestServerThatDoesNotRead: the call ends soon after its deadline, with its memory.
func TestServerThatDoesNotRead(t *testing.T) {
	deaf := serveDeaf(t)
	client := newClient(t, deaf.address(), attention.WithoutStreams())
	request, write := overwritten(32 << 10)
	begun := time.Now()
	_, err := client.Compute(testContext(t), request, attention.WithTimeout(300*time.Millisecond))
	write()
	if failed := asError(t, err); failed.Code != codes.DeadlineExceeded {
		t.Error(failed)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	_ = (<-deaf.conns).Close()
}

// TestServerThatDies loses the connection in the middle of a request.
func TestServerThatDies(t *testing.T) {
	for name, options := range map[string][]attention.ClientOption{"streams": nil, "whole": {attention.WithoutStreams()}} {
		t.Run(name, func(t *testing.T) {
			deaf := serveDeaf(t)
			client := newClient(t, deaf.address(), options...)
			go func() {
				conn := <-deaf.conns
				_, _ = io.CopyN(io.Discard, conn, 1<<20)
				_ = conn.Close()
			}()
			request, write := overwritten(32 << 10)
			begun := time.Now()
			_, err := client.Compute(testContext(t), request, attention.WithMaxAttempts(1))
			write()
			if failed := asError(t, err); failed.Code != codes.Unavailable {
				t.Error(failed)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestDeadlines of next to no time.
func TestDeadlines(t *testing.T) {
	client := newServerClient(t)
	request, write := overwritten(16 << 10)
	for _, timeout := range []time.Duration{1, time.Microsecond, time.Millisecond, 3 * time.Millisecond} {
		_, err := client.Compute(context.Background(), request, attention.WithTimeout(timeout))
		write()
		if err == nil {
			continue // A fast machine.
		}
		if failed := asError(t, err); failed.Code != codes.DeadlineExceeded {
			// A server may say first that it would be too late.
			if failed.Reason != "DEADLINE_TOO_CLOSE" {
				t.Errorf("%v: %v", timeout, failed)
			}
		}
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	client := newServerClient(t)
	eye := attention.Of([]float32{1, 0, 0, 1}, 2, 2)
	session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
	head := attention.Of([]float32{1, 0, 0, 1}, 1, 2, 2)
	must(session.Append(testContext(t), 0, head, head))(t)
	var calls sync.WaitGroup
	for range 1000 {
		calls.Add(2)
		go func() {
			defer calls.Done()
			result, err := client.Compute(context.Background(), &attention.Request{Query: eye, Key: eye, Value: eye})
			if err != nil {
				t.Error(err)
			} else if got := result.Output.Float32s()[0]; got < 0.669 || got > 0.670 {
				t.Errorf("got %v", got)
			}
		}()
		go func() {
			defer calls.Done()
			if _, err := session.Attend(context.Background(), 0, head, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	calls.Wait()
	if err := session.Delete(testContext(t)); err != nil {
		t.Error(err)
	}
}
