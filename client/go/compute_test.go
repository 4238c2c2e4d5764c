package attention_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// fakeAttention answers ComputeAttention and StreamAttention with functions.
type fakeAttention struct {
	attentionpb.UnimplementedAttentionServiceServer
	compute func(context.Context, *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error)
	stream  func(grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error
	whole   atomic.Int64
	streams atomic.Int64
}

func (f *fakeAttention) ComputeAttention(ctx context.Context, request *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
	f.whole.Add(1)
	if f.compute == nil {
		return &attentionpb.ComputeAttentionResponse{Output: request.Query}, nil
	}
	return f.compute(ctx, request)
}

func (f *fakeAttention) StreamAttention(stream grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error {
	f.streams.Add(1)
	return f.stream(stream)
}

func withReason(code codes.Code, reason string) error {
	st, err := status.New(code, reason).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "attention"})
	if err != nil {
		return err
	}
	return st.Err()
}

func eye() attention.Tensor { return attention.Of([]float32{1, 0, 0, 1}, 2, 2) }

// decode is a request that is sent as a stream.
func decode() *attention.Request {
	request, _ := overwritten(8 << 10)
	return request
}

func TestAnswersThatDoNotMatch(t *testing.T) {
	f32 := attentionpb.DataType_DATA_TYPE_FLOAT32
	good := &attentionpb.Tensor{DataType: f32, Shape: []int64{2, 2}, Data: make([]byte, 16)}
	for name, answer := range map[string]*attentionpb.ComputeAttentionResponse{
		"none":        {},
		"type":        {Output: &attentionpb.Tensor{DataType: attentionpb.DataType_DATA_TYPE_FLOAT16, Shape: []int64{2, 2}, Data: make([]byte, 8)}},
		"shape":       {Output: &attentionpb.Tensor{DataType: f32, Shape: []int64{4}, Data: make([]byte, 16)}},
		"bytes":       {Output: &attentionpb.Tensor{DataType: f32, Shape: []int64{2, 2}, Data: make([]byte, 15)}},
		"no bytes":    {Output: &attentionpb.Tensor{DataType: f32, Shape: []int64{2, 2}}},
		"no lse":      {Output: good, Scores: good},
		"overflow":    {Output: good, LogSumExp: &attentionpb.Tensor{DataType: f32, Shape: []int64{1 << 62, 1 << 62}}, Scores: good},
		"no scores":   {Output: good, LogSumExp: good},
		"unknown":     {Output: good, LogSumExp: good, Scores: &attentionpb.Tensor{DataType: 99, Shape: []int64{0}}},
		"bits":        {Output: good, LogSumExp: good, Scores: &attentionpb.Tensor{DataType: attentionpb.DataType_DATA_TYPE_BITS, Shape: []int64{8}, Data: make([]byte, 1)}},
		"negative":    {Output: good, LogSumExp: good, Scores: &attentionpb.Tensor{DataType: f32, Shape: []int64{-1}}},
		"float value": {Output: &attentionpb.Tensor{Shape: []int64{2, 2}, FloatValues: make([]float32, 4)}, LogSumExp: good, Scores: good},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeAttention{compute: func(context.Context, *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
				return answer, nil
			}}
			client := newClient(t, serveFake(t, fake, nil))
			_, err := client.Compute(testContext(t), &attention.Request{Query: eye(), Key: eye(), Value: eye(),
				Options: attention.Options{ReturnLogSumExp: true, ReturnScores: attention.ScoresRaw}})
			failed := asError(t, err)
			if failed.Code != codes.Internal || fake.whole.Load() != 1 {
				t.Errorf("got %v after %d calls", failed, fake.whole.Load())
			}
			contains(t, failed.Message, "malformed answer")
		})
	}
}

func TestHeaders(t *testing.T) {
	var got metadata.MD
	var size int
	fake := &fakeAttention{compute: func(ctx context.Context, request *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
		got, _ = metadata.FromIncomingContext(ctx)
		size = proto.Size(request)
		return &attentionpb.ComputeAttentionResponse{Output: request.Query}, nil
	}}
	client := newClient(t, serveFake(t, fake, nil), attention.WithToken("secret"), attention.WithMaxReceiveBytes(1<<20))
	must(client.Compute(testContext(t), &attention.Request{Query: eye(), Key: eye(), Value: eye()}, attention.WithHeader("x-request-id", "mine")))(t)
	for name, want := range map[string]string{
		"authorization": "Bearer secret", "x-request-id": "mine",
		"attention-request-bytes": itoa(size), "attention-max-response-bytes": itoa(1 << 20),
	} {
		if values := got.Get(name); len(values) != 1 || values[0] != want {
			t.Errorf("%s: got %q, wanted %q", name, values, want)
		}
	}
}

// TestFallsBackToOneMessage where the server takes no stream, and only then.
func TestFallsBackToOneMessage(t *testing.T) {
	for name, c := range map[string]struct {
		err            error
		whole, streams int64
		code           codes.Code
	}{
		"unimplemented":     {status.Error(codes.Unimplemented, "what is that"), 2, 1, codes.OK},
		"REQUEST_TOO_LARGE": {withReason(codes.ResourceExhausted, "REQUEST_TOO_LARGE"), 2, 2, codes.OK},
		"MEMORY_TOO_LARGE":  {withReason(codes.ResourceExhausted, "MEMORY_TOO_LARGE"), 2, 2, codes.OK},
		"INVALID_FIELD":     {withReason(codes.Unimplemented, "INVALID_FIELD"), 0, 2, codes.Unimplemented},
		"TENANT_TOO_LARGE":  {withReason(codes.ResourceExhausted, "TENANT_TOO_LARGE"), 0, 2, codes.ResourceExhausted},
		"lost":              {status.Error(codes.Unavailable, "lost"), 0, 8, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeAttention{stream: func(grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error {
				return c.err
			}}
			client := newClient(t, serveFake(t, fake, nil))
			for range 2 {
				_, err := client.Compute(testContext(t), decode())
				if c.code == codes.OK && err != nil || c.code != codes.OK && asError(t, err).Code != c.code {
					t.Errorf("got %v", err)
				}
			}
			if fake.whole.Load() != c.whole || fake.streams.Load() != c.streams {
				t.Errorf("got %d messages and %d streams, wanted %d and %d", fake.whole.Load(), fake.streams.Load(), c.whole, c.streams)
			}
		})
	}
}

// TestStreamsThatAnswerWrong end with an error, and with the call at the server.
func TestStreamsThatAnswerWrong(t *testing.T) {
	type responses = []*attentionpb.StreamAttentionResponse
	rows := func(shape ...int64) *attentionpb.StreamAttentionResponse {
		n := int64(4)
		for _, length := range shape {
			n *= length
		}
		return &attentionpb.StreamAttentionResponse{Output: &attentionpb.Tensor{
			DataType: attentionpb.DataType_DATA_TYPE_FLOAT32, Shape: shape, Data: make([]byte, n)}}
	}
	for name, answers := range map[string]responses{
		"no rows":       {},
		"too many rows": {rows(2, 128)},
		"twice":         {rows(1, 128), rows(1, 128)},
		"other size":    {rows(1, 64)},
		"other rank":    {rows(128)},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeAttention{stream: func(stream grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error {
				for _, answer := range answers {
					if err := stream.Send(answer); err != nil {
						return err
					}
				}
				for {
					if _, err := stream.Recv(); err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
				}
			}}
			client := newClient(t, serveFake(t, fake, nil))
			_, err := client.Compute(testContext(t), decode())
			if failed := asError(t, err); failed.Code != codes.Internal || fake.streams.Load() != 1 {
				t.Errorf("got %v after %d streams", failed, fake.streams.Load())
			}
		})
	}
}

// TestCancelReachesTheServer of a call in one message and of a stream.
func TestCancelReachesTheServer(t *testing.T) {
	ended := make(chan error, 1)
	fake := &fakeAttention{
		compute: func(ctx context.Context, _ *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		},
		stream: func(stream grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error {
			<-stream.Context().Done()
			ended <- stream.Context().Err()
			return stream.Context().Err()
		},
	}
	client := newClient(t, serveFake(t, fake, nil))
	for _, request := range []*attention.Request{{Query: eye(), Key: eye(), Value: eye()}, decode()} {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := client.Compute(ctx, request)
		if failed := asError(t, err); failed.Code != codes.Canceled || !errors.Is(err, context.Canceled) {
			t.Error(failed)
		}
		select {
		case got := <-ended:
			if got != context.Canceled {
				t.Error(got)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server was not told")
		}
	}
}

// TestCancelEndsAPause between two tries.
func TestCancelEndsAPause(t *testing.T) {
	fake := &fakeAttention{compute: func(ctx context.Context, _ *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
		return nil, must(status.New(codes.ResourceExhausted, "busy").WithDetails(
			&errdetails.RetryInfo{RetryDelay: durationpb.New(30 * time.Second)}))(t).Err()
	}}
	client := newClient(t, serveFake(t, fake, nil))
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	begun := time.Now()
	_, err := client.Compute(ctx, &attention.Request{Query: eye(), Key: eye(), Value: eye()})
	if failed := asError(t, err); failed.Code != codes.Canceled || failed.Attempts != 1 || time.Since(begun) > 5*time.Second {
		t.Errorf("got %v after %v and %d attempts", failed, time.Since(begun), failed.Attempts)
	}
}

// TestNoRetries where they are turned off, for a client or for a call.
func TestNoRetries(t *testing.T) {
	fake := &fakeAttention{compute: func(context.Context, *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
		return nil, status.Error(codes.Unavailable, "lost")
	}}
	address := serveFake(t, fake, nil)
	request := &attention.Request{Query: eye(), Key: eye(), Value: eye()}
	_, err := newClient(t, address, attention.WithMaxAttempts(1)).Compute(testContext(t), request)
	if failed := asError(t, err); failed.Attempts != 1 || fake.whole.Load() != 1 {
		t.Errorf("got %d attempts", fake.whole.Load())
	}
	_, err = newClient(t, address).Compute(testContext(t), request, attention.WithMaxAttempts(2))
	if failed := asError(t, err); failed.Attempts != 2 || fake.whole.Load() != 3 {
		t.Errorf("got %d attempts", fake.whole.Load()-1)
	}
}

func TestEveryCallHasADeadline(t *testing.T) {
	var left time.Duration
	fake := &fakeAttention{compute: func(ctx context.Context, request *attentionpb.ComputeAttentionRequest) (*attentionpb.ComputeAttentionResponse, error) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return &attentionpb.ComputeAttentionResponse{Output: request.Query}, nil
	}}
	address := serveFake(t, fake, nil)
	request := &attention.Request{Query: eye(), Key: eye(), Value: eye()}
	long, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for _, c := range []struct {
		ctx     context.Context
		options []attention.CallOption
		want    time.Duration
	}{
		{context.Background(), nil, attention.DefaultTimeout},
		{long, nil, time.Hour},
		{long, []attention.CallOption{attention.WithTimeout(time.Minute / 2)}, time.Minute / 2},
		{context.Background(), []attention.CallOption{attention.WithTimeout(2 * time.Hour)}, 2 * time.Hour},
	} {
		must(newClient(t, address).Compute(c.ctx, request, c.options...))(t)
		if left > c.want || left < c.want-10*time.Second {
			t.Errorf("got %v, wanted %v", left, c.want)
		}
	}
}

func TestLargestAnswer(t *testing.T) {
	query := attention.Of(make([]float32, 1<<20), 1, 1, 16384, 64)
	key := attention.Of(make([]float32, 64), 1, 1, 1, 64)
	request := &attention.Request{Query: query, Key: key, Value: key}
	if _, err := newServerClient(t).Compute(testContext(t), request); err != nil {
		t.Errorf("an answer of 4 MiB and more: %v", err)
	}
	_, err := newServerClient(t, attention.WithMaxReceiveBytes(1<<20)).Compute(testContext(t), request)
	if failed := asError(t, err); failed.Code != codes.ResourceExhausted || failed.Reason != "ANSWER_TOO_LARGE" {
		t.Error(failed)
	}
	// A server that does not heed the header.
	fake := &fakeAttention{}
	_, err = newClient(t, serveFake(t, fake, nil), attention.WithMaxReceiveBytes(1<<20)).Compute(testContext(t), request)
	if failed := asError(t, err); failed.Code != codes.ResourceExhausted || failed.Reason != "CLIENT_LIMIT" || fake.whole.Load() != 1 {
		t.Error(failed)
	}
}

// TestStreamsGiveTheSameErrors as one message does.
func TestStreamsGiveTheSameErrors(t *testing.T) {
	request, _ := overwritten(8 << 10)
	request.SoftCap = -1
	var texts []string
	for _, options := range [][]attention.ClientOption{nil, {attention.WithoutStreams()}} {
		_, err := newServerClient(t, options...).Compute(testContext(t), request)
		failed := asError(t, err)
		if len(failed.FieldViolations) != 1 || failed.FieldViolations[0].Field != "options.softcap" {
			t.Errorf("got %v", failed.FieldViolations)
		}
		texts = append(texts, failed.Error())
	}
	if texts[0] != texts[1] {
		t.Errorf("got %q and %q", texts[0], texts[1])
	}
}

func TestNobodyListens(t *testing.T) {
	client := newClient(t, "127.0.0.1:1")
	begun := time.Now()
	_, err := client.Capabilities(testContext(t))
	failed := asError(t, err)
	if failed.Code != codes.Unavailable || failed.Attempts != 4 || time.Since(begun) > 10*time.Second {
		t.Errorf("got %v after %d attempts and %v", failed, failed.Attempts, time.Since(begun))
	}
	contains(t, err.Error(), "127.0.0.1:1")
	if st, ok := status.FromError(err); !ok || st.Code() != codes.Unavailable {
		t.Errorf("gRPC finds %v", st)
	}
}

// TestServerThatComesBack on the same port: the next call connects anew.
func TestServerThatComesBack(t *testing.T) {
	address, process := startServer(t)
	client := newClient(t, address)
	session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
	head := attention.Of([]float32{1, 0}, 1, 1, 2)
	must(session.Step(testContext(t), 0, head, head, head, nil))(t)
	signal(t, process, syscall.SIGKILL)
	waitGone(t, client)
	startServer(t, "--listen="+address)
	if _, err := client.Compute(testContext(t), &attention.Request{Query: eye(), Key: eye(), Value: eye()}); err != nil {
		t.Error(err)
	}
	_, err := session.Step(testContext(t), 0, head, head, head, nil)
	if failed := asError(t, err); failed.Reason != "SESSION_UNKNOWN" {
		t.Error(failed)
	}
	if _, err := session.Append(testContext(t), 0, head, head); asError(t, err).Reason != "SESSION_UNKNOWN" {
		t.Error(err)
	}
}

func signal(t *testing.T, process *os.Process, number syscall.Signal) {
	t.Helper()
	if err := process.Signal(number); err != nil {
		t.Fatal(err)
	}
}

// waitGone returns once the server does not answer.
func waitGone(t *testing.T, client *attention.Client) {
	t.Helper()
	for range 200 {
		if _, err := client.Health(testContext(t), "", attention.WithMaxAttempts(1)); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the server goes on")
}

func TestHealthAndCapabilities(t *testing.T) {
	client := newServerClient(t)
	for _, service := range []string{"", "attention.v1.AttentionService"} {
		if got := must(client.Health(testContext(t), service))(t); got != attention.HealthServing || got.String() != "SERVING" {
			t.Errorf("%q: got %v", service, got)
		}
	}
	_, err := client.Health(testContext(t), "nobody")
	if failed := asError(t, err); failed.Code != codes.NotFound {
		t.Error(failed)
	}
	if got := must(client.Capabilities(testContext(t)))(t); got.GetKeyBlock() < 1 || got.GetVersion() == "" {
		t.Errorf("got %v", got)
	}
}

func TestClose(t *testing.T) {
	client := must(attention.New(environment(t, "ATTENTION_TEST_SERVER")))(t)
	var calls sync.WaitGroup
	for range 8 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			for {
				if _, err := client.Compute(context.Background(), decode()); err != nil {
					if code := asError(t, err).Code; code != codes.Canceled {
						t.Error(err)
					}
					return
				}
			}
		}()
	}
	time.Sleep(50 * time.Millisecond)
	for range 2 {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	calls.Wait()
}

// TestProgress counts up to all bytes of keys and values.
func TestProgress(t *testing.T) {
	var last, all int64
	must(newServerClient(t).Compute(testContext(t), decode(), attention.WithProgress(func(sent, total int64) {
		if sent < last {
			t.Errorf("%d after %d", sent, last)
		}
		last, all = sent, total
	})))(t)
	if all != 2*4*128*8<<10 || last != all {
		t.Errorf("got %d of %d", last, all)
	}
}

func TestErrorText(t *testing.T) {
	if _, err := newServerClient(t).Compute(testContext(t), nil); asError(t, err).Code != codes.InvalidArgument {
		t.Error(err)
	}
	_, err := newServerClient(t).Compute(testContext(t), &attention.Request{Query: eye(), Key: filled(1, 3, 4), Value: eye()})
	failed := asError(t, err)
	if !strings.HasPrefix(failed.Error(), "INVALID_ARGUMENT (INVALID_FIELD): key.shape: ") || !strings.HasSuffix(failed.Error(), ")") {
		t.Errorf("got %q", failed.Error())
	}
	contains(t, failed.FieldViolations[0].Description, "wanted")
}
