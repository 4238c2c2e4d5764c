package attention

import (
	"context"
	"io"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

const (
	// With fewer bytes of keys and values a single message is as fast, or faster.
	streamedBytes = 4 << 20
	chunkBytes    = 2 << 20
	// Of one token of all sequences: servers take no larger chunk by default.
	mostTokenBytes = 8<<20 - 4<<10
	// The server computes in blocks of so many keys.
	keyBlock = 256

	streamMethod = attentionpb.AttentionService_StreamAttention_FullMethodName
)

// axisView is a tensor cut along one axis: (outer, length, inner), row-major.
type axisView struct {
	tensor      Tensor
	axis        int
	length      int
	outer       int
	innerBytes  int
	hasElements bool
}

// viewOf is not ok where the tensor's bytes do not fit its shape: the server will say
// so. Nor is it of bits, which rows share bytes of.
func viewOf(t Tensor, axis int) (view axisView, ok bool) {
	if axis < 0 || axis >= len(t.shape) || !t.fits() || t.dataType == TypeBits {
		return view, false
	}
	view = axisView{tensor: t, axis: axis, length: t.shape[axis], outer: 1, innerBytes: sizeOf(t.dataType), hasElements: len(t.data) > 0}
	if !view.hasElements {
		return view, true
	}
	for _, length := range t.shape[:axis] {
		view.outer *= length
	}
	for _, length := range t.shape[axis+1:] {
		view.innerBytes *= length
	}
	return view, true
}

// run is elements [begin, end) of the axis, in one of the outer rows.
func (v *axisView) run(outer, begin, end int) []byte {
	at := outer * v.length
	return v.tensor.data[(at+begin)*v.innerBytes : (at+end)*v.innerBytes]
}

func (v *axisView) tokenBytes() int { return v.outer * v.innerBytes }

// shapeOf is the tensor's shape with n elements of the axis.
func (v *axisView) shapeOf(n int) []int {
	shape := slices.Clone(v.tensor.shape)
	shape[v.axis] = n
	return shape
}

// write appends elements [begin, end) of the axis as a tensor.
func (v *axisView) write(w *writer, field protowire.Number, begin, end int) {
	runs := [][]byte{}
	if v.hasElements {
		runs = make([][]byte, v.outer)
		for o := range runs {
			runs[o] = v.run(o, begin, end)
		}
	}
	w.tensor(field, v.tensor.dataType, v.shapeOf(end-begin), runs...)
}

// writePast appends tokens [begin, end) of v, which is (B, Hkv, P, D), in the layout
// of new tokens, where heads may come after tokens.
func (v *axisView) writePast(w *writer, field protowire.Number, begin, end int, like *axisView, headsAfterTokens bool) {
	runs := make([][]byte, 0, v.outer)
	if headsAfterTokens {
		heads := v.tensor.shape[1]
		copied := make([]byte, 0, v.outer*(end-begin)*v.innerBytes)
		for b := 0; b < v.outer/heads; b++ {
			for token := begin; token < end; token++ {
				for h := 0; h < heads; h++ {
					copied = append(copied, v.run(b*heads+h, token, token+1)...)
				}
			}
		}
		runs = append(runs, copied)
	} else {
		for o := 0; o < v.outer; o++ {
			runs = append(runs, v.run(o, begin, end))
		}
	}
	w.tensor(field, like.tensor.dataType, like.shapeOf(end-begin), runs...)
}

// keyChunks cuts a request's keys, values and mask into the messages of a stream.
type keyChunks struct {
	key, value, mask       axisView
	hasMask                bool
	pastKey, pastValue     axisView
	pastLength             int
	headsAfterTokens       bool
	lengthAxis             int
	keys, tokensPerChunk   int
	totalBytes, stateBytes int
	next                   int
}

// chunksToStream is nil where the request is better sent as one message, or can only
// be sent so. A stream makes the server keep the state of all rows: it is for many
// keys and few rows, and for what is too large for a message.
func (c *Client) chunksToStream(request *Request, streams bool) *keyChunks {
	bytes := request.bytes()
	oneMessage := bytes <= largestMessage-smallFields
	if oneMessage && (!streams || c.knowsNoStreams.Load() || request.keyBytes() <= streamedBytes) {
		return nil
	}
	chunks := chunksOf(request)
	if chunks != nil && oneMessage && chunks.stateBytes > bytes {
		return nil
	}
	return chunks
}

// chunksOf is nil where the request cannot be cut along its keys, also because it is
// wrong: the server says why.
func chunksOf(request *Request) *keyChunks {
	if request.ReturnScores != ScoresNone || request.ReturnPresent {
		return nil
	}
	var rank, axis int
	switch request.layout() {
	case LayoutMatrix:
		rank, axis = 2, 0
	case LayoutPacked:
		rank, axis = 3, 1
	case LayoutBHSD:
		rank, axis = 4, 2
	case LayoutBSHD:
		rank, axis = 4, 1
	default: // Ragged too: its sequences come one after another.
		return nil
	}
	if len(request.Query.shape) != rank || len(request.Key.shape) != rank || len(request.Value.shape) != rank {
		return nil
	}
	key, keyOK := viewOf(request.Key, axis)
	value, valueOK := viewOf(request.Value, axis)
	if !keyOK || !valueOK || key.length != value.length || !key.hasElements || !value.hasElements || !request.Query.fits() {
		return nil
	}
	c := &keyChunks{key: key, value: value, keys: key.length, lengthAxis: axis}
	c.headsAfterTokens = request.layout() == LayoutBSHD || request.layout() == LayoutPacked
	if !c.addPast(request) || !c.addMask(request) {
		return nil
	}
	tokenBytes := key.tokenBytes() + value.tokenBytes()
	if c.hasMask && c.mask.hasElements {
		tokenBytes += c.mask.tokenBytes()
	}
	if tokenBytes > mostTokenBytes {
		return nil
	}
	c.totalBytes = request.keyBytes()
	c.tokensPerChunk = max(1, chunkBytes/tokenBytes)
	if c.tokensPerChunk > keyBlock {
		c.tokensPerChunk -= c.tokensPerChunk % keyBlock
	}
	if c.stateBytes = stateBytes(request, c.keys); c.stateBytes < 0 {
		return nil
	}
	return c
}

func (c *keyChunks) addPast(request *Request) bool {
	has := func(t Tensor) bool { return !t.IsZero() && !(len(t.shape) == 4 && t.shape[2] == 0) }
	if !has(request.PastKey) && !has(request.PastValue) {
		return true
	}
	pastKey, keyOK := viewOf(request.PastKey, 2)
	pastValue, valueOK := viewOf(request.PastValue, 2)
	if !keyOK || !valueOK || len(request.PastKey.shape) != 4 || len(request.PastValue.shape) != 4 ||
		pastKey.length != pastValue.length || !pastKey.hasElements || !pastValue.hasElements ||
		request.PastKey.shape[1] != request.PastValue.shape[1] ||
		!sameTokens(&pastKey, &c.key) || !sameTokens(&pastValue, &c.value) {
		return false
	}
	if !c.headsAfterTokens && (pastKey.outer != c.key.outer || pastValue.outer != c.value.outer) {
		return false
	}
	c.pastKey, c.pastValue, c.pastLength = pastKey, pastValue, pastKey.length
	c.keys += pastKey.length
	return true
}

// sameTokens is whether tokens of both have as many bytes, whatever the layout.
func sameTokens(a, b *axisView) bool {
	return a.tensor.dataType == b.tensor.dataType && a.tokenBytes() == b.tokenBytes()
}

func (c *keyChunks) addMask(request *Request) bool {
	if request.Mask.IsZero() {
		return true
	}
	mask, ok := viewOf(request.Mask, len(request.Mask.shape)-1)
	if !ok || mask.length > c.keys {
		return false
	}
	c.mask, c.hasMask = mask, true
	return true
}

// stateBytes is about what the server keeps for the query's rows: for each row and
// head Dv + 2 numbers, times the levels of the tree over blocks of keys that are open
// at once. -1: the request is wrong.
func stateBytes(request *Request, keys int) int {
	queryHeads, kvHeads := 1, 1
	if request.layout() == LayoutPacked {
		queryHeads, kvHeads = request.QueryHeads, request.KVHeads
		if queryHeads <= 0 || kvHeads <= 0 {
			return -1
		}
	}
	last := len(request.Query.shape) - 1
	headSize := request.Query.shape[last] / queryHeads
	valueSize := request.Value.shape[last] / kvHeads
	size := sizeOf(request.Query.dataType)
	if size == 0 || headSize == 0 {
		return -1
	}
	elements := float64(len(request.Query.data)) / float64(size)
	levels := 2 + math.Log2(1+float64(keys)/keyBlock)
	return int(float64(max(4, size)) * (elements + elements/float64(headSize)*levels*float64(valueSize+2)))
}

// Of StreamAttentionRequest and KeyValueChunk.
const (
	streamHeader protowire.Number = 1
	streamChunk  protowire.Number = 2

	chunkKey   protowire.Number = 1
	chunkValue protowire.Number = 2
	chunkMask  protowire.Number = 3
)

// following is the next message; nil after the last one.
func (c *keyChunks) following() *writer {
	if c.next == c.keys {
		return nil
	}
	begin := c.next
	// No chunk has past and new keys: they lie in different tensors.
	limit := c.keys
	if begin < c.pastLength {
		limit = c.pastLength
	}
	end := min(begin+c.tokensPerChunk, limit)
	c.next = end
	chunk := &writer{}
	if begin < c.pastLength {
		c.pastKey.writePast(chunk, chunkKey, begin, end, &c.key, c.headsAfterTokens)
		c.pastValue.writePast(chunk, chunkValue, begin, end, &c.value, c.headsAfterTokens)
	} else {
		c.key.write(chunk, chunkKey, begin-c.pastLength, end-c.pastLength)
		c.value.write(chunk, chunkValue, begin-c.pastLength, end-c.pastLength)
	}
	if c.hasMask && begin < c.mask.length {
		c.mask.write(chunk, chunkMask, begin, min(end, c.mask.length))
	}
	message := &writer{}
	message.message(streamChunk, chunk)
	return message
}

// stream computes by StreamAttention: one attempt.
func (c *Client) stream(ctx context.Context, request *Request, chunks *keyChunks, config *callConfig) (*Result, *Error) {
	header := &writer{}
	inner := &writer{}
	if err := request.write(inner, true); err != nil {
		return nil, newError(codes.InvalidArgument, "", "%v", err)
	}
	header.message(streamHeader, inner)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, c.sizeHeaders(header.bytes)...))
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, streamMethod)
	if err != nil {
		return nil, errorFrom(ctx, err, nil)
	}
	// The server may wait for us to read while we write: a goroutine writes.
	written := make(chan []*leaseEnd, 1)
	go func() {
		written <- sendChunks(stream, header, chunks, config.progress)
	}()
	result, failed := receiveRows(ctx, stream, request, c.config.maxReceiveBytes)
	if failed != nil {
		cancel() // The writer ends, and gRPC lets go of what is queued.
		failed.renameAsInRequest()
	}
	for _, end := range <-written {
		end.wait(c.conns)
	}
	return result, failed
}

// sendChunks sends until the last message or until the stream ends; why it did the
// reader learns. It returns what was lent.
func sendChunks(stream grpc.ClientStream, header *writer, chunks *keyChunks, progress func(sent, total int64)) []*leaseEnd {
	var ends []*leaseEnd
	sent := 0
	for message := header; message != nil; message = chunks.following() {
		out := message.finish()
		err := stream.SendMsg(out)
		if end := out.release(); end != nil {
			ends = append(ends, end)
		}
		if err != nil {
			return ends
		}
		if message != header {
			sent = min(sent+message.bytes, chunks.totalBytes)
			if progress != nil {
				progress(int64(sent), int64(chunks.totalBytes))
			}
		}
	}
	_ = stream.CloseSend() // As above.
	return ends
}

// receiveRows joins the rows of a stream along the axis of the queries.
func receiveRows(ctx context.Context, stream grpc.ClientStream, request *Request, limit int) (*Result, *Error) {
	rows := answerRows{request: request}
	bytes := 0
	for {
		var part computeAnswer
		err := stream.RecvMsg(&part)
		if err == io.EOF {
			return rows.finish()
		}
		if err != nil {
			return nil, errorFrom(ctx, err, stream.Trailer())
		}
		bytes += len(part.Output.data) + len(part.LogSumExp.data)
		if limit > 0 && bytes > limit {
			return nil, newError(codes.ResourceExhausted, reasonClientLimit, "the answer is above %d bytes, the largest that the client takes", limit)
		}
		if failed := rows.add(&part); failed != nil {
			return nil, failed
		}
	}
}

// answerRows collects the parts of output and log_sum_exp.
type answerRows struct {
	request *Request
	output  rowsOf
	lse     rowsOf
	timing  Timing
}

// rowsOf are parts of a tensor, one after another along an axis.
type rowsOf struct {
	whole axisView
	done  int
}

// add copies a part into its place. Nothing of whole is there before the first one.
func (r *rowsOf) add(name string, part Tensor, shape []int, axis int) *Error {
	view, ok := viewOf(part, axis)
	if !ok || len(part.shape) != len(shape) {
		return malformed("%s: got %d bytes of %v", name, len(part.data), part)
	}
	if r.whole.tensor.IsZero() {
		bytes, fits := bytesOfShape(part.dataType, shape)
		if !fits {
			return malformed("%s: got %v, wanted rows of %v", name, part, shape)
		}
		r.whole, _ = viewOf(Tensor{dataType: part.dataType, shape: slices.Clone(shape), data: newData(bytes)}, axis)
	}
	want := r.whole.shapeOf(view.length)
	if part.dataType != r.whole.tensor.dataType || !slices.Equal(part.shape, want) || view.length > r.whole.length-r.done {
		return malformed("%s: got %v after %d rows of %v", name, part, r.done, r.whole.tensor)
	}
	if view.hasElements {
		for o := 0; o < view.outer; o++ {
			copy(r.whole.run(o, r.done, r.done+view.length), view.run(o, 0, view.length))
		}
	}
	r.done += view.length
	return nil
}

func (a *answerRows) add(part *computeAnswer) *Error {
	if part.Timing != (Timing{}) {
		a.timing = part.Timing
	}
	shape := a.request.outputShape()
	axis := a.request.lengthAxis()
	if shape == nil || axis < 0 {
		return malformed("an answer to a request that must be wrong")
	}
	if !part.Output.IsZero() {
		if part.Output.dataType != a.request.Query.dataType {
			return malformed("output: got %v, wanted %s", part.Output, typeName(a.request.Query.dataType))
		}
		if failed := a.output.add("output", part.Output, shape, axis); failed != nil {
			return failed
		}
	}
	if !part.LogSumExp.IsZero() {
		// (B, Hq, S), or (S) of a matrix: rows are the last axis.
		lse := a.request.logSumExpShape()
		return a.lse.add("log_sum_exp", part.LogSumExp, lse, len(lse)-1)
	}
	return nil
}

func (a *answerRows) finish() (*Result, *Error) {
	if a.output.done != a.output.whole.length || a.output.whole.tensor.IsZero() {
		return nil, malformed("output: got %d rows, wanted %v", a.output.done, a.request.outputShape())
	}
	result := &Result{Output: a.output.whole.tensor, Timing: a.timing}
	if a.request.ReturnLogSumExp {
		if a.lse.done != a.output.done {
			return nil, malformed("log_sum_exp: got %d rows, wanted %d", a.lse.done, a.output.done)
		}
		result.LogSumExp = a.lse.whole.tensor
	}
	return result, nil
}

// lengthAxis is the axis of queries in query and output; -1 where there is none.
func (q *Request) lengthAxis() int {
	switch q.layout() {
	case LayoutMatrix:
		return 0
	case LayoutPacked, LayoutBSHD:
		return 1
	case LayoutBHSD:
		return 2
	}
	return -1
}

func (q *Request) logSumExpShape() []int {
	shape := q.Query.shape
	switch q.layout() {
	case LayoutPacked:
		return []int{shape[0], q.QueryHeads, shape[1]}
	case LayoutBHSD:
		return []int{shape[0], shape[1], shape[2]}
	case LayoutBSHD:
		return []int{shape[0], shape[2], shape[1]}
	}
	return []int{shape[0]}
}

// renameAsInRequest names fields as they are called where the request is one message.
func (e *Error) renameAsInRequest() {
	if len(e.FieldViolations) == 0 {
		return
	}
	e.Message = renamed(e.Message)
	for i := range e.FieldViolations {
		violation := &e.FieldViolations[i]
		if strings.HasPrefix(violation.Field, "chunk.") {
			violation.Description = withoutElement(violation.Description)
		}
		violation.Field = renamed(violation.Field)
	}
	e.status = statusOf(e)
}

func renamed(text string) string {
	if rest, ok := strings.CutPrefix(text, "chunk."); ok {
		return withoutElement(rest)
	}
	return strings.TrimPrefix(text, "header.")
}

// withoutElement leaves out the number of an element: it counts within a chunk, and
// would mislead.
func withoutElement(text string) string {
	before, after, ok := strings.Cut(text, " at element ")
	if !ok {
		return text
	}
	return before + strings.TrimLeft(after, "0123456789")
}
