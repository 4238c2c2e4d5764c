package attention_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// optionsOf are the options of a message.
func optionsOf(m *attentionpb.AttentionOptions) attention.Options {
	options := attention.Options{
		Layout: m.GetLayout(), QueryHeads: int(m.GetQueryHeads()), KVHeads: int(m.GetKvHeads()),
		SoftCap: m.GetSoftcap(), Causal: m.GetCausal(), ChunkSize: int(m.GetChunkSize()),
		ALiBiSlopes: m.GetAlibiSlopes(), Sinks: m.GetSinks(), MathMode: m.GetMathMode(),
		SoftmaxPrecision: m.GetSoftmaxPrecision(), ReturnLogSumExp: m.GetReturnLogSumExp(),
		ReturnScores: m.GetReturnScores(), ReturnPresent: m.GetReturnPresent(),
	}
	if m == nil {
		return options
	}
	options.Scale = m.Scale
	if m.Window != nil {
		options.Window = &attention.Window{Left: attention.Unbounded, Right: attention.Unbounded}
		if m.Window.Left != nil {
			options.Window.Left = int(m.GetWindow().GetLeft())
		}
		if m.Window.Right != nil {
			options.Window.Right = int(m.GetWindow().GetRight())
		}
	}
	return options
}

// tensorOf is a tensor of a message; float_values become float32.
func tensorOf(m *attentionpb.Tensor) attention.Tensor {
	if m == nil {
		return attention.Tensor{}
	}
	shape := []int{}
	for _, length := range m.GetShape() {
		shape = append(shape, int(length))
	}
	if len(m.GetFloatValues()) > 0 || m.GetDataType() == attention.TypeUnspecified {
		return attention.Of(m.GetFloatValues(), shape...)
	}
	return attention.OfBytes(m.GetDataType(), m.GetData(), shape...)
}

func requestOf(m *attentionpb.ComputeAttentionRequest) *attention.Request {
	return &attention.Request{
		Query: tensorOf(m.GetQuery()), Key: tensorOf(m.GetKey()), Value: tensorOf(m.GetValue()),
		Mask: tensorOf(m.GetMask()), PastKey: tensorOf(m.GetPastKey()), PastValue: tensorOf(m.GetPastValue()),
		Indices: tensorOf(m.GetIndices()), RowSinks: tensorOf(m.GetSinks()),
		ValidLengths: m.GetValidLengths(), QueryStarts: m.GetQueryStarts(), KeyStarts: m.GetKeyStarts(),
		Options: optionsOf(m.GetOptions()),
	}
}

func TestAnswersInNumbers(t *testing.T) {
	var file struct {
		Cases []struct {
			Name              string
			Request, Response json.RawMessage
			Error             *wantedError
		}
	}
	readVectors(t, "attention.json", &file)
	client := newServerClient(t)
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			var message attentionpb.ComputeAttentionRequest
			if err := protojson.Unmarshal(c.Request, &message); err != nil {
				t.Fatal(err)
			}
			result, err := client.Compute(testContext(t), requestOf(&message))
			if c.Error != nil {
				c.Error.check(t, err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want attentionpb.ComputeAttentionResponse
			if err := protojson.Unmarshal(c.Response, &want); err != nil {
				t.Fatal(err)
			}
			checkClose(t, "output", result.Output, want.GetOutput())
			checkClose(t, "log_sum_exp", result.LogSumExp, want.GetLogSumExp())
			checkClose(t, "scores", result.Scores, want.GetScores())
			checkClose(t, "present_key", result.PresentKey, want.GetPresentKey())
			checkClose(t, "present_value", result.PresentValue, want.GetPresentValue())
		})
	}
}

func checkClose(t *testing.T, name string, got attention.Tensor, message *attentionpb.Tensor) {
	t.Helper()
	if message == nil {
		if !got.IsZero() {
			t.Errorf("%s: got %v, wanted none", name, got)
		}
		return
	}
	want := tensorOf(message)
	if got.DataType() != want.DataType() || !slices.Equal(got.Shape(), want.Shape()) {
		t.Fatalf("%s: got %v, wanted %v", name, got, want)
	}
	gotNumbers, wantNumbers := doubles(t, got), doubles(t, want)
	if len(gotNumbers) != len(wantNumbers) {
		t.Fatalf("%s: got %d numbers, wanted %d", name, len(gotNumbers), len(wantNumbers))
	}
	for i, w := range wantNumbers {
		g := gotNumbers[i]
		if math.IsNaN(w) && math.IsNaN(g) || g == w {
			continue
		}
		// The tolerances of tests/vectors/README.md.
		tolerance := 1e-6 + 1e-5*math.Abs(w)
		switch got.DataType() {
		case attention.TypeFloat64:
			tolerance = 1e-14 + 1e-13*math.Abs(w)
		case attention.TypeFloat16:
			tolerance = 1e-6 + 2*math.Abs(w)/1024
		case attention.TypeBFloat16:
			tolerance = 1e-6 + 2*math.Abs(w)/128
		}
		if !(math.Abs(g-w) <= tolerance) {
			t.Errorf("%s: element %d: got %v, wanted %v", name, i, g, w)
		}
	}
}

func doubles(t *testing.T, tensor attention.Tensor) []float64 {
	t.Helper()
	if tensor.DataType() == attention.TypeFloat64 {
		numbers := make([]float64, len(tensor.Bytes())/8)
		for i := range numbers {
			numbers[i] = math.Float64frombits(binary.LittleEndian.Uint64(tensor.Bytes()[8*i:]))
		}
		return numbers
	}
	floats := tensor.Float32s()
	numbers := make([]float64, len(floats))
	for i, value := range floats {
		numbers[i] = float64(value)
	}
	return numbers
}

// ruledOptions are the parts of a request in digests.json and sessions.json that are
// no tensors, in protobuf's JSON.
func ruledOptions(t *testing.T, options json.RawMessage) attention.Options {
	t.Helper()
	if options == nil {
		return attention.Options{}
	}
	var message attentionpb.AttentionOptions
	if err := protojson.Unmarshal(options, &message); err != nil {
		t.Fatal(err)
	}
	return optionsOf(&message)
}

type ruledRequest struct {
	Query, Key, Value, Mask *rule
	PastKey                 *rule   `json:"past_key"`
	PastValue               *rule   `json:"past_value"`
	ValidLengths            []int64 `json:"valid_lengths"`
	QueryStarts             []int64 `json:"query_starts"`
	KeyStarts               []int64 `json:"key_starts"`
	Options                 json.RawMessage
}

func (r *ruledRequest) request(t *testing.T) *attention.Request {
	return &attention.Request{
		Query: r.Query.tensor(), Key: r.Key.tensor(), Value: r.Value.tensor(), Mask: r.Mask.tensor(),
		PastKey: r.PastKey.tensor(), PastValue: r.PastValue.tensor(),
		ValidLengths: r.ValidLengths, QueryStarts: r.QueryStarts, KeyStarts: r.KeyStarts,
		Options: ruledOptions(t, r.Options),
	}
}

func TestDigests(t *testing.T) {
	var file struct {
		Cases []struct {
			Name    string
			Request ruledRequest
			Output  string `json:"output_sha256"`
			Error   *wantedError
		}
	}
	readVectors(t, "digests.json", &file)
	streaming := newServerClient(t)
	whole := newServerClient(t, attention.WithoutStreams())
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			for _, client := range []*attention.Client{streaming, whole} {
				result, err := client.Compute(testContext(t), c.Request.request(t))
				if c.Error != nil {
					c.Error.check(t, err)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := digest(result.Output); got != c.Output {
					t.Errorf("got %s, wanted %s", got, c.Output)
				}
			}
		})
	}
}

// sessionStep is a step of sessions.json.
type sessionStep struct {
	Do              string
	Session, Target string
	Layer           int
	Key, Value      *rule
	Query           *rule
	Options         json.RawMessage
	NotCausal       bool `json:"not_causal"`
	AnyLength       bool `json:"any_length"`
	Length          int64
	Items           []sessionStep
	Output          string  `json:"output_sha256"`
	LengthThen      *int64  `json:"length_then"`
	LengthsThen     []int64 `json:"lengths_then"`
	Error           *wantedError
}

// script plays steps against sessions by their names.
type script struct {
	client   *attention.Client
	sessions map[string]*attention.Session
}

func TestSessionScripts(t *testing.T) {
	var file struct {
		Cases []struct {
			Name   string
			Config json.RawMessage
			Steps  []sessionStep
		}
	}
	readVectors(t, "sessions.json", &file)
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			client := newServerClient(t)
			var config attentionpb.SessionConfig
			if err := protojson.Unmarshal(c.Config, &config); err != nil {
				t.Fatal(err)
			}
			session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{
				Layers: int(config.GetNumLayers()), KVHeads: int(config.GetKvHeads()), HeadSize: int(config.GetHeadSize()),
				ValueHeadSize: int(config.GetValueHeadSize()), DataType: config.GetDataType(),
				ValueIsKeyPrefix: config.GetValueIsKeyPrefix(), RetainWindow: config.GetRetainWindow(),
				RollbackTokens: config.RollbackTokens,
			}))(t)
			s := &script{client, map[string]*attention.Session{"a": session}}
			defer func() {
				for _, session := range s.sessions {
					if err := session.Delete(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}()
			for i, step := range c.Steps {
				t.Run(fmt.Sprintf("%d_%s", i, step.Do), func(t *testing.T) { s.play(t, &step) })
			}
		})
	}
}

func (s *script) play(t *testing.T, step *sessionStep) {
	ctx := testContext(t)
	session := s.sessions[step.Session]
	var lengths []int64
	var err error
	switch step.Do {
	case "append":
		var length int64
		length, err = session.Append(ctx, step.Layer, step.Key.tensor(), step.Value.tensor())
		if step.LengthThen != nil && (length != *step.LengthThen || session.Length(step.Layer) != length) {
			t.Errorf("got length %d, wanted %d", length, *step.LengthThen)
		}
	case "attend", "step":
		var result *attention.AttendResult
		if step.Do == "attend" {
			result, err = session.Attend(ctx, step.Layer, step.Query.tensor(), step.attend(t))
		} else {
			result, err = session.Step(ctx, step.Layer, step.Key.tensor(), step.Value.tensor(), step.Query.tensor(), step.attend(t))
		}
		if result != nil && digest(result.Output) != step.Output {
			t.Errorf("got %s, wanted %s", digest(result.Output), step.Output)
		}
	case "batch":
		s.playBatch(t, step)
		return
	case "fork":
		s.sessions[step.Target], err = session.Fork(ctx, "")
		lengths = s.sessions[step.Target].Lengths()
	case "open":
		s.sessions[step.Target], err = s.client.OpenSession(ctx, session.ID())
		lengths = s.sessions[step.Target].Lengths()
	case "truncate":
		err = session.Truncate(ctx, step.Length)
		lengths = session.Lengths()
	case "refresh":
		err = session.Refresh(ctx)
		lengths = session.Lengths()
	case "delete":
		err = session.Delete(ctx)
	default:
		t.Fatalf("unknown step %q", step.Do)
	}
	step.checkEnd(t, err)
	if step.LengthsThen != nil && !slices.Equal(lengths, step.LengthsThen) {
		t.Errorf("got lengths %v, wanted %v", lengths, step.LengthsThen)
	}
}

func (s *sessionStep) attend(t *testing.T) *attention.AttendOptions {
	return &attention.AttendOptions{Options: ruledOptions(t, s.Options), NotCausal: s.NotCausal, AnyLength: s.AnyLength}
}

func (s *sessionStep) checkEnd(t *testing.T, err error) {
	t.Helper()
	if s.Error != nil {
		s.Error.check(t, err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func (s *script) playBatch(t *testing.T, step *sessionStep) {
	var items []attention.StepItem
	for _, item := range step.Items {
		items = append(items, attention.StepItem{
			Session: s.sessions[item.Session], Layer: item.Layer,
			Key: item.Key.tensor(), Value: item.Value.tensor(), Query: item.Query.tensor(), Attend: item.attend(t),
		})
	}
	for i, result := range s.client.Step(testContext(t), items) {
		item := &step.Items[i]
		item.checkEnd(t, result.Err)
		if item.Output != "" && digest(result.Output) != item.Output {
			t.Errorf("item %d: got %s, wanted %s", i, digest(result.Output), item.Output)
		}
		if item.LengthThen != nil && result.Length != *item.LengthThen {
			t.Errorf("item %d: got length %d, wanted %d", i, result.Length, *item.LengthThen)
		}
	}
}

type retryCase struct {
	Name, Call, Method, Result, Reason string
	Attempts                           int
	LeastGaps                          []float64 `json:"least_gaps_ms"`
	SameRequestID                      bool      `json:"same_request_id"`
	Length                             *int64
	TimeoutMs                          int64 `json:"timeout_ms"`
	MostMs                             int64 `json:"most_ms"`
	Second                             string
	LengthThen                         *int64 `json:"length_then"`
}

func TestRetries(t *testing.T) {
	var file struct{ Cases []retryCase }
	readVectors(t, "retries.json", &file)
	address := environment(t, "ATTENTION_TEST_MISBEHAVING")
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			token := tokenOf(c.Name)
			client := newClient(t, address, attention.WithToken(token))
			begun := time.Now()
			err := c.call(t, client)
			if took := time.Since(begun); c.MostMs > 0 && took > time.Duration(c.MostMs)*time.Millisecond {
				t.Errorf("took %v, wanted at most %d ms", took, c.MostMs)
			}
			if c.Result != "OK" {
				(&wantedError{Code: c.Result, Reason: c.Reason, Length: c.Length}).check(t, err)
			} else if err != nil {
				t.Error(err)
			}
			c.checkAttempts(t, attemptsOf(t, token))
		})
	}
}

func (c *retryCase) call(t *testing.T, client *attention.Client) error {
	ctx := testContext(t)
	timeout := attention.WithTimeout(10 * time.Second)
	if c.TimeoutMs > 0 {
		timeout = attention.WithTimeout(time.Duration(c.TimeoutMs) * time.Millisecond)
	}
	row := filled(1, 1, 4)
	config := attention.SessionConfig{KVHeads: 2, HeadSize: 16}
	switch c.Call {
	case "compute":
		_, err := client.Compute(ctx, &attention.Request{Query: row, Key: row, Value: row}, timeout)
		return err
	case "capabilities":
		_, err := client.Capabilities(ctx, timeout)
		return err
	case "health":
		_, err := client.Health(ctx, "", timeout)
		return err
	case "create":
		_, err := client.CreateSession(ctx, "", config, timeout)
		return err
	}
	session := must(client.CreateSession(ctx, "", config))(t)
	token := filled(1, 2, 1, 16)
	switch c.Call {
	case "fork":
		_, err := session.Fork(ctx, "", timeout)
		return err
	case "truncate":
		return session.Truncate(ctx, 0, timeout)
	case "delete":
		return session.Delete(ctx, timeout)
	case "append":
		_, err := session.Append(ctx, 0, token, token, timeout)
		return err
	}
	if c.LengthThen != nil {
		defer func() {
			if got := session.Length(0); got != *c.LengthThen {
				t.Errorf("the length is %d, wanted %d", got, *c.LengthThen)
			}
		}()
	}
	query := filled(2, 4, 1, 16)
	switch c.Call {
	case "step_again":
		must(session.Step(ctx, 0, token, token, query, nil))(t)
		fallthrough
	case "step":
		_, err := session.Step(ctx, 0, token, token, query, nil, timeout)
		return err
	case "batch":
		results := client.Step(ctx, []attention.StepItem{
			{Session: session, Key: token, Value: token, Query: query},
			{Session: must(client.CreateSession(ctx, "", config))(t), Key: token, Value: token, Query: query},
		}, timeout)
		(&wantedError{Code: c.Second}).check(t, results[1].Err)
		return results[0].Err
	}
	t.Fatalf("unknown call %q", c.Call)
	return nil
}

type attempt struct {
	Method    string
	Ms        float64
	RequestID string `json:"request_id"`
}

func attemptsOf(t *testing.T, token string) []attempt {
	t.Helper()
	answer, err := http.Get("http://" + environment(t, "ATTENTION_TEST_MISBEHAVING_HTTP") + "/attempts?token=" + token)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	data := must(io.ReadAll(answer.Body))(t)
	var attempts []attempt
	if err := json.Unmarshal(data, &attempts); err != nil {
		t.Fatal(err)
	}
	return attempts
}

func (c *retryCase) checkAttempts(t *testing.T, all []attempt) {
	t.Helper()
	var attempts []attempt
	for _, attempt := range all {
		if attempt.Method == c.Method {
			attempts = append(attempts, attempt)
		}
	}
	if len(attempts) != c.Attempts {
		t.Fatalf("got %d attempts, wanted %d: %v", len(attempts), c.Attempts, all)
	}
	for i, least := range c.LeastGaps {
		// The server's clock counts from when it reads a call.
		if gap := attempts[i+1].Ms - attempts[i].Ms; gap < least-1 {
			t.Errorf("got %v ms before attempt %d, wanted at least %v", gap, i+2, least)
		}
	}
	for _, attempt := range attempts {
		if c.SameRequestID && (attempt.RequestID == "" || attempt.RequestID != attempts[0].RequestID) {
			t.Errorf("got request ids %v, wanted the same", attempts)
		}
	}
}
