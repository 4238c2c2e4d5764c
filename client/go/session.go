package attention

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// SessionConfig is what a session holds; it does not change while the session lives.
type SessionConfig struct {
	// Layers of the model, numbered from 0. 0 means 1.
	Layers int
	// KVHeads is Hkv, HeadSize D; ValueHeadSize is Dv, 0 means D.
	KVHeads, HeadSize, ValueHeadSize int
	// DataType that keys and values are stored as: float32 by default, float16,
	// bfloat16, float64, int8 or float8.
	DataType DataType
	// ValueIsKeyPrefix: values are the first Dv columns of keys, and are not sent.
	ValueIsKeyPrefix bool
	// Lease is how long the session lives unused. 0 means a minute, or what the server
	// allows.
	Lease time.Duration
	// RetainWindow says for each layer how many of the last tokens a query sees, its own
	// among them; 0 is all. One number for all layers, or one for each.
	RetainWindow []int64
	// RollbackTokens is how far layers with such a window can be truncated. Default: 256.
	RollbackTokens *int64
}

func (c SessionConfig) message() *attentionpb.SessionConfig {
	m := &attentionpb.SessionConfig{
		NumLayers:        int64(c.Layers),
		KvHeads:          int64(c.KVHeads),
		HeadSize:         int64(c.HeadSize),
		ValueHeadSize:    int64(c.ValueHeadSize),
		DataType:         c.DataType,
		ValueIsKeyPrefix: c.ValueIsKeyPrefix,
		RetainWindow:     c.RetainWindow,
		RollbackTokens:   c.RollbackTokens,
	}
	if c.Lease != 0 {
		m.Lease = durationpb.New(c.Lease)
	}
	return m
}

func configOf(m *attentionpb.SessionConfig) SessionConfig {
	return SessionConfig{
		Layers:           int(m.GetNumLayers()),
		KVHeads:          int(m.GetKvHeads()),
		HeadSize:         int(m.GetHeadSize()),
		ValueHeadSize:    int(m.GetValueHeadSize()),
		DataType:         m.GetDataType(),
		ValueIsKeyPrefix: m.GetValueIsKeyPrefix(),
		Lease:            m.GetLease().AsDuration(),
		RetainWindow:     m.GetRetainWindow(),
		RollbackTokens:   m.RollbackTokens,
	}
}

// SessionInfo is what the server tells of a session.
type SessionInfo struct {
	ID string
	// Incarnation tells the session from others that had or will have its id.
	Incarnation uint64
	// Config has every default filled in.
	Config SessionConfig
	// Lengths are the tokens of each layer.
	Lengths []int64
	// FirstTokens are the first ones that each layer keeps, and LeastLengths the least
	// lengths above 0 that each can be truncated to: not 0 only where windows released
	// tokens.
	FirstTokens, LeastLengths []int64
	// ExpireTime is when the lease is over unless something uses the session.
	ExpireTime time.Time
}

func infoOf(m *attentionpb.Session) *SessionInfo {
	return &SessionInfo{
		ID:           m.GetId(),
		Incarnation:  m.GetIncarnation(),
		Config:       configOf(m.GetConfig()),
		Lengths:      m.GetLengths(),
		FirstTokens:  m.GetFirstTokens(),
		LeastLengths: m.GetLeastLengths(),
		ExpireTime:   m.GetExpireTime().AsTime(),
	}
}

// Session is a handle of one session: keys and values that stay in the server, so
// that a decode step sends only the new token. It may be used by any number of
// goroutines at once. Several handles may be open of one session: each knows only its
// own appends.
//
//	session, err := client.CreateSession(ctx, "", attention.SessionConfig{Layers: 32, KVHeads: 8, HeadSize: 128})
//	...
//	defer session.Delete(context.WithoutCancel(ctx))
//	_, err = session.Append(ctx, layer, key, value)                              // The prompt: (8, n, 128) each.
//	result, err := session.Step(ctx, layer, newKey, newValue, query, nil)        // Each token: (8, 1, 128), (32, 1, 128).
//
// # Conflicts
//
// A handle appends and attends only where the layer is still as long as it knows. Else
// the call is ABORTED with reason LENGTH_CONFLICT, and [Error.Length] is the true length;
// so an append is while another one to the layer is under way through the same handle.
// [Session.Refresh] takes over the server's lengths.
//
// # Trying again
//
// Where an append or step fails without an answer, the same tokens may be appended
// again with the same handle: the server takes them once.
//
// # Leases
//
// A session that nothing uses for its lease is gone. The client renews the leases of
// the handles that it has given out, until [Session.Close], [Session.Delete],
// [Client.Close], or until the handle is garbage. None of these but Delete ends the
// session before its lease is over.
type Session struct {
	client      *Client
	id          string
	incarnation uint64
	config      SessionConfig
	// Of request ids: other handles have others.
	nonce string

	mutex    sync.Mutex
	layers   []layer
	lastUsed time.Time
	// Why there is no such session any more.
	gone *Error
}

// layer is what a handle knows of a layer.
type layer struct {
	length    int64
	appending bool
	// Part of the request id: it changes once an append was answered well, and when the
	// length was told anew.
	appends uint64
	// Of an append in several pieces that failed half-way.
	unfinished *unfinishedAppend
}

type unfinishedAppend struct {
	digest [sha256.Size]byte
	tokens int
	done   int
}

// CreateSession creates a session without tokens. An id has 1 to 128 characters of
// printable ASCII without spaces; if it is "" the client chooses one that nobody can
// guess. Where there is a session of this id with the same configuration, the handle
// is of that one, with its tokens.
func (c *Client) CreateSession(ctx context.Context, id string, config SessionConfig, options ...CallOption) (*Session, error) {
	if id == "" {
		id = randomID()
	}
	var answer *attentionpb.CreateSessionResponse
	err := c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		answer, err = c.sessions.CreateSession(ctx, &attentionpb.CreateSessionRequest{Id: id, Config: config.message()}, option)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.handle(answer.GetSession())
}

// OpenSession makes a handle of a session that exists.
func (c *Client) OpenSession(ctx context.Context, id string, options ...CallOption) (*Session, error) {
	answer, err := c.getSession(ctx, id, 0, options)
	if err != nil {
		return nil, err
	}
	return c.handle(answer)
}

// GetSession tells of a session, and renews its lease.
func (c *Client) GetSession(ctx context.Context, id string, options ...CallOption) (*SessionInfo, error) {
	answer, err := c.getSession(ctx, id, 0, options)
	if err != nil {
		return nil, err
	}
	return infoOf(answer), nil
}

func (c *Client) getSession(ctx context.Context, id string, incarnation uint64, options []CallOption) (*attentionpb.Session, error) {
	var answer *attentionpb.GetSessionResponse
	err := c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		answer, err = c.sessions.GetSession(ctx, &attentionpb.GetSessionRequest{Id: id, Incarnation: incarnation}, option)
		return err
	})
	return answer.GetSession(), err
}

// Sessions tells of the caller's sessions in the order of their ids, asking for them
// as the loop goes on. It renews no lease. After an error the loop ends.
//
//	for info, err := range client.Sessions(ctx) {
//		if err != nil {
//			return err
//		}
//		fmt.Println(info.ID, info.Lengths)
//	}
func (c *Client) Sessions(ctx context.Context, options ...CallOption) iter.Seq2[*SessionInfo, error] {
	return func(yield func(*SessionInfo, error) bool) {
		request := &attentionpb.ListSessionsRequest{}
		for {
			var page *attentionpb.ListSessionsResponse
			err := c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
				page, err = c.sessions.ListSessions(ctx, request, option)
				return err
			})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, session := range page.GetSessions() {
				if !yield(infoOf(session), nil) {
					return
				}
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				return
			}
		}
	}
}

// DeleteSession ends a session. It is no error if there is none.
func (c *Client) DeleteSession(ctx context.Context, id string, options ...CallOption) error {
	return c.deleteSession(ctx, id, 0, options)
}

func (c *Client) deleteSession(ctx context.Context, id string, incarnation uint64, options []CallOption) error {
	return c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) error {
		_, err := c.sessions.DeleteSession(ctx, &attentionpb.DeleteSessionRequest{Id: id, Incarnation: incarnation}, option)
		return err
	})
}

// Fork is one of [Client.ForkSessions].
type Fork struct {
	Source *Session
	// Target is the id of the new session; "": the client chooses.
	Target string
}

// ForkSessions makes new sessions with the tokens of others: all of them or, on an
// error, none. At most 128. They take no memory for keys and values until the
// sessions part.
func (c *Client) ForkSessions(ctx context.Context, forks []Fork, options ...CallOption) ([]*Session, error) {
	request := &attentionpb.ForkSessionsRequest{}
	for _, fork := range forks {
		if failed := fork.Source.check(c); failed != nil {
			return nil, c.named(failed)
		}
		if fork.Target == "" {
			fork.Target = randomID()
		}
		request.Forks = append(request.Forks, &attentionpb.ForkSessionsRequest_Fork{
			Source: fork.Source.id, SourceIncarnation: fork.Source.incarnation, Target: fork.Target,
		})
	}
	begun := time.Now()
	var answer *attentionpb.ForkSessionsResponse
	err := c.call(ctx, doOnce, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		answer, err = c.sessions.ForkSessions(ctx, request, option)
		return err
	})
	if err != nil {
		if len(forks) == 1 {
			forks[0].Source.callEnded(begun, err)
		}
		return nil, err
	}
	if got := len(answer.GetSessions()); got != len(forks) {
		return nil, c.named(malformed("got %d sessions, wanted %d, one for each fork", got, len(forks)))
	}
	made := make([]*Session, len(forks))
	for i, session := range answer.GetSessions() {
		forks[i].Source.callEnded(begun, nil)
		if made[i], err = c.handle(session); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// handle begins to renew the session's lease.
func (c *Client) handle(m *attentionpb.Session) (*Session, error) {
	config := configOf(m.GetConfig())
	if m.GetId() == "" || len(m.GetLengths()) != config.Layers {
		return nil, c.named(malformed("a session %q with %d lengths, wanted %d", m.GetId(), len(m.GetLengths()), config.Layers))
	}
	session := &Session{
		client:      c,
		id:          m.GetId(),
		incarnation: m.GetIncarnation(),
		config:      config,
		nonce:       randomID()[:16],
		layers:      make([]layer, config.Layers),
		lastUsed:    time.Now(),
	}
	for i, length := range m.GetLengths() {
		session.layers[i].length = length
	}
	c.renewer.add(session)
	return session, nil
}

// randomID has 128 random bits.
func randomID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // Never fails: crypto/rand says so.
	return hex.EncodeToString(id[:])
}

// Client is the client that made the handle.
func (s *Session) Client() *Client { return s.client }

// ID of the session.
func (s *Session) ID() string { return s.id }

// Incarnation tells the session from others that had or will have its id.
func (s *Session) Incarnation() uint64 { return s.incarnation }

// Config has every default filled in.
func (s *Session) Config() SessionConfig { return s.config }

// Length is the tokens of a layer, as far as this handle knows; -1 if the session has
// no such layer.
func (s *Session) Length(layer int) int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if layer < 0 || layer >= len(s.layers) {
		return -1
	}
	return s.layers[layer].length
}

// Lengths are those of all layers.
func (s *Session) Lengths() []int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	lengths := make([]int64, len(s.layers))
	for i := range s.layers {
		lengths[i] = s.layers[i].length
	}
	return lengths
}

// An append of more bytes is sent in several calls.
const appendBytes = 8 << 20

// Append adds tokens to a layer: key is (Hkv, n, D), value (Hkv, n, Dv), or no tensor
// where the session stores none. It returns the layer's length.
//
// More than 8 MiB are sent in several calls, each of which is done whole or not at
// all. If one fails, those before it stay, and [Session.Length] counts their tokens.
// The same tokens, all of them, may be appended once more: what is there is not sent
// again.
func (s *Session) Append(ctx context.Context, layer int, key, value Tensor, options ...CallOption) (int64, error) {
	ctx, cancel, config := s.client.prepare(ctx, options)
	defer cancel()
	claim, failed := s.claim(layer)
	if failed != nil {
		return 0, s.client.named(failed)
	}
	defer claim.release()
	length, failed := s.append(ctx, config, claim, key, value)
	if failed != nil {
		return 0, s.client.named(failed)
	}
	return length, nil
}

func (s *Session) append(ctx context.Context, config *callConfig, claim *claim, key, value Tensor) (int64, *Error) {
	pieces := piecesOf(key, value)
	tokens := pieces[len(pieces)-1].end
	done := 0
	if before := claim.unfinished(); before != nil && before.tokens == tokens && before.digest == digestOf(key, value) {
		done = before.done
	}
	length := int64(0)
	for _, piece := range pieces {
		if piece.end <= done && len(pieces) > 1 {
			continue
		}
		begun := time.Now()
		var failed *Error
		length, failed = s.appendPiece(ctx, config, claim, piece)
		if failed != nil {
			s.callEnded(begun, failed)
			if piece.begin > 0 {
				claim.leaveUnfinished(&unfinishedAppend{digest: digestOf(key, value), tokens: tokens, done: piece.begin})
				failed.addText("; the first " + strconv.Itoa(piece.begin) + " of " + strconv.Itoa(tokens) + " tokens were appended")
			}
			return 0, failed
		}
		s.callEnded(begun, nil)
		claim.appended(length)
		if config.progress != nil && len(pieces) > 1 {
			total := int64(len(key.data) + len(value.data))
			config.progress(total/int64(tokens)*int64(piece.end), total)
		}
	}
	return length, nil
}

func (s *Session) appendPiece(ctx context.Context, config *callConfig, claim *claim, piece piece) (int64, *Error) {
	var answer attentionpb.AppendKeyValuesResponse
	item := &stepMessage{session: s, layer: claim.number, claim: claim, key: piece.key, value: piece.value}
	failed := retry(ctx, newRetrier(appending, config.maxAttempts), func() *Error {
		message := &writer{}
		if failed := item.writeAppend(message); failed != nil {
			return failed
		}
		return s.client.send(ctx, attentionpb.SessionService_AppendKeyValues_FullMethodName, message, protoAnswer{&answer},
			"attention-request-bytes", strconv.Itoa(message.bytes))
	})
	return answer.GetLength(), failed
}

// piece is tokens [begin, end) of an append.
type piece struct {
	begin, end int
	key, value tokenRun
}

// tokenRun is tokens of a tensor (heads, tokens, size): its shape and its runs of
// bytes. The zero value is no tensor.
type tokenRun struct {
	dataType DataType
	shape    []int
	runs     [][]byte
}

func wholeRun(t Tensor) tokenRun {
	if t.IsZero() {
		return tokenRun{}
	}
	return tokenRun{dataType: t.dataType, shape: t.shape, runs: [][]byte{t.data}}
}

func (t *tokenRun) isZero() bool {
	return t.dataType == TypeUnspecified && t.shape == nil && t.runs == nil
}

// piecesOf cuts an append into pieces of at most 8 MiB. What cannot be cut, as it is
// wrong, is one piece: the server says why.
func piecesOf(key, value Tensor) []piece {
	whole := piece{key: wholeRun(key), value: wholeRun(value)}
	if len(key.shape) > 1 {
		whole.end = key.shape[1]
	}
	keyView, keyOK := viewOf(key, 1)
	valueView, valueOK := axisView{}, true
	if !value.IsZero() {
		valueView, valueOK = viewOf(value, 1)
		valueOK = valueOK && valueView.length == keyView.length && len(value.shape) == 3
	}
	if len(key.data)+len(value.data) <= appendBytes || !keyOK || !valueOK || len(key.shape) != 3 || keyView.length < 2 {
		return []piece{whole}
	}
	tokenBytes := keyView.tokenBytes()
	if valueView.hasElements {
		tokenBytes += valueView.tokenBytes()
	}
	perPiece := max(1, appendBytes/max(1, tokenBytes))
	var pieces []piece
	for begin := 0; begin < keyView.length; begin += perPiece {
		end := min(begin+perPiece, keyView.length)
		p := piece{begin: begin, end: end, key: keyView.tokens(begin, end)}
		if !value.IsZero() {
			p.value = valueView.tokens(begin, end)
		}
		pieces = append(pieces, p)
	}
	return pieces
}

func (v *axisView) tokens(begin, end int) tokenRun {
	run := tokenRun{dataType: v.tensor.dataType, shape: v.shapeOf(end - begin), runs: [][]byte{}}
	if v.hasElements {
		for o := 0; o < v.outer; o++ {
			run.runs = append(run.runs, v.run(o, begin, end))
		}
	}
	return run
}

func digestOf(key, value Tensor) [sha256.Size]byte {
	hash := sha256.New()
	for _, t := range []Tensor{key, value} {
		hash.Write([]byte(t.String() + "\n"))
		hash.Write(t.data)
	}
	var digest [sha256.Size]byte
	hash.Sum(digest[:0])
	return digest
}

// AttendOptions are how queries are attended to, by the rules of AttendRequest in
// session.proto. Causal defaults to CausalBottomRight: the last query sees all
// tokens. Layout, QueryHeads, KVHeads and ReturnPresent must be left out.
type AttendOptions struct {
	Options
	// Mask as in [Request], broadcast to (1, Hq, S, T - MaskBegin).
	Mask Tensor
	// MaskBegin is the token of the mask's first column: a multiple of 256.
	MaskBegin int64
	// Indices as in [Request]: (S, k), or (Hq, S, k) for each query head. They count
	// from the session's first token, released ones too.
	Indices Tensor
	// RowSinks as in [Request]: (Hq, S).
	RowSinks Tensor
	// NotCausal lets every query see every token, but for what mask and options hide.
	NotCausal bool
	// AnyLength attends to whatever the layer has, whoever has appended it. Without it a
	// layer that is not as long as the handle knows is ABORTED. Where tokens are appended in
	// the same step it says nothing.
	AnyLength bool
}

// AttendResult is an answer. What was not asked for is no tensor ([Tensor.IsZero]).
type AttendResult struct {
	// Output is (Hq, S, Dv), of the query's type; none where an item only appends.
	Output Tensor
	// LogSumExp is (Hq, S).
	LogSumExp Tensor
	// Scores is (Hq, S, T).
	Scores Tensor
	// Length of the layer: what was attended to.
	Length int64
	// Timing of the whole message.
	Timing Timing
}

// Attend attends to all tokens of a layer, which must be as long as the handle knows
// unless [AttendOptions.AnyLength] is set. query is (Hq, S, D), of the type that the
// session stores. attend may be nil.
func (s *Session) Attend(ctx context.Context, layer int, query Tensor, attend *AttendOptions, options ...CallOption) (*AttendResult, error) {
	return s.only(ctx, StepItem{Session: s, Layer: layer, Query: query, Attend: attend}, options)
}

// Step appends, then attends to all tokens, the new ones too, in one message: both
// or, on an error, neither. attend may be nil. Steps go over a stream that stays open
// between them; a token of the caller is that of the time when the stream began.
func (s *Session) Step(ctx context.Context, layer int, key, value, query Tensor, attend *AttendOptions, options ...CallOption) (*AttendResult, error) {
	return s.only(ctx, StepItem{Session: s, Layer: layer, Key: key, Value: value, Query: query, Attend: attend}, options)
}

func (s *Session) only(ctx context.Context, item StepItem, options []CallOption) (*AttendResult, error) {
	result := s.client.Step(ctx, []StepItem{item}, options...)[0]
	if result.Err != nil {
		return nil, result.Err
	}
	return &result.AttendResult, nil
}

// Fork makes a new session with the tokens of this one; id "": the client chooses.
func (s *Session) Fork(ctx context.Context, id string, options ...CallOption) (*Session, error) {
	made, err := s.client.ForkSessions(ctx, []Fork{{Source: s, Target: id}}, options...)
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

// Truncate forgets the tokens of every layer from length on. If a layer is shorter it
// fails, and nothing is changed.
func (s *Session) Truncate(ctx context.Context, length int64, options ...CallOption) error {
	if failed := s.check(s.client); failed != nil {
		return s.client.named(failed)
	}
	begun := time.Now()
	var answer *attentionpb.TruncateSessionResponse
	err := s.client.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		answer, err = s.client.sessions.TruncateSession(ctx, &attentionpb.TruncateSessionRequest{
			Id: s.id, Incarnation: s.incarnation, Length: length,
		}, option)
		return err
	})
	s.callEnded(begun, err)
	if err == nil {
		s.setLengths(answer.GetSession())
	}
	return err
}

// Refresh takes over the lengths that the server has.
func (s *Session) Refresh(ctx context.Context, options ...CallOption) error {
	if failed := s.check(s.client); failed != nil {
		return s.client.named(failed)
	}
	begun := time.Now()
	answer, err := s.client.getSession(ctx, s.id, s.incarnation, options)
	s.callEnded(begun, err)
	if err == nil {
		s.setLengths(answer)
	}
	return err
}

// Delete ends the session. It is no error if it has ended before.
func (s *Session) Delete(ctx context.Context, options ...CallOption) error {
	if s.check(s.client) != nil {
		return nil // One with the same id would be another.
	}
	if err := s.client.deleteSession(ctx, s.id, s.incarnation, options); err != nil {
		return err
	}
	gone := newError(codes.NotFound, reasonSessionUnknown, "session '%s': it was deleted", s.id)
	s.callEnded(time.Now(), gone)
	s.client.renewer.remove(s)
	return nil
}

// Close stops renewing the lease, and leaves the session to whoever goes on with it.
// The handle may still be used.
func (s *Session) Close() { s.client.renewer.remove(s) }

// check tells why the session cannot be used by a client.
func (s *Session) check(client *Client) *Error {
	if s == nil || s.client != client {
		return newError(codes.InvalidArgument, "", "session: got none or one of another client, wanted one of this client")
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.gone.copied()
}

// copied is for each caller to have an error of its own.
func (e *Error) copied() *Error {
	if e == nil {
		return nil
	}
	c := *e
	return &c
}

// callEnded remembers that the server has heard of the session, or that it is gone.
func (s *Session) callEnded(begun time.Time, err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	failed, _ := err.(*Error)
	if failed == nil {
		if begun.After(s.lastUsed) {
			s.lastUsed = begun
		}
		return
	}
	if s.gone == nil && failed.Reason == reasonSessionUnknown {
		s.gone = failed.copied()
	}
}

func (s *Session) setLengths(m *attentionpb.Session) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i, length := range m.GetLengths() {
		// What is under way will say itself how it ended.
		if i < len(s.layers) && !s.layers[i].appending {
			s.layers[i] = layer{length: length, appends: s.layers[i].appends + 1}
		}
	}
}

// claim is the right to append to a layer of a handle.
type claim struct {
	session *Session
	number  int
	// Nil where the session has no such layer: the server says so.
	layer *layer
}

func (s *Session) claim(number int) (*claim, *Error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.gone != nil {
		return nil, s.gone.copied()
	}
	c := &claim{session: s, number: number}
	if number < 0 || number >= len(s.layers) {
		return c, nil
	}
	found := &s.layers[number]
	if found.appending {
		e := newError(codes.Aborted, reasonLengthConflict, "layer %d: another append to it is under way in this client", number)
		e.Metadata = map[string]string{"length": strconv.FormatInt(found.length, 10)}
		e.status = statusOf(e)
		return nil, e
	}
	found.appending = true
	c.layer = found
	return c, nil
}

func (c *claim) release() {
	if c.layer == nil {
		return
	}
	c.session.mutex.Lock()
	defer c.session.mutex.Unlock()
	c.layer.appending = false
}

// expected is the length before, and the request id of what is appended there.
func (c *claim) expected() (length *int64, requestID string) {
	if c.layer == nil {
		return nil, ""
	}
	c.session.mutex.Lock()
	defer c.session.mutex.Unlock()
	id := c.session.nonce + "-" + strconv.Itoa(c.number) + "-" + strconv.FormatUint(c.layer.appends, 10)
	return Ptr(c.layer.length), id
}

func (c *claim) appended(length int64) {
	if c.layer == nil {
		return
	}
	c.session.mutex.Lock()
	defer c.session.mutex.Unlock()
	c.layer.length = length
	c.layer.appends++
	c.layer.unfinished = nil
}

func (c *claim) unfinished() *unfinishedAppend {
	if c.layer == nil {
		return nil
	}
	c.session.mutex.Lock()
	defer c.session.mutex.Unlock()
	return c.layer.unfinished
}

func (c *claim) leaveUnfinished(append *unfinishedAppend) {
	if c.layer == nil {
		return
	}
	c.session.mutex.Lock()
	defer c.session.mutex.Unlock()
	c.layer.unfinished = append
}
