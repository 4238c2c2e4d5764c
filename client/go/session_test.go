package attention_test

import (
	"context"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
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

// fakeSessions keep lengths, and fail as a test tells them to.
type fakeSessions struct {
	attentionpb.UnimplementedSessionServiceServer
	mutex  sync.Mutex
	length int64
	// Of all appends that came, done or not.
	appends []*attentionpb.AppendKeyValuesRequest
	// What the append of this number fails with, before or after it is done.
	fail      func(number int) error
	failAfter bool
	known     map[string]int64
	step      func(grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error
	lease     time.Duration
	renewals  int
}

func (f *fakeSessions) session(id string) *attentionpb.Session {
	lease := f.lease
	if lease == 0 {
		lease = time.Minute
	}
	return &attentionpb.Session{
		Id: id, Incarnation: 7, Lengths: []int64{f.length},
		Config: &attentionpb.SessionConfig{NumLayers: 1, KvHeads: 1, HeadSize: 2, ValueHeadSize: 2, Lease: durationpb.New(lease)},
	}
}

func (f *fakeSessions) CreateSession(_ context.Context, request *attentionpb.CreateSessionRequest) (*attentionpb.CreateSessionResponse, error) {
	return &attentionpb.CreateSessionResponse{Session: f.session(request.Id)}, nil
}

func (f *fakeSessions) GetSession(_ context.Context, request *attentionpb.GetSessionRequest) (*attentionpb.GetSessionResponse, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.renewals++
	return &attentionpb.GetSessionResponse{Session: f.session(request.Id)}, nil
}

func (f *fakeSessions) AppendKeyValues(_ context.Context, request *attentionpb.AppendKeyValuesRequest) (*attentionpb.AppendKeyValuesResponse, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.appends = append(f.appends, request)
	var err error
	if f.fail != nil {
		err = f.fail(len(f.appends))
	}
	if err != nil && !f.failAfter {
		return nil, err
	}
	if f.known == nil {
		f.known = make(map[string]int64)
	}
	if length, ok := f.known[request.RequestId]; ok {
		return &attentionpb.AppendKeyValuesResponse{Length: length}, nil
	}
	if request.GetExpectedLength() != f.length {
		return nil, withReason(codes.Aborted, "LENGTH_CONFLICT")
	}
	f.length += request.Key.Shape[1]
	f.known[request.RequestId] = f.length
	if err != nil {
		return nil, err
	}
	return &attentionpb.AppendKeyValuesResponse{Length: f.length}, nil
}

func (f *fakeSessions) Step(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
	return f.step(stream)
}

func newFakeSession(t *testing.T, fake *fakeSessions, options ...attention.ClientOption) *attention.Session {
	client := newClient(t, serveFake(t, nil, fake), options...)
	return must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
}

// TestAppendOnceAfterALostAnswer: the caller appends the same tokens again, and they
// are there once.
func TestAppendOnceAfterALostAnswer(t *testing.T) {
	fake := &fakeSessions{failAfter: true, fail: func(number int) error {
		if number == 1 {
			return status.Error(codes.Unavailable, "lost")
		}
		return nil
	}}
	session := newFakeSession(t, fake)
	token := filled(1, 1, 1, 2)
	_, err := session.Append(testContext(t), 0, token, token, attention.WithMaxAttempts(1))
	if asError(t, err).Code != codes.Unavailable || session.Length(0) != 0 {
		t.Fatal(err)
	}
	if length := must(session.Append(testContext(t), 0, token, token))(t); length != 1 {
		t.Errorf("got length %d, wanted 1", length)
	}
	must(session.Append(testContext(t), 0, token, token))(t)
	if fake.appends[0].RequestId != fake.appends[1].RequestId || fake.appends[1].RequestId == fake.appends[2].RequestId {
		t.Errorf("got request ids %q", []string{fake.appends[0].RequestId, fake.appends[1].RequestId, fake.appends[2].RequestId})
	}
	if fake.length != 2 || session.Length(0) != 2 || fake.appends[0].Incarnation != 7 {
		t.Errorf("got length %d, the session knows %d", fake.length, session.Length(0))
	}
}

// TestAppendGoesOnFromTheMissingPiece after one piece of a large append has failed.
func TestAppendGoesOnFromTheMissingPiece(t *testing.T) {
	fake := &fakeSessions{fail: func(number int) error {
		if number == 2 {
			return withReason(codes.ResourceExhausted, "SESSION_BYTES")
		}
		return nil
	}}
	session := newFakeSession(t, fake)
	tokens := make([]float32, 2<<20*3/2)
	for i := range tokens {
		tokens[i] = float32(i)
	}
	key := attention.Of(tokens, 1, len(tokens)/2, 2)
	_, err := session.Append(testContext(t), 0, key, key)
	failed := asError(t, err)
	contains(t, failed.Message, "the first 524288 of 1572864 tokens were appended")
	if failed.Reason != "SESSION_BYTES" || session.Length(0) != 512<<10 {
		t.Errorf("got %v, length %d", failed, session.Length(0))
	}
	if length := must(session.Append(testContext(t), 0, key, key))(t); length != int64(len(tokens)/2) {
		t.Errorf("got length %d", length)
	}
	sent := int64(0)
	var joined []byte
	for i, request := range fake.appends {
		if i == 1 {
			continue // The one that failed.
		}
		sent += request.Key.Shape[1]
		joined = append(joined, request.Key.Data...)
	}
	if sent != int64(len(tokens)/2) || !slices.Equal(joined, key.Bytes()) {
		t.Errorf("sent %d tokens", sent)
	}
	// Other tokens go behind those that are there.
	other := filled(3, 1, 1, 2)
	if length := must(session.Append(testContext(t), 0, other, other))(t); length != int64(len(tokens)/2)+1 {
		t.Errorf("got length %d", length)
	}
}

// TestOneAppendAtATime for each layer of a handle.
func TestOneAppendAtATime(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	fake := &fakeSessions{}
	fake.fail = func(number int) error {
		if number == 1 {
			close(begun)
			<-goOn
		}
		return nil
	}
	session := newFakeSession(t, fake)
	token := filled(1, 1, 1, 2)
	done := make(chan error)
	go func() {
		_, err := session.Append(testContext(t), 0, token, token)
		done <- err
	}()
	<-begun
	_, err := session.Append(testContext(t), 0, token, token)
	failed := asError(t, err)
	if length, ok := failed.Length(); failed.Code != codes.Aborted || failed.Reason != "LENGTH_CONFLICT" || !ok || length != 0 {
		t.Errorf("got %v", failed)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// answerSteps answers messages of a Step stream; stop ends the stream before the
// message of that number.
func answerSteps(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse], count func() error) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := count(); err != nil {
			return err
		}
		response := &attentionpb.StepResponse{}
		for _, item := range request.Items {
			response.Results = append(response.Results, &attentionpb.StepResult{Output: item.Query, Length: item.GetExpectedLength()})
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// TestStepsWithTheirOwnHeaders do not go over a stream that was opened with others.
func TestStepsWithTheirOwnHeaders(t *testing.T) {
	var mutex sync.Mutex
	var callers []string
	streams := 0
	fake := &fakeSessions{step: func(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
		got, _ := metadata.FromIncomingContext(stream.Context())
		mutex.Lock()
		streams++
		mutex.Unlock()
		return answerSteps(stream, func() error {
			mutex.Lock()
			defer mutex.Unlock()
			callers = append(callers, strings.Join(append(got.Get("authorization"), got.Get("x-request-id")...), " "))
			return nil
		})
	}}
	session := newFakeSession(t, fake)
	query := filled(1, 1, 1, 2)
	anna := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer anna")
	bert := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer bert")
	must(session.Attend(anna, 0, query, nil))(t)
	must(session.Attend(bert, 0, query, nil))(t)
	must(session.Attend(anna, 0, query, nil))(t)
	must(session.Attend(testContext(t), 0, query, nil))(t)
	// More than are kept: the newest must not find the place taken for ever.
	for i := range 40 {
		must(session.Attend(testContext(t), 0, query, nil, attention.WithHeader("x-request-id", itoa(i))))(t)
	}
	must(session.Attend(testContext(t), 0, query, nil, attention.WithHeader("x-request-id", "39")))(t)
	mutex.Lock()
	defer mutex.Unlock()
	want := []string{"Bearer anna", "Bearer bert", "Bearer anna", ""}
	for i := range 40 {
		want = append(want, itoa(i))
	}
	if want = append(want, "39"); !slices.Equal(callers, want) {
		t.Errorf("got %q, wanted %q", callers, want)
	}
	if streams != 43 {
		t.Errorf("got %d streams, wanted 43", streams)
	}
}

// TestStepsShareAStream, which is opened anew once it has ended between messages.
func TestStepsShareAStream(t *testing.T) {
	for name, c := range map[string]struct {
		end     error
		streams int
		fails   bool
	}{
		"DRAINING":      {withReason(codes.Unavailable, "DRAINING"), 2, false},
		"MEMORY_BUSY":   {withReason(codes.ResourceExhausted, "MEMORY_BUSY"), 2, false},
		"IDLE_TOO_LONG": {withReason(codes.DeadlineExceeded, "IDLE_TOO_LONG"), 2, false},
		"lost":          {status.Error(codes.Unavailable, "lost"), 2, false},
		"INTERNAL":      {withReason(codes.Internal, "INTERNAL"), 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mutex sync.Mutex
			streams := 0
			fake := &fakeSessions{step: func(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
				mutex.Lock()
				streams++
				first := streams == 1
				mutex.Unlock()
				messages := 0
				return answerSteps(stream, func() error {
					if messages++; first && messages == 4 {
						return c.end
					}
					return nil
				})
			}}
			session := newFakeSession(t, fake)
			query := filled(1, 1, 1, 2)
			for i := range 6 {
				_, err := session.Attend(testContext(t), 0, query, nil, attention.WithMaxAttempts(1))
				if wantFail := c.fails && i == 3; (err != nil) != wantFail {
					t.Errorf("message %d: got %v", i, err)
				}
			}
			want := c.streams
			if c.fails {
				want++ // After the failure a stream is opened for the next message.
			}
			mutex.Lock()
			defer mutex.Unlock()
			if streams != want {
				t.Errorf("got %d streams, wanted %d", streams, want)
			}
		})
	}
}

func TestStepsAreCancelled(t *testing.T) {
	ended := make(chan struct{}, 1)
	fake := &fakeSessions{step: func(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
		return answerSteps(stream, func() error {
			<-stream.Context().Done()
			ended <- struct{}{}
			return stream.Context().Err()
		})
	}}
	session := newFakeSession(t, fake)
	for _, c := range []struct {
		timeout time.Duration
		code    codes.Code
	}{{50 * time.Millisecond, codes.DeadlineExceeded}, {0, codes.Canceled}} {
		ctx, cancel := context.WithCancel(context.Background())
		options := []attention.CallOption{}
		if c.timeout > 0 {
			options = append(options, attention.WithTimeout(c.timeout))
		} else {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		_, err := session.Attend(ctx, 0, filled(1, 1, 1, 2), nil, options...)
		if failed := asError(t, err); failed.Code != c.code {
			t.Errorf("got %v, wanted %v", failed, c.code)
		}
		cancel()
		<-ended
	}
}

// TestStepAnswersThatDoNotMatch are errors of the server.
func TestStepAnswersThatDoNotMatch(t *testing.T) {
	f32 := attentionpb.DataType_DATA_TYPE_FLOAT32
	for name, answer := range map[string]*attentionpb.StepResponse{
		"none":  {},
		"two":   {Results: []*attentionpb.StepResult{{}, {}}},
		"empty": {Results: []*attentionpb.StepResult{{}}},
		"shape": {Results: []*attentionpb.StepResult{{Output: &attentionpb.Tensor{DataType: f32, Shape: []int64{2}, Data: make([]byte, 8)}}}},
		"bytes": {Results: []*attentionpb.StepResult{{Output: &attentionpb.Tensor{DataType: f32, Shape: []int64{1, 1, 2}, Data: make([]byte, 7)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeSessions{step: func(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
				for {
					if _, err := stream.Recv(); err != nil {
						return nil
					}
					if err := stream.Send(answer); err != nil {
						return err
					}
				}
			}}
			_, err := newFakeSession(t, fake).Attend(testContext(t), 0, filled(1, 1, 1, 2), nil)
			if failed := asError(t, err); failed.Code != codes.Internal {
				t.Error(failed)
			}
		})
	}
}

// TestItemsOfABatch: those that may be tried again are, without the others.
func TestItemsOfABatch(t *testing.T) {
	details := func(reason string, delay time.Duration) []byte {
		st := must(status.New(codes.ResourceExhausted, "busy").WithDetails(
			&errdetails.ErrorInfo{Reason: reason, Domain: "attention"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}))(t)
		return must(proto.Marshal(st.Proto()))(t)
	}
	var sizes []int
	fake := &fakeSessions{step: func(stream grpc.BidiStreamingServer[attentionpb.StepRequest, attentionpb.StepResponse]) error {
		for {
			request, err := stream.Recv()
			if err != nil {
				return nil
			}
			sizes = append(sizes, len(request.Items))
			response := &attentionpb.StepResponse{}
			for i, item := range request.Items {
				result := &attentionpb.StepResult{Output: item.Query, Length: 5}
				if len(sizes) == 1 && i == 1 {
					result = &attentionpb.StepResult{Code: int32(codes.ResourceExhausted), StatusDetails: details("QUEUE_FULL", time.Millisecond)}
				}
				if len(sizes) == 1 && i == 2 {
					result = &attentionpb.StepResult{Code: int32(codes.Internal), Message: "a bug"}
				}
				response.Results = append(response.Results, result)
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
	}}
	session := newFakeSession(t, fake)
	client := session.Client()
	query := filled(1, 1, 1, 2)
	items := []attention.StepItem{{Session: session, Query: query}, {Session: session, Query: query}, {Session: session, Query: query}, {}}
	results := client.Step(testContext(t), items)
	if !slices.Equal(sizes, []int{3, 1}) {
		t.Errorf("got messages of %v items", sizes)
	}
	if results[0].Err != nil || results[1].Err != nil {
		t.Errorf("got %v and %v", results[0].Err, results[1].Err)
	}
	if asError(t, results[2].Err).Code != codes.Internal || asError(t, results[3].Err).Code != codes.InvalidArgument {
		t.Errorf("got %v and %v", results[2].Err, results[3].Err)
	}
}

func TestLeasesAreRenewed(t *testing.T) {
	t.Parallel()
	client := newServerClient(t)
	config := attention.SessionConfig{KVHeads: 1, HeadSize: 2, Lease: 2 * time.Second}
	kept := must(client.CreateSession(testContext(t), "", config))(t)
	closed := must(client.CreateSession(testContext(t), "", config))(t)
	closed.Close()
	garbage := forgottenSession(t, client, config)
	other := newServerClient(t)
	for begun := time.Now(); time.Since(begun) < 4500*time.Millisecond; time.Sleep(100 * time.Millisecond) {
		runtime.GC()
	}
	if _, err := other.GetSession(testContext(t), kept.ID()); err != nil {
		t.Errorf("a session with a handle: %v", err)
	}
	for name, id := range map[string]string{"closed": closed.ID(), "garbage": garbage} {
		if _, err := other.GetSession(testContext(t), id); err == nil || asError(t, err).Reason != "SESSION_UNKNOWN" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// What is gone is known to be gone, and deleting it is no error.
	if err := closed.Refresh(testContext(t)); asError(t, err).Reason != "SESSION_UNKNOWN" {
		t.Error(err)
	}
	if err := closed.Delete(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := kept.Delete(testContext(t)); err != nil {
		t.Error(err)
	}
}

// forgottenSession is the id of a session whose handle nobody has any more.
//
//go:noinline
func forgottenSession(t *testing.T, client *attention.Client, config attention.SessionConfig) string {
	session := must(client.CreateSession(testContext(t), "", config))(t)
	return session.ID()
}

func TestUsedSessionsAreNotRenewed(t *testing.T) {
	t.Parallel()
	fake := &fakeSessions{lease: 6 * time.Second}
	session := newFakeSession(t, fake)
	token := filled(1, 1, 1, 2)
	for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
		must(session.Append(testContext(t), 0, token, token))(t)
	}
	fake.mutex.Lock()
	defer fake.mutex.Unlock()
	if fake.renewals != 0 {
		t.Errorf("got %d renewals of a session in use", fake.renewals)
	}
}

func TestListing(t *testing.T) {
	address, _ := startServer(t)
	client := newClient(t, address)
	want := []string{}
	for i := range 1005 {
		id := "s" + itoa(10000+i)
		want = append(want, id)
		must(client.CreateSession(testContext(t), id, attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
	}
	got := []string{}
	for info, err := range client.Sessions(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d sessions, wanted %d", len(got), len(want))
	}
	for range client.Sessions(testContext(t)) {
		break // A loop may end early.
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	errors := 0
	for _, err := range client.Sessions(ctx) {
		if asError(t, err).Code == codes.Canceled {
			errors++
		}
	}
	if errors != 1 {
		t.Errorf("got %d errors of a cancelled listing", errors)
	}
}

func TestSessionsOfTheServer(t *testing.T) {
	client := newServerClient(t)
	config := attention.SessionConfig{Layers: 2, KVHeads: 1, HeadSize: 2, RetainWindow: []int64{4}, RollbackTokens: attention.Ptr(int64(0))}
	session := must(client.CreateSession(testContext(t), "", config))(t)
	defer session.Delete(context.Background())
	if got := session.Config(); got.ValueHeadSize != 2 || got.DataType != attention.TypeFloat32 || got.Lease == 0 {
		t.Errorf("got %+v", got)
	}
	// The same id again is the same session; another configuration is refused.
	same := must(client.CreateSession(testContext(t), session.ID(), config))(t)
	if same.Incarnation() != session.Incarnation() {
		t.Error("another session was created")
	}
	config.HeadSize = 4
	if _, err := client.CreateSession(testContext(t), session.ID(), config); asError(t, err).Reason != "SESSION_EXISTS" {
		t.Error(err)
	}
	token := filled(1, 1, 1, 2)
	must(session.Append(testContext(t), 1, token, token))(t)
	if session.Length(0) != 0 || session.Length(1) != 1 || session.Length(2) != -1 {
		t.Errorf("got %v", session.Lengths())
	}
	_, err := session.Attend(testContext(t), 1, token, nil)
	if failed := asError(t, err); failed.Code != codes.InvalidArgument || failed.FieldViolations[0].Field != "items[0].options.window.left" && failed.FieldViolations[0].Field != "options.window.left" {
		t.Errorf("got %v %v", failed, failed.FieldViolations)
	}
	result := must(session.Attend(testContext(t), 1, token, &attention.AttendOptions{
		Options: attention.Options{Window: &attention.Window{Left: 3, Right: attention.Unbounded}, ReturnLogSumExp: true}}))(t)
	if result.Length != 1 || result.LogSumExp.IsZero() {
		t.Errorf("got %+v", result)
	}
	// A handle that is behind does not attend to what it does not know.
	if _, err := same.Attend(testContext(t), 1, token, &attention.AttendOptions{
		Options: attention.Options{Window: &attention.Window{Left: 3, Right: attention.Unbounded}}}); asError(t, err).Reason != "LENGTH_CONFLICT" {
		t.Error(err)
	}
	forks := must(client.ForkSessions(testContext(t), []attention.Fork{{Source: session}, {Source: session, Target: session.ID() + "-b"}}))(t)
	for _, fork := range forks {
		if fork.Length(1) != 1 {
			t.Errorf("got %v", fork.Lengths())
		}
		if err := fork.Delete(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	if err := client.DeleteSession(testContext(t), "nobody"); err != nil {
		t.Error(err)
	}
}

// TestServerThatDrains ends idle streams; the next step says so, or finds another
// server.
func TestServerThatDrains(t *testing.T) {
	address, process := startServer(t)
	client := newClient(t, address)
	session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
	token := filled(1, 1, 1, 2)
	must(session.Step(testContext(t), 0, token, token, token, nil))(t)
	signal(t, process, syscall.SIGTERM)
	waitGone(t, client)
	begun := time.Now()
	_, err := session.Step(testContext(t), 0, token, token, token, nil)
	if failed := asError(t, err); failed.Code != codes.Unavailable || time.Since(begun) > 10*time.Second {
		t.Errorf("got %v after %v", failed, time.Since(begun))
	}
}
