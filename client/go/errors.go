package attention

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Reasons that this package looks at itself. client/README.md of the repository
// lists all of them.
const (
	reasonDraining        = "DRAINING"
	reasonAppendUnderWay  = "APPEND_UNDER_WAY"
	reasonLengthConflict  = "LENGTH_CONFLICT"
	reasonSessionUnknown  = "SESSION_UNKNOWN"
	reasonInvalidField    = "INVALID_FIELD"
	reasonRequestTooLarge = "REQUEST_TOO_LARGE"
	reasonMemoryTooLarge  = "MEMORY_TOO_LARGE"
	reasonMemoryBusy      = "MEMORY_BUSY"
	reasonIdleTooLong     = "IDLE_TOO_LONG"
	reasonClientLimit     = "CLIENT_LIMIT"
	reasonHeadersTooLarge = "HEADERS_TOO_LARGE"
	// Where the server had nothing to say: the client found it.
	reasonPlaintextToken = "PLAINTEXT_TOKEN"
)

const errorDomain = "attention"

// Error is how a call failed. Every call of this package that fails returns one:
//
//	var failed *attention.Error
//	if errors.As(err, &failed) && failed.Reason == "LENGTH_CONFLICT" {
//		length, _ := failed.Length()
//		...
//	}
//
// It wraps [context.Canceled] or [context.DeadlineExceeded] where the call ended
// for that, so that errors.Is finds them; and status.FromError of gRPC finds the
// status.
type Error struct {
	// Code is gRPC's; CodeName is its name as documents spell it.
	Code codes.Code
	// Reason tells errors of one code apart: "QUEUE_FULL", "INVALID_FIELD". Empty
	// where gRPC or something on the way ended the call.
	Reason string
	// Message is for people: what is wrong, what came and what was wanted.
	Message string
	// Metadata is that of google.rpc.ErrorInfo, such as "length" or "first_token".
	Metadata map[string]string
	// FieldViolations are the fields that are wrong, named as in attention.proto.
	FieldViolations []FieldViolation
	// Resource is the session, region or tenant that the error is about, if it is.
	Resource string
	// Server is the target of the client.
	Server string
	// Attempts is how often the call was tried.
	Attempts int

	retryDelay *time.Duration
	// A trailer that says that the call must not be tried again.
	neverRetry bool
	cause      error
	// The server's status, or one made of the error.
	status *status.Status
}

// FieldViolation is a field of the request that is wrong.
type FieldViolation struct {
	// Field is its path, such as "key.shape" or "options.window.left".
	Field string
	// Description tells what came and what was wanted.
	Description string
}

// CodeName is the code as gRPC's documents spell it: "INVALID_ARGUMENT".
func (e *Error) CodeName() string { return codeName(e.Code) }

// Error is one line, such as
// "INVALID_ARGUMENT (INVALID_FIELD): key.shape: got (3, 4), wanted query's head size 2 (server 127.0.0.1:50051)".
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(e.CodeName())
	if e.Reason != "" && e.Reason != e.CodeName() {
		fmt.Fprintf(&text, " (%s)", e.Reason)
	}
	if e.Message != "" {
		fmt.Fprintf(&text, ": %s", e.Message)
	}
	if e.Server != "" {
		fmt.Fprintf(&text, " (server %s)", e.Server)
	}
	return text.String()
}

// Unwrap is context.Canceled or context.DeadlineExceeded, where the call ended for
// that, or what was wrong with a file or an option.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus is the status, with the server's details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Length is the true length of the layer, of a LENGTH_CONFLICT.
func (e *Error) Length() (length int64, ok bool) {
	length, err := strconv.ParseInt(e.Metadata["length"], 10, 64)
	return length, err == nil
}

// RetryDelay is how long the server asks to wait before the next try, if it does.
// The client has waited and tried again already, as [WithMaxAttempts] says.
func (e *Error) RetryDelay() (delay time.Duration, ok bool) {
	if e.retryDelay == nil {
		return 0, false
	}
	return *e.retryDelay, true
}

// errorFrom is the error of a call that gRPC ended with err.
func errorFrom(ctx context.Context, err error, trailer metadata.MD) *Error {
	var made *Error
	if errors.As(err, &made) {
		return made
	}
	// FromContextError would lose the details that came with a deadline.
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	e := errorOf(st)
	e.readTrailer(trailer)
	e.explain()
	if ctx.Err() != nil && (e.Code == codes.Canceled || e.Code == codes.DeadlineExceeded) {
		e.cause = ctx.Err()
	}
	return e
}

// errorOf reads a status and its details.
func errorOf(st *status.Status) *Error {
	e := &Error{Code: st.Code(), Message: st.Message(), status: st}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				e.Reason = detail.GetReason()
				e.Metadata = detail.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				e.FieldViolations = append(e.FieldViolations, FieldViolation{
					Field:       violation.GetField(),
					Description: violation.GetDescription(),
				})
			}
		case *errdetails.RetryInfo:
			if d := detail.GetRetryDelay(); d.CheckValid() == nil && d.AsDuration() >= 0 {
				delay := d.AsDuration()
				e.retryDelay = &delay
			}
		case *errdetails.ResourceInfo:
			e.Resource = detail.GetResourceName()
		case *errdetails.QuotaFailure:
			for _, violation := range detail.GetViolations() {
				e.Resource = violation.GetSubject()
			}
		}
	}
	return e
}

// readTrailer heeds grpc-retry-pushback-ms, which counts before RetryInfo.
func (e *Error) readTrailer(trailer metadata.MD) {
	told := trailer.Get("grpc-retry-pushback-ms")
	if len(told) == 0 {
		return
	}
	e.retryDelay = nil
	ms, err := strconv.ParseInt(told[0], 10, 64)
	// A delay that no time.Duration can hold is longer than any deadline.
	const most = int64(1<<63-1) / int64(time.Millisecond)
	if err != nil || ms < 0 || len(told) > 1 {
		e.neverRetry = true
		return
	}
	delay := time.Duration(min(ms, most)) * time.Millisecond
	e.retryDelay = &delay
}

// explain gives a reason to what gRPC's library ends by itself, which it tells by
// words only.
func (e *Error) explain() {
	if e.Reason != "" {
		return
	}
	switch {
	case strings.Contains(e.Message, errPlaintextToken.Error()):
		e.Code, e.Reason = codes.FailedPrecondition, reasonPlaintextToken
		e.Message = errPlaintextToken.Error()
	case e.Code == codes.ResourceExhausted &&
		(strings.Contains(e.Message, "received message larger than max") ||
			strings.Contains(e.Message, "trying to send message larger than max") ||
			strings.Contains(e.Message, "message after decompression larger than max")):
		e.Reason = reasonClientLimit
	case e.Code == codes.Internal && strings.Contains(e.Message, "header list size"):
		e.Code, e.Reason = codes.ResourceExhausted, reasonHeadersTooLarge
	case e.Code == codes.Unavailable && whyNotConnected(e.Message) != "":
		e.Message = whyNotConnected(e.Message)
	default:
		return
	}
	e.status = statusOf(e)
}

// whyNotConnected tells in plain words why TLS failed; "" if it did not.
func whyNotConnected(text string) string {
	if _, why, ok := strings.Cut(text, "failed to verify certificate: x509: "); ok {
		return "the server's certificate was refused: " + strings.TrimSuffix(why, `"`)
	}
	for words, why := range map[string]string{
		"first record does not look like a TLS handshake": "the server does not speak TLS on this port",
		"tls: certificate required":                       "the server closed the connection after the TLS handshake: it may want a certificate of the client",
		"tls: unknown certificate authority":              "the server closed the connection after the TLS handshake: it may not trust the client's certificate",
		"frame header looked like an HTTP/1.1 header":     "the server speaks HTTP/1.1 on this port, not gRPC",
		"error reading server preface: EOF":               "the server closed the connection at once: it may want TLS, or a certificate of the client",
	} {
		if strings.Contains(text, words) {
			return why
		}
	}
	return ""
}

// addText says more, in the status too.
func (e *Error) addText(text string) {
	e.Message += text
	changed := e.status.Proto()
	changed.Message = e.Message
	e.status = status.FromProto(changed)
}

// statusOf makes a status of an error that the server has not sent.
func statusOf(e *Error) *status.Status {
	st := status.New(e.Code, e.Message)
	var details []protoadapt.MessageV1
	if e.Reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: e.Reason, Domain: errorDomain, Metadata: e.Metadata})
	}
	if len(e.FieldViolations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, violation := range e.FieldViolations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: violation.Field, Description: violation.Description,
			})
		}
		details = append(details, bad)
	}
	if e.retryDelay != nil {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(*e.retryDelay)})
	}
	if len(details) > 0 {
		if with, err := st.WithDetails(details...); err == nil {
			return with
		}
	}
	return st
}

// newError is an error that the client finds by itself.
func newError(code codes.Code, reason, format string, arguments ...any) *Error {
	e := &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, arguments...)}
	e.status = statusOf(e)
	return e
}

// malformed is an answer that cannot be right: a bug of the server.
func malformed(format string, arguments ...any) *Error {
	return newError(codes.Internal, "", "malformed answer: "+format, arguments...)
}

// contextError is how a call ends whose context has.
func contextError(ctx context.Context) *Error {
	st := status.FromContextError(ctx.Err())
	return &Error{Code: st.Code(), Message: st.Message(), status: st, cause: ctx.Err()}
}

// codeName spells a code as "INVALID_ARGUMENT".
func codeName(code codes.Code) string {
	if code == codes.OK {
		return "OK"
	}
	if code == codes.Canceled {
		return "CANCELLED"
	}
	name := code.String()
	var spelled strings.Builder
	for i, letter := range name {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			spelled.WriteByte('_')
		}
		spelled.WriteRune(letter)
	}
	return strings.ToUpper(spelled.String())
}
