package attention

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// cut lays data into buffers of a few bytes.
func cut(data []byte, size int) mem.BufferSlice {
	var buffers mem.BufferSlice
	for chunk := range slices.Chunk(data, size) {
		buffers = append(buffers, mem.SliceBuffer(chunk))
	}
	return buffers
}

func sameTensor(t *testing.T, name string, got Tensor, want *attentionpb.Tensor) {
	t.Helper()
	if want == nil {
		if !got.IsZero() {
			t.Errorf("%s: got %v, wanted none", name, got)
		}
		return
	}
	var shape []int64
	for _, length := range got.shape {
		shape = append(shape, int64(length))
	}
	if got.IsZero() || got.dataType != want.DataType || !slices.Equal(shape, want.Shape) || !bytes.Equal(got.data, want.Data) {
		t.Errorf("%s: got %v %x, wanted %v", name, got, got.data, want)
	}
}

// FuzzComputeAnswer: what this package reads, protobuf reads too, and both have read
// the same.
func FuzzComputeAnswer(f *testing.F) {
	seeds := []*attentionpb.ComputeAttentionResponse{
		{},
		{Output: &attentionpb.Tensor{DataType: TypeFloat32, Shape: []int64{1, 2}, Data: make([]byte, 8)}, Timing: &attentionpb.Timing{QueueUs: 3}},
		{Output: &attentionpb.Tensor{Shape: []int64{-1, 1 << 40}}, LogSumExp: &attentionpb.Tensor{FloatValues: []float32{1}},
			Scores: &attentionpb.Tensor{}, PresentKey: &attentionpb.Tensor{DataType: TypeBFloat16}},
	}
	for _, seed := range seeds {
		data, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint8(3))
	}
	f.Add([]byte{0x0a, 0x02, 0x10, 0x05}, uint8(1))                         // A shape that is not packed.
	f.Add([]byte{0x0a, 0x02, 0x08, 0x01, 0x0a, 0x02, 0x10, 0x05}, uint8(2)) // A tensor in two fields.
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, uint8(1))             // Longer than the message.
	f.Add([]byte{0x7b, 0x7c}, uint8(1))                                     // A group.
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		var answer computeAnswer
		err := answer.decode(newReader(cut(data, int(size)%64+1)))
		var want attentionpb.ComputeAttentionResponse
		wantErr := proto.Unmarshal(data, &want)
		if err != nil {
			// Protobuf takes what is no message of ours, such as fields of another type.
			if wantErr == nil {
				t.Fatalf("got %v of what protobuf reads: %x", err, data)
			}
			return
		}
		if wantErr != nil {
			t.Fatalf("read what protobuf does not (%v): %x", wantErr, data)
		}
		sameTensor(t, "output", answer.Output, want.Output)
		sameTensor(t, "log_sum_exp", answer.LogSumExp, want.LogSumExp)
		sameTensor(t, "scores", answer.Scores, want.Scores)
		sameTensor(t, "present_key", answer.PresentKey, want.PresentKey)
		sameTensor(t, "present_value", answer.PresentValue, want.PresentValue)
		if answer.Timing != timingOf(want.Timing) {
			t.Errorf("timing: got %v, wanted %v", answer.Timing, want.Timing)
		}
	})
}

// FuzzStepAnswer likewise. Text that is not UTF-8 is read here.
func FuzzStepAnswer(f *testing.F) {
	data, err := proto.Marshal(&attentionpb.StepResponse{
		Results: []*attentionpb.StepResult{
			{Output: &attentionpb.Tensor{DataType: TypeFloat16, Shape: []int64{1}, Data: []byte{1, 2}}, Length: 7},
			{Code: 10, Message: "no", StatusDetails: []byte{8, 10}},
		},
		Timing: &attentionpb.Timing{ComputeUs: 5},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, uint8(5))
	f.Add([]byte{0x0a, 0x02, 0x38, 0x80}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		var answer stepResponse
		err := answer.decode(newReader(cut(data, int(size)%64+1)))
		var want attentionpb.StepResponse
		wantErr := proto.Unmarshal(data, &want)
		if (err == nil) != (wantErr == nil) && (wantErr == nil || !strings.Contains(wantErr.Error(), "UTF-8")) {
			t.Fatalf("got %v, protobuf %v: %x", err, wantErr, data)
		}
		if err != nil || wantErr != nil {
			return
		}
		if len(answer.results) != len(want.Results) {
			t.Fatalf("got %d results, wanted %d", len(answer.results), len(want.Results))
		}
		for i, result := range want.Results {
			got := &answer.results[i]
			sameTensor(t, "output", got.result.Output, result.Output)
			if got.result.Length != result.Length || (got.failed == nil) != (result.Code == 0) {
				t.Errorf("got %+v, wanted %v", got, result)
			}
		}
	})
}

// TestRequestsAreProtobuf: what is written by hand reads as the message that it is.
func TestRequestsAreProtobuf(t *testing.T) {
	large := make([]float32, 5000)
	for i := range large {
		large[i] = float32(i)
	}
	request := &Request{
		Query: Of([]float32{1, 2}, 1, 2), Key: Of(large, 2500, 2), Value: Of(large, 2500, 2),
		Mask:         Of([]bool{true, false}, 2),
		ValidLengths: []int64{3},
		Options:      Options{Scale: Ptr(0.5), Window: &Window{Left: 3, Right: Unbounded}, Sinks: []float64{1}},
	}
	message := &writer{}
	if err := request.write(message, false); err != nil {
		t.Fatal(err)
	}
	out := message.finish()
	if out.lease == nil {
		t.Error("nothing was lent of 20 KB")
	}
	data := out.take().Materialize()
	if len(data) != message.bytes {
		t.Errorf("got %d bytes, said %d", len(data), message.bytes)
	}
	var got attentionpb.ComputeAttentionRequest
	if err := proto.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	wire := func(t Tensor) *attentionpb.Tensor {
		m := &attentionpb.Tensor{DataType: t.dataType, Data: t.data}
		for _, length := range t.shape {
			m.Shape = append(m.Shape, int64(length))
		}
		return m
	}
	want := &attentionpb.ComputeAttentionRequest{
		Query: wire(request.Query), Key: wire(request.Key), Value: wire(request.Value), Mask: wire(request.Mask),
		ValidLengths: []int64{3},
		Options: &attentionpb.AttentionOptions{
			Scale: Ptr(0.5), Window: &attentionpb.Window{Left: Ptr(int64(3)), Right: Ptr(int64(-1))}, Sinks: []float64{1},
		},
	}
	if !proto.Equal(&got, want) {
		t.Errorf("got %v", &got)
	}
}

// TestEveryOptionIsReachable: no field of the messages was forgotten.
func TestEveryOptionIsReachable(t *testing.T) {
	options := Options{
		Layout: LayoutPacked, QueryHeads: 1, KVHeads: 1, Scale: Ptr(1.0), SoftCap: 1, Causal: CausalTopLeft,
		Window: &Window{1, 1}, ChunkSize: 1, ALiBiSlopes: []float64{1}, Sinks: []float64{1}, MathMode: MathFast,
		SoftmaxPrecision: TypeFloat64, ReturnLogSumExp: true, ReturnScores: ScoresRaw, ReturnPresent: true,
	}
	message := options.message().ProtoReflect()
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		if !message.Has(fields.Get(i)) {
			t.Errorf("%s cannot be set", fields.Get(i).Name())
		}
	}
	config := SessionConfig{
		Layers: 1, KVHeads: 1, HeadSize: 1, ValueHeadSize: 1, DataType: TypeInt8, ValueIsKeyPrefix: true,
		Lease: 1, RetainWindow: []int64{1}, RollbackTokens: Ptr(int64(0)),
	}
	message = config.message().ProtoReflect()
	fields = message.Descriptor().Fields()
	for i := range fields.Len() {
		if !message.Has(fields.Get(i)) {
			t.Errorf("%s cannot be set", fields.Get(i).Name())
		}
	}
}

// TestChunksAreTheTensors joins the messages of a stream again.
func TestChunksAreTheTensors(t *testing.T) {
	const heads, past, fresh, size = 3, 700, 1500, 64
	numbers := func(n int) []float32 {
		made := make([]float32, n)
		for i := range made {
			made[i] = float32(i)
		}
		return made
	}
	for _, layout := range []Layout{LayoutBHSD, LayoutBSHD} {
		shape, queryShape := []int{1, heads, fresh, size}, []int{1, heads, 1, size}
		if layout == LayoutBSHD {
			shape, queryShape = []int{1, fresh, heads, size}, []int{1, 1, heads, size}
		}
		pastShape := []int{1, heads, past, size}
		request := &Request{
			Query: Of(numbers(heads*size), queryShape...),
			Key:   Of(numbers(heads*fresh*size), shape...), Value: Of(numbers(heads*fresh*size), shape...),
			PastKey: Of(numbers(heads*past*size), pastShape...), PastValue: Of(numbers(heads*past*size), pastShape...),
			Mask:    Of(make([]bool, past+fresh-10), past+fresh-10),
			Options: Options{Layout: layout},
		}
		chunks := chunksOf(request)
		if chunks == nil {
			t.Fatalf("%v: not cut", layout)
		}
		tokens, maskColumns, messages := 0, 0, 0
		at := func(token, head, column int) float32 {
			if token < past {
				return float32((head*past+token)*size + column)
			}
			if layout == LayoutBSHD {
				return float32(((token-past)*heads+head)*size + column)
			}
			return float32((head*fresh+token-past)*size + column)
		}
		for message := chunks.following(); message != nil; message = chunks.following() {
			messages++
			var got attentionpb.StreamAttentionRequest
			if err := proto.Unmarshal(message.finish().take().Materialize(), &got); err != nil {
				t.Fatal(err)
			}
			if proto.Size(&got) > chunkBytes+chunkBytes/8 {
				t.Errorf("a chunk of %d bytes", proto.Size(&got))
			}
			key := got.GetChunk().GetKey()
			n := int(key.GetShape()[chunks.lengthAxis])
			for token := range n {
				for head := range heads {
					index := (head*n + token) * size
					if layout == LayoutBSHD {
						index = (token*heads + head) * size
					}
					value := math.Float32frombits(binary.LittleEndian.Uint32(key.GetData()[4*(index+5):]))
					if want := at(tokens+token, head, 5); value != want {
						t.Fatalf("%v: token %d head %d: got %v, wanted %v", layout, tokens+token, head, value, want)
					}
				}
			}
			tokens += n
			if mask := got.GetChunk().GetMask(); mask != nil {
				maskColumns += int(mask.GetShape()[0])
			}
		}
		if tokens != past+fresh || maskColumns != past+fresh-10 || messages < 2 {
			t.Errorf("%v: got %d tokens and %d columns of the mask in %d messages", layout, tokens, maskColumns, messages)
		}
	}
}

func TestBytesOfBits(t *testing.T) {
	for _, c := range []struct {
		shape []int
		want  int
		ok    bool
	}{
		{[]int{3, 5}, 2, true}, {[]int{16}, 2, true}, {[]int{17}, 3, true}, {nil, 1, true}, {[]int{0, math.MaxInt}, 0, true},
		{[]int{math.MaxInt}, 1 << 60, true}, {[]int{math.MaxInt, 2}, 0, false}, {[]int{-8}, 0, false},
	} {
		if bytes, ok := bytesOfShape(TypeBits, c.shape); bytes != c.want || ok != c.ok {
			t.Errorf("%v: got %d, %v", c.shape, bytes, ok)
		}
	}
}

// TestShapesThatOverflow are sent as they are: nothing is computed from them here.
func TestShapesThatOverflow(t *testing.T) {
	huge := OfBytes(TypeFloat32, make([]byte, 64), math.MaxInt, math.MaxInt)
	for _, shape := range [][]int{{math.MaxInt, 4}, {-1, 4}, {1 << 40, 1 << 40}, {0, math.MaxInt}} {
		bad := OfBytes(TypeFloat32, make([]byte, 5<<20), shape...)
		if chunksOf(&Request{Query: bad, Key: bad, Value: bad}) != nil {
			t.Errorf("%v was cut", shape)
		}
		if pieces := piecesOf(bad, bad); len(pieces) != 1 {
			t.Errorf("%v was cut into %d pieces", shape, len(pieces))
		}
	}
	if huge.fits() {
		t.Error("64 bytes fit a shape that overflows")
	}
}

func TestPiecesOfAppends(t *testing.T) {
	key := Of(make([]float32, 8*5000*128), 8, 5000, 128)
	pieces := piecesOf(key, key)
	next := 0
	for _, piece := range pieces {
		if piece.begin != next || piece.key.shape[1] != piece.end-piece.begin {
			t.Errorf("got piece [%d, %d) of shape %v after %d", piece.begin, piece.end, piece.key.shape, next)
		}
		bytes := 0
		for _, run := range slices.Concat(piece.key.runs, piece.value.runs) {
			bytes += len(run)
		}
		if bytes > appendBytes {
			t.Errorf("a piece of %d bytes", bytes)
		}
		next = piece.end
	}
	if next != 5000 || len(pieces) < 2 {
		t.Errorf("got %d tokens in %d pieces", next, len(pieces))
	}
}

func TestTrailers(t *testing.T) {
	for text, want := range map[string]struct {
		ms    int64
		told  bool
		never bool
	}{
		"0":                    {0, true, false},
		"40":                   {40, true, false},
		"-1":                   {0, false, true},
		"":                     {0, false, true},
		"soon":                 {0, false, true},
		"1.5":                  {0, false, true},
		"9223372036854775807":  {math.MaxInt64 / 1000000, true, false},
		"92233720368547758070": {0, false, true},
	} {
		e := failure(codes.ResourceExhausted, "").withDelay(time.Hour) // Of RetryInfo.
		e.readTrailer(metadata.Pairs("grpc-retry-pushback-ms", text))
		delay, told := e.RetryDelay()
		if told != want.told || e.neverRetry != want.never || told && delay.Milliseconds() != want.ms {
			t.Errorf("%q: got %v, %v, never %v", text, delay, told, e.neverRetry)
		}
	}
}

func TestTargets(t *testing.T) {
	for target, remote := range map[string]bool{
		"127.0.0.1:50051": false, "[::1]:50051": false, "localhost:1": false, "unix:/run/a": false, "dns:///name:1": false,
		"unix-abstract:name": false, "127.3.2.1": false, "[::ffff:127.0.0.1]:1": false,
		"192.0.2.1:50051": true, "dns:///192.0.2.1:50051": true, "[2001:db8::1]:443": true, "passthrough:///10.0.0.1:1": true,
	} {
		if got := isRemote(target); got != remote {
			t.Errorf("%s: got %v, wanted %v", target, got, remote)
		}
	}
}

func TestTokens(t *testing.T) {
	for token, want := range map[string]bool{
		"abc": true, "a-b._~+/9==": true, "": false, "=": false, "a b": false, "a=b": false, "a\n": false, "ä": false,
		strings.Repeat("a", 4096): true, strings.Repeat("a", 4097): false,
	} {
		if isToken(token) != want {
			t.Errorf("%.20q: got %v, wanted %v", token, !want, want)
		}
	}
}

// TestBigEndianMachines: there elements are copied, and the bytes are those of the
// wire.
func TestBigEndianMachines(t *testing.T) {
	if !littleEndian {
		t.Skip("this is one: all other tests are this test")
	}
	littleEndian = false
	defer func() { littleEndian = true }()
	// This machine's bytes, which such a machine would have the other way round.
	tensor := Of([]int32{0x01020304, 5}, 2)
	if want := []byte{1, 2, 3, 4, 0, 0, 0, 5}; !bytes.Equal(tensor.Bytes(), want) {
		t.Errorf("got %x, wanted %x", tensor.Bytes(), want)
	}
	back, err := Elements[int32](tensor)
	if err != nil || !slices.Equal(back, []int32{0x01020304, 5}) {
		t.Errorf("got %x, %v", back, err)
	}
	if floats := Of([]float32{1.5}, 1).Float32s(); floats[0] != 1.5 {
		t.Errorf("got %v", floats)
	}
}
