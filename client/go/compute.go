package attention

import (
	"context"
	"math"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// Layout is how the axes of query, key, value and output are laid out.
type Layout = attentionpb.Layout

// The layouts. By default the rank of the query chooses: 2 is matrix, 3 packed, 4
// BHSD.
const (
	LayoutByRank = attentionpb.Layout_LAYOUT_UNSPECIFIED
	// LayoutMatrix: query (S, D), key (L, D), value (L, Dv).
	LayoutMatrix = attentionpb.Layout_LAYOUT_MATRIX
	// LayoutPacked: query (B, S, Hq*D), key (B, L, Hkv*D), value (B, L, Hkv*Dv).
	// QueryHeads and KVHeads must be given.
	LayoutPacked = attentionpb.Layout_LAYOUT_PACKED
	// LayoutBHSD: query (B, Hq, S, D), key (B, Hkv, L, D), value (B, Hkv, L, Dv).
	LayoutBHSD = attentionpb.Layout_LAYOUT_BHSD
	// LayoutBSHD: query (B, S, Hq, D), key (B, L, Hkv, D), value (B, L, Hkv, Dv).
	LayoutBSHD = attentionpb.Layout_LAYOUT_BSHD
	// LayoutRagged: query (sum S, Hq, D), key (sum L, Hkv, D), value (sum L, Hkv, Dv),
	// with QueryStarts and KeyStarts.
	LayoutRagged = attentionpb.Layout_LAYOUT_RAGGED
)

// Causal is which keys a causal mask lets a query see.
type Causal = attentionpb.Causal

// The causal masks.
const (
	CausalNone = attentionpb.Causal_CAUSAL_UNSPECIFIED
	// CausalTopLeft: the first query sees the first key (after the past). ONNX's and
	// PyTorch's is_causal.
	CausalTopLeft = attentionpb.Causal_CAUSAL_TOP_LEFT
	// CausalBottomRight: the last query sees the last key. FlashAttention's.
	CausalBottomRight = attentionpb.Causal_CAUSAL_BOTTOM_RIGHT
)

// MathMode is what the arithmetic promises.
type MathMode = attentionpb.MathMode

// The modes. MathFast may use what the CPU has to multiply bfloat16: the same bits on
// the same CPU model only.
const (
	MathReproducible = attentionpb.MathMode_MATH_MODE_REPRODUCIBLE
	MathFast         = attentionpb.MathMode_MATH_MODE_FAST
)

// Scores is a stage of the computation to return.
type Scores = attentionpb.Scores

// The stages.
const (
	ScoresNone    = attentionpb.Scores_SCORES_UNSPECIFIED
	ScoresRaw     = attentionpb.Scores_SCORES_RAW
	ScoresCapped  = attentionpb.Scores_SCORES_CAPPED
	ScoresBiased  = attentionpb.Scores_SCORES_BIASED
	ScoresWeights = attentionpb.Scores_SCORES_WEIGHTS
)

// Unbounded is a side of a [Window] without an end.
const Unbounded = -1

// Window limits the keys that a query sees to those around its own position, which is
// not counted: Left before it and Right after it. A side may be [Unbounded].
type Window struct {
	Left, Right int
}

// Options say what to compute. The zero value means every default.
type Options struct {
	// Layout of the tensors. Default: by the rank of the query.
	Layout Layout
	// QueryHeads and KVHeads are needed with LayoutPacked; elsewhere 0 or what the
	// shapes say.
	QueryHeads, KVHeads int
	// Scale is the factor of the dot products. Default: 1 / sqrt(D). See [Ptr].
	Scale *float64
	// SoftCap of the scores, >= 0; 0 is none.
	SoftCap float64
	// Causal mask. Default: none; over sessions CausalBottomRight.
	Causal Causal
	// Window around each query's position. Default: unbounded on both sides.
	Window *Window
	// ChunkSize lets a query see the keys of its own chunk of so many positions only;
	// 0 is none.
	ChunkSize int
	// ALiBiSlopes are Hq slopes; empty is none.
	ALiBiSlopes []float64
	// Sinks are Hq extra logits without a value; empty is none. One for each row is
	// RowSinks in [Request] and [AttendOptions].
	Sinks []float64
	// MathMode defaults to MathReproducible.
	MathMode MathMode
	// SoftmaxPrecision is the least precision of scores, softmax and sums. Default:
	// float32, or float64 where a tensor is float64.
	SoftmaxPrecision DataType
	// ReturnLogSumExp asks for Result.LogSumExp.
	ReturnLogSumExp bool
	// ReturnScores asks for Result.Scores: B*Hq*S*T elements.
	ReturnScores Scores
	// ReturnPresent asks for Result.PresentKey and PresentValue.
	ReturnPresent bool
}

// Ptr is a pointer to a copy of value, for options such as Scale.
func Ptr[T any](value T) *T { return &value }

func (o *Options) message() *attentionpb.AttentionOptions {
	if o.isZero() {
		return nil
	}
	m := &attentionpb.AttentionOptions{
		Layout:           o.Layout,
		QueryHeads:       int64(o.QueryHeads),
		KvHeads:          int64(o.KVHeads),
		Scale:            o.Scale,
		Softcap:          o.SoftCap,
		Causal:           o.Causal,
		ChunkSize:        int64(o.ChunkSize),
		AlibiSlopes:      o.ALiBiSlopes,
		Sinks:            o.Sinks,
		MathMode:         o.MathMode,
		SoftmaxPrecision: o.SoftmaxPrecision,
		ReturnLogSumExp:  o.ReturnLogSumExp,
		ReturnScores:     o.ReturnScores,
		ReturnPresent:    o.ReturnPresent,
	}
	if o.Window != nil {
		m.Window = &attentionpb.Window{Left: Ptr(int64(o.Window.Left)), Right: Ptr(int64(o.Window.Right))}
	}
	return m
}

func (o *Options) isZero() bool {
	return o.Layout == 0 && o.QueryHeads == 0 && o.KVHeads == 0 && o.Scale == nil && o.SoftCap == 0 && o.Causal == 0 &&
		o.Window == nil && o.ChunkSize == 0 && len(o.ALiBiSlopes) == 0 && len(o.Sinks) == 0 && o.MathMode == 0 &&
		o.SoftmaxPrecision == 0 && !o.ReturnLogSumExp && o.ReturnScores == 0 && !o.ReturnPresent
}

// Request is the tensors and options of one computation, by the rules of
// ComputeAttentionRequest in attention.proto. Tensors may lend their memory: the
// package's documentation says for how long.
type Request struct {
	Query, Key, Value Tensor
	// Mask of booleans: true attends. So do the ones of [TypeBits]. A mask of numbers,
	// integers too, is added to the scores. Broadcast to (B, Hq, S, T).
	Mask Tensor
	// PastKey (B, Hkv, P, D) and PastValue (B, Hkv, P, Dv) come before Key and Value:
	// both or neither.
	PastKey, PastValue Tensor
	// Indices of int32 or int64 are the keys that each query sees, of those that all
	// else lets it see; no other key is read. (B, S, k), or (B, Hq, S, k) for each query
	// head; (S, k) where B is 1; with LayoutRagged (sum S, k) or (sum S, Hq, k). They
	// count from the first key, the past ones first, and -1 is none.
	Indices Tensor
	// RowSinks are extra logits of floats, one for each row, in place of Sinks:
	// (B, Hq, S), with LayoutMatrix (S) too, with LayoutRagged (sum S, Hq).
	RowSinks Tensor
	// ValidLengths masks the keys of batch b from ValidLengths[b] on.
	ValidLengths []int64
	// QueryStarts and KeyStarts are B + 1 numbers each, with LayoutRagged.
	QueryStarts, KeyStarts []int64
	Options
}

// Result is the answer to one computation. What was not asked for is no tensor
// ([Tensor.IsZero]).
type Result struct {
	// Output has the query's type, and the shape that the layout says.
	Output Tensor
	// LogSumExp (B, Hq, S): the natural log of the softmax's denominator.
	LogSumExp Tensor
	// Scores (B, Hq, S, T): the stage that was asked for.
	Scores Tensor
	// PresentKey and PresentValue (B, Hkv, T, D or Dv): past and new ones joined.
	PresentKey, PresentValue Tensor
	Timing                   Timing
}

const computeMethod = attentionpb.AttentionService_ComputeAttention_FullMethodName

// The largest message that gRPC sends, and what its small fields may take of it; and
// what they mostly take.
const (
	largestMessage = math.MaxInt32
	smallFields    = 1 << 20
	smallRequest   = 512
)

// Compute computes attention. It is free of side effects, so that trying it again is
// always safe.
//
// A request with more than 4 MiB of keys and values for few query rows, as in
// decoding, is sent in pieces and computed meanwhile, unless it asks for scores or
// present keys, is ragged, or has a mask of [TypeBits]. That changes nothing else: the answer has the same
// bits, and errors name the same fields.
func (c *Client) Compute(ctx context.Context, request *Request, options ...CallOption) (*Result, error) {
	if request == nil {
		return nil, c.named(newError(codes.InvalidArgument, "", "request: got nil"))
	}
	ctx, cancel, config := c.prepare(ctx, options)
	defer cancel()
	var result *Result
	streams := !c.config.noStreams
	failed := retry(ctx, newRetrier(repeatable, config.maxAttempts), func() *Error {
		var failed *Error
		if chunks := c.chunksToStream(request, streams); chunks != nil {
			if result, failed = c.stream(ctx, request, chunks, config); failed == nil {
				return nil
			}
			if failed.saysNoStreams() {
				c.knowsNoStreams.Store(true)
			}
			if !failed.mayTakeOneMessage() || request.bytes() > largestMessage-smallFields {
				return failed
			}
			streams = false
		}
		result, failed = c.computeOnce(ctx, request)
		return failed
	})
	if failed != nil {
		return nil, c.named(failed)
	}
	return result, nil
}

func (c *Client) computeOnce(ctx context.Context, request *Request) (*Result, *Error) {
	if bytes := request.bytes(); bytes > largestMessage-smallFields {
		return nil, newError(codes.InvalidArgument, "",
			"the tensors take %d bytes, more than a message can hold (2 GiB): split the request by batch or head", bytes)
	}
	message := &writer{}
	if bytes := request.bytes(); bytes < 4*leastLent {
		message.reserve(bytes + smallRequest)
	}
	if err := request.write(message, false); err != nil {
		return nil, newError(codes.InvalidArgument, "", "%v", err)
	}
	var answer computeAnswer
	if failed := c.send(ctx, computeMethod, message, &answer, c.sizeHeaders(message.bytes)...); failed != nil {
		return nil, failed
	}
	if failed := request.check(&answer.Result); failed != nil {
		return nil, failed
	}
	return &answer.Result, nil
}

// Of ComputeAttentionRequest.
const (
	requestQuery     protowire.Number = 1
	requestKey       protowire.Number = 2
	requestValue     protowire.Number = 3
	requestMask      protowire.Number = 4
	requestPastKey   protowire.Number = 5
	requestPastValue protowire.Number = 6
	requestIndices   protowire.Number = 12
	requestSinks     protowire.Number = 13
)

// write encodes the request; as a stream's header without the elements of what comes
// in chunks.
func (q *Request) write(w *writer, asHeader bool) error {
	add := func(field protowire.Number, t Tensor) {
		if asHeader && !t.IsZero() {
			t = Tensor{dataType: t.dataType, shape: t.shape}
		}
		w.optionalTensor(field, t)
	}
	w.optionalTensor(requestQuery, q.Query)
	add(requestKey, q.Key)
	add(requestValue, q.Value)
	add(requestMask, q.Mask)
	add(requestPastKey, q.PastKey)
	add(requestPastValue, q.PastValue)
	w.optionalTensor(requestIndices, q.Indices)
	w.optionalTensor(requestSinks, q.RowSinks)
	return w.fields(&attentionpb.ComputeAttentionRequest{
		ValidLengths: q.ValidLengths,
		QueryStarts:  q.QueryStarts,
		KeyStarts:    q.KeyStarts,
		Options:      q.Options.message(),
	})
}

// bytes of all tensors.
func (q *Request) bytes() int {
	return len(q.Query.data) + q.keyBytes() + len(q.Indices.data) + len(q.RowSinks.data)
}

// keyBytes are those of the tensors that a stream cuts along the keys.
func (q *Request) keyBytes() int {
	return len(q.Key.data) + len(q.Value.data) + len(q.Mask.data) + len(q.PastKey.data) + len(q.PastValue.data)
}

// check tells whether an answer can be one to this request.
func (q *Request) check(result *Result) *Error {
	if result.Output.IsZero() {
		return malformed("no output")
	}
	if want := q.outputShape(); result.Output.dataType != q.Query.dataType || want != nil && !slices.Equal(result.Output.shape, want) {
		return malformed("output: got %v, wanted %s %v", result.Output, typeName(q.Query.dataType), want)
	}
	for _, asked := range []struct {
		name   string
		tensor Tensor
		wanted bool
	}{
		{"output", result.Output, true},
		{"log_sum_exp", result.LogSumExp, q.ReturnLogSumExp},
		{"scores", result.Scores, q.ReturnScores != ScoresNone},
		{"present_key", result.PresentKey, q.ReturnPresent},
		{"present_value", result.PresentValue, q.ReturnPresent},
	} {
		if failed := checkTensor(asked.name, asked.tensor, asked.wanted); failed != nil {
			return failed
		}
	}
	return nil
}

func checkTensor(name string, t Tensor, wanted bool) *Error {
	if wanted && t.IsZero() {
		return malformed("no %s", name)
	}
	if !t.IsZero() && (!t.fits() || t.dataType == TypeBits) {
		return malformed("%s: got %d bytes of %v", name, len(t.data), t)
	}
	return nil
}

// outputShape is the output's, or nil where the request must be wrong.
func (q *Request) outputShape() []int {
	if len(q.Query.shape) == 0 || len(q.Value.shape) == 0 {
		return nil
	}
	shape := slices.Clone(q.Query.shape)
	last := len(shape) - 1
	columns := q.Value.shape[len(q.Value.shape)-1]
	if q.layout() == LayoutPacked {
		if q.KVHeads <= 0 || q.QueryHeads <= 0 {
			return nil
		}
		columns = columns / q.KVHeads * q.QueryHeads
	}
	shape[last] = columns
	return shape
}

// layout is what the server makes of the options and the query's rank.
func (q *Request) layout() Layout {
	if q.Layout != LayoutByRank {
		return q.Layout
	}
	switch len(q.Query.shape) {
	case 2:
		return LayoutMatrix
	case 3:
		return LayoutPacked
	case 4:
		return LayoutBHSD
	}
	return LayoutByRank
}

// computeAnswer reads a ComputeAttentionResponse.
type computeAnswer struct{ Result }

func (a *computeAnswer) decode(r *reader) error {
	var timing attentionpb.Timing
	err := r.each(func(field protowire.Number, kind protowire.Type) (bool, error) {
		if kind != protowire.BytesType {
			return false, nil
		}
		switch field {
		case 1:
			return true, r.tensor(&a.Output)
		case 2:
			return true, r.tensor(&a.LogSumExp)
		case 3:
			return true, r.tensor(&a.Scores)
		case 4:
			return true, r.tensor(&a.PresentKey)
		case 5:
			return true, r.tensor(&a.PresentValue)
		case 6:
			return true, r.proto(&timing)
		}
		return false, nil
	})
	a.Timing = timingOf(&timing)
	return err
}

// saysNoStreams is whether a server has not understood what a stream is, as older
// ones do.
func (e *Error) saysNoStreams() bool {
	return e.Code == codes.Unimplemented && e.Reason != reasonInvalidField
}

// mayTakeOneMessage is whether the server may take as one message what it will never
// take as a stream. One that is busy is left alone.
func (e *Error) mayTakeOneMessage() bool {
	return e.saysNoStreams() ||
		e.Code == codes.ResourceExhausted && (e.Reason == reasonRequestTooLarge || e.Reason == reasonMemoryTooLarge)
}
