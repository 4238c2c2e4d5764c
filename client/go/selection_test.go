package attention_test

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// selection is three rows' lists of keys, and the mask that says the same.
func selection(keys int) (indices, mask, bits attention.Tensor) {
	lists := []int32{0, int32(keys - 1), -1, 2, 2, 1, -1, -1, -1}
	seen := make([]bool, 3*keys)
	packed := make([]byte, (3*keys+7)/8)
	for i, key := range lists {
		if key >= 0 {
			at := i/3*keys + int(key)
			seen[at] = true
			packed[at/8] |= 1 << (at % 8)
		}
	}
	return attention.Of(lists, 3, 3), attention.Of(seen, 3, keys), attention.OfBytes(attention.TypeBits, packed, 3, keys)
}

func sameAnswers(t *testing.T, name string, got, want attention.Tensor) {
	t.Helper()
	if got.IsZero() || !slices.Equal(got.Shape(), want.Shape()) || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%s: got %v %v, wanted %v %v", name, got, got.Float32s(), want, want.Float32s())
	}
}

// TestSelectedKeysOfSessions compares indices with the mask that says the same, and the
// sinks of rows with those of heads.
func TestSelectedKeysOfSessions(t *testing.T) {
	client := newServerClient(t)
	session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 4}))(t)
	must(session.Append(testContext(t), 0, filled(1, 1, 6, 4), filled(2, 1, 6, 4)))(t)
	query := filled(3, 2, 3, 4)
	attend := func(options attention.AttendOptions) attention.Tensor {
		t.Helper()
		options.NotCausal = true
		return must(session.Attend(testContext(t), 0, query, &options))(t).Output
	}
	indices, mask, bits := selection(6)
	all := attend(attention.AttendOptions{})
	masked := attend(attention.AttendOptions{Mask: mask})
	if bytes.Equal(all.Bytes(), masked.Bytes()) {
		t.Error("the mask hides nothing")
	}
	sameAnswers(t, "indices", attend(attention.AttendOptions{Indices: indices}), masked)
	sameAnswers(t, "bits", attend(attention.AttendOptions{Mask: bits}), masked)
	sinks := attention.Options{Sinks: []float64{0.5, -1}}
	rowSinks := attention.Of([]float32{0.5, 0.5, 0.5, -1, -1, -1}, 2, 3)
	sameAnswers(t, "sinks",
		attend(attention.AttendOptions{Indices: indices, RowSinks: rowSinks}), attend(attention.AttendOptions{Options: sinks, Mask: mask}))

	_, err := session.Attend(testContext(t), 0, query, &attention.AttendOptions{Indices: attention.Of([]int64{6}, 1, 1)})
	(&wantedError{Code: "INVALID_ARGUMENT", Reason: "INVALID_FIELD"}).check(t, err)

	// A step appends a token, and sees it and the first one.
	key, value := filled(4, 1, 1, 4), filled(5, 1, 1, 4)
	one := filled(6, 2, 1, 4)
	stepped := must(session.Step(testContext(t), 0, key, value, one, &attention.AttendOptions{Indices: attention.Of([]int64{6, 0}, 1, 2)}))(t)
	want := must(session.Attend(testContext(t), 0, one, &attention.AttendOptions{
		Mask: attention.Of([]bool{true, false, false, false, false, false, true}, 1, 7)}))(t)
	sameAnswers(t, "step", stepped.Output, want.Output)
	if err := session.Delete(testContext(t)); err != nil {
		t.Error(err)
	}
}

// selecting is a request that is sent as a stream.
func selecting(keys int) *attention.Request {
	return &attention.Request{
		Query: filled(1, 1, 2, 3, 64), Key: filled(2, 1, 1, keys, 64), Value: filled(3, 1, 1, keys, 64),
		Options: attention.Options{ReturnLogSumExp: true},
	}
}

// TestSelectedKeysOfStreams: the same bits whether sent as a stream or as one message.
func TestSelectedKeysOfStreams(t *testing.T) {
	const keys = 9000
	streaming := newServerClient(t)
	whole := newServerClient(t, attention.WithoutStreams())
	indices, mask, bits := selection(keys)
	request := selecting(keys)
	request.RowSinks = attention.Of([]float32{0.5, 0.5, 0.5, -1, -1, -1}, 1, 2, 3)
	request.Mask = mask
	want := must(whole.Compute(testContext(t), request))(t)
	for _, client := range []*attention.Client{streaming, whole} {
		request := selecting(keys)
		request.Indices, request.Sinks = indices, []float64{0.5, -1}
		got := must(client.Compute(testContext(t), request))(t)
		sameAnswers(t, "indices", got.Output, want.Output)
		sameAnswers(t, "indices", got.LogSumExp, want.LogSumExp)
		request = selecting(keys)
		request.Mask, request.RowSinks = bits, attention.Of([]float32{0.5, 0.5, 0.5, -1, -1, -1}, 1, 2, 3)
		got = must(client.Compute(testContext(t), request))(t)
		sameAnswers(t, "bits", got.Output, want.Output)
	}
}

// TestHeadersOfStreams have the whole of indices and sinks. A mask of bits is in no
// stream, and neither makes a request that is small a stream.
func TestHeadersOfStreams(t *testing.T) {
	var header *attentionpb.ComputeAttentionRequest
	fake := &fakeAttention{stream: func(stream grpc.BidiStreamingServer[attentionpb.StreamAttentionRequest, attentionpb.StreamAttentionResponse]) error {
		first, err := stream.Recv()
		if err != nil {
			return err
		}
		header = proto.CloneOf(first.GetHeader())
		for err == nil {
			_, err = stream.Recv()
		}
		if err != io.EOF {
			return err
		}
		return status.Error(codes.FailedPrecondition, "seen")
	}}
	client := newClient(t, serveFake(t, fake, nil))
	indices, _, bits := selection(9000)
	request := selecting(9000)
	request.Indices, request.RowSinks = indices, filled(4, 1, 2, 3)
	if _, err := client.Compute(testContext(t), request); asError(t, err).Message != "seen" {
		t.Fatal(err)
	}
	if !bytes.Equal(header.GetIndices().GetData(), indices.Bytes()) || !bytes.Equal(header.GetSinks().GetData(), request.RowSinks.Bytes()) ||
		header.GetIndices().GetDataType() != attention.TypeInt32 || !slices.Equal(header.GetSinks().GetShape(), []int64{1, 2, 3}) {
		t.Errorf("got indices %v and sinks %v", header.GetIndices(), header.GetSinks())
	}
	if len(header.GetKey().GetData()) > 0 {
		t.Error("the header has keys")
	}
	request = selecting(9000)
	request.Mask = bits
	small := selecting(9)
	small.Indices = attention.OfBytes(attention.TypeInt32, make([]byte, 8<<20), 1, 3, 8<<20/12)
	for _, whole := range []*attention.Request{request, small} {
		whole.ReturnLogSumExp = false
		must(client.Compute(testContext(t), whole))(t)
	}
	if fake.streams.Load() != 1 || fake.whole.Load() != 2 {
		t.Errorf("got %d streams and %d messages", fake.streams.Load(), fake.whole.Load())
	}
}
