package attention

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// StepItem is a part of [Client.Step]: an append where it has a key, an attend where
// it has a query, or both, as [Session.Step].
type StepItem struct {
	// Session is a handle of the client that steps.
	Session *Session
	Layer   int
	// Key is (Hkv, n, D), Value (Hkv, n, Dv), Query (Hq, S, D).
	Key, Value, Query Tensor
	// Attend may be nil.
	Attend *AttendOptions
}

// StepResult is how an item ended.
type StepResult struct {
	AttendResult
	// Err is nil, or an *Error; then the rest is of no use.
	Err error
}

// The most items of a message.
const mostItems = 1024

// Step appends to and attends over layers of any sessions, up to 1024 items, in one
// message: one round trip for a layer of all sequences that are worked on. Each item
// has a result of its own, in the order of the items; one that fails does not hinder
// the others. A layer may be named more than once only by items that do not append.
func (c *Client) Step(ctx context.Context, items []StepItem, options ...CallOption) []StepResult {
	results := make([]StepResult, len(items))
	ctx, cancel, config := c.prepare(ctx, options)
	defer cancel()
	messages := make([]*stepMessage, 0, len(items))
	for i := range items {
		message, failed := c.stepMessage(&items[i], len(items))
		if failed != nil {
			results[i].Err = c.named(failed)
			continue
		}
		message.index = i
		if message.claim != nil {
			defer message.claim.release()
		}
		messages = append(messages, message)
	}
	c.stepAll(ctx, config, messages, results)
	return results
}

// stepMessage is an item on its way.
type stepMessage struct {
	session *Session
	layer   int
	// Nil where nothing is appended.
	claim      *claim
	key, value tokenRun
	query      Tensor
	attend     *AttendOptions

	// Of the item that it was made of.
	index   int
	retrier *retrier
}

func (c *Client) stepMessage(item *StepItem, count int) (*stepMessage, *Error) {
	if failed := item.Session.check(c); failed != nil {
		return nil, failed
	}
	if count > mostItems {
		return nil, newError(codes.InvalidArgument, "", "items: got %d, wanted at most %d", count, mostItems)
	}
	message := &stepMessage{
		session: item.Session, layer: item.Layer, query: item.Query, attend: item.Attend,
		key: wholeRun(item.Key), value: wholeRun(item.Value),
	}
	if item.Key.IsZero() {
		return message, nil
	}
	claim, failed := item.Session.claim(item.Layer)
	message.claim = claim
	return message, failed
}

// stepAll sends items until each has its result, or another try is no use. Those that
// are tried again go together.
func (c *Client) stepAll(ctx context.Context, config *callConfig, messages []*stepMessage, results []StepResult) {
	for _, message := range messages {
		message.retrier = newRetrier(appending, config.maxAttempts)
	}
	for len(messages) > 0 {
		begun := time.Now()
		answers, failed := c.exchange(ctx, messages)
		var again []*stepMessage
		var pause time.Duration
		for i, message := range messages {
			message.retrier.begin()
			answer := stepAnswer{failed: failed}
			if failed == nil {
				answer = answers[i]
			}
			if answer.done {
				message.done(begun, answer.result.Length)
			}
			if answer.failed == nil {
				results[message.index] = StepResult{AttendResult: answer.result}
				continue
			}
			itemFailed := answer.failed.copied()
			itemFailed.Attempts = message.retrier.attempts
			message.session.callEnded(begun, itemFailed)
			results[message.index].Err = c.named(itemFailed)
			if wait, ok := message.retrier.pauseAfter(itemFailed); ok && waits(ctx, wait) {
				again = append(again, message)
				pause = max(pause, wait)
			}
		}
		messages = again
		if len(messages) > 0 && !sleep(ctx, pause) {
			if ctx.Err() == context.Canceled {
				for _, message := range messages {
					results[message.index].Err = c.named(contextError(ctx))
				}
			}
			return
		}
	}
}

// waits is whether a pause ends before the context's deadline.
func waits(ctx context.Context, pause time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) > pause
}

// done takes over what the server did.
func (m *stepMessage) done(begun time.Time, length int64) {
	m.session.callEnded(begun, nil)
	if m.claim != nil {
		m.claim.appended(length)
	}
}

// exchange sends items as one message, and reads its answer.
func (c *Client) exchange(ctx context.Context, messages []*stepMessage) ([]stepAnswer, *Error) {
	message := &writer{}
	for _, m := range messages {
		item := &writer{}
		if failed := m.writeItem(item); failed != nil {
			return nil, failed
		}
		message.message(1, item)
	}
	answer := &stepResponse{}
	if failed := c.streams.exchange(ctx, message, answer); failed != nil {
		return nil, failed
	}
	if len(answer.results) != len(messages) {
		return nil, malformed("got %d results, wanted %d, one for each item", len(answer.results), len(messages))
	}
	timing := timingOf(&answer.timing)
	for i, m := range messages {
		result := &answer.results[i]
		result.result.Timing = timing
		if result.failed == nil {
			result.failed = m.checkAnswer(&result.result)
		}
	}
	return answer.results, nil
}

func (m *stepMessage) checkAnswer(result *AttendResult) *Error {
	attends := !m.query.IsZero()
	if attends && !result.Output.IsZero() && result.Output.dataType != m.query.dataType {
		return malformed("output: got %v, wanted %s", result.Output, typeName(m.query.dataType))
	}
	if shape := m.query.shape; attends && len(shape) == 3 && !result.Output.IsZero() {
		got := result.Output.shape
		if len(got) != 3 || got[0] != shape[0] || got[1] != shape[1] || got[2] != m.session.config.ValueHeadSize && m.session.config.ValueHeadSize != 0 {
			return malformed("output: got %v for a query of %v", result.Output, m.query)
		}
	}
	if failed := checkTensor("output", result.Output, attends); failed != nil {
		return failed
	}
	if failed := checkTensor("log_sum_exp", result.LogSumExp, attends && m.attend != nil && m.attend.ReturnLogSumExp); failed != nil {
		return failed
	}
	return checkTensor("scores", result.Scores, attends && m.attend != nil && m.attend.ReturnScores != ScoresNone)
}

// Of StepItem; AppendKeyValuesRequest has the same numbers.
const (
	itemKey   protowire.Number = 5
	itemValue protowire.Number = 6
	itemQuery protowire.Number = 7
	itemMask  protowire.Number = 8

	itemIndices protowire.Number = 13
	itemSinks   protowire.Number = 14
)

func (w *writer) tokens(field protowire.Number, t *tokenRun) {
	if !t.isZero() {
		w.tensor(field, t.dataType, t.shape, t.runs...)
	}
}

func (m *stepMessage) writeAppend(w *writer) *Error {
	length, id := m.claim.expected()
	err := w.fields(&attentionpb.AppendKeyValuesRequest{
		Id: m.session.id, Layer: int64(m.layer), ExpectedLength: length, RequestId: id, Incarnation: m.session.incarnation,
	})
	if err != nil {
		return newError(codes.InvalidArgument, "", "%v", err)
	}
	w.tokens(itemKey, &m.key)
	w.tokens(itemValue, &m.value)
	return nil
}

func (m *stepMessage) writeItem(w *writer) *Error {
	item := &attentionpb.StepItem{Id: m.session.id, Layer: int64(m.layer), Incarnation: m.session.incarnation}
	if m.claim != nil {
		item.ExpectedLength, item.RequestId = m.claim.expected()
	} else if m.attend == nil || !m.attend.AnyLength {
		item.ExpectedLength = m.session.settledLength(m.layer)
	}
	if m.attend != nil {
		item.Options = m.attend.Options.message()
		item.NotCausal = m.attend.NotCausal
		item.MaskBegin = m.attend.MaskBegin
	}
	if err := w.fields(item); err != nil {
		return newError(codes.InvalidArgument, "", "%v", err)
	}
	w.tokens(itemKey, &m.key)
	w.tokens(itemValue, &m.value)
	w.optionalTensor(itemQuery, m.query)
	if m.attend != nil {
		w.optionalTensor(itemMask, m.attend.Mask)
		w.optionalTensor(itemIndices, m.attend.Indices)
		w.optionalTensor(itemSinks, m.attend.RowSinks)
	}
	return nil
}

// settledLength is the length that an attend expects; nil while an append through
// this handle is under way, and where there is no such layer.
func (s *Session) settledLength(number int) *int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if number < 0 || number >= len(s.layers) || s.layers[number].appending {
		return nil
	}
	return Ptr(s.layers[number].length)
}

// stepResponse reads a StepResponse.
type stepResponse struct {
	results []stepAnswer
	timing  attentionpb.Timing
}

type stepAnswer struct {
	result AttendResult
	// Whether the server did what the item asks for; its answer may be malformed still.
	done   bool
	failed *Error
}

func (s *stepResponse) decode(r *reader) error {
	return r.each(func(field protowire.Number, kind protowire.Type) (bool, error) {
		switch {
		case field == 1 && kind == protowire.BytesType:
			s.results = append(s.results, stepAnswer{})
			return true, s.results[len(s.results)-1].decode(r)
		case field == 6 && kind == protowire.BytesType:
			return true, r.proto(&s.timing)
		}
		return false, nil
	})
}

func (a *stepAnswer) decode(r *reader) error {
	var code uint64
	var message string
	var details []byte
	err := r.within(func() error {
		return r.each(func(field protowire.Number, kind protowire.Type) (bool, error) {
			var err error
			switch {
			case field == 1 && kind == protowire.BytesType:
				return true, r.tensor(&a.result.Output)
			case field == 2 && kind == protowire.BytesType:
				return true, r.tensor(&a.result.LogSumExp)
			case field == 3 && kind == protowire.BytesType:
				return true, r.tensor(&a.result.Scores)
			case field == 7 && kind == protowire.VarintType:
				var length uint64
				length, err = r.varint()
				a.result.Length = int64(length)
				return true, err
			case field == 8 && kind == protowire.VarintType:
				code, err = r.varint()
				return true, err
			case field == 9 && kind == protowire.BytesType:
				var text []byte
				text, err = r.bytes()
				message = string(text)
				return true, err
			case field == 10 && kind == protowire.BytesType:
				details, err = r.bytes()
				return true, err
			}
			return false, nil
		})
	})
	a.done = code == 0
	if err == nil && !a.done {
		a.failed = itemError(codes.Code(uint32(code)), message, details)
	}
	return err
}

// itemError is what went wrong with an item; details is a google.rpc.Status.
func itemError(code codes.Code, message string, details []byte) *Error {
	var st spb.Status
	if len(details) > 0 && proto.Unmarshal(details, &st) == nil {
		st.Code, st.Message = int32(code), message
		return errorOf(status.FromProto(&st))
	}
	return errorOf(status.New(code, message))
}

// protoAnswer is an answer without tensors.
type protoAnswer struct{ proto.Message }

func (p protoAnswer) decode(r *reader) error {
	data := make([]byte, r.left)
	if err := r.into(data); err != nil {
		return err
	}
	return proto.Unmarshal(data, p.Message)
}

// sizeHeader tells the size of a stream's first message.
func sizeHeader(bytes int) []string {
	return []string{"attention-request-bytes", strconv.Itoa(bytes)}
}
