package attention

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// Client calls a server. It may be used by any number of goroutines at once; they
// share a connection, which is made by the first call, and made anew after it was
// lost.
//
// # Deadlines
//
// Every call has a deadline: that of its context, or [DefaultTimeout] if the context
// has none. [WithTimeout] shortens both. Cancelling the context reaches the server,
// which stops working on the call.
//
// # What is tried again
//
// A call is tried up to four times within its deadline ([WithMaxAttempts]):
//
//   - RESOURCE_EXHAUSTED with a retry delay, and UNAVAILABLE with reason DRAINING: the
//     server refused the call before anything was done. Every call is tried again.
//   - UNAVAILABLE without a reason: the connection was lost, and nobody knows whether
//     the call was done. Every call is tried again but the forks of sessions, which
//     would be done twice.
//   - UNAVAILABLE with reason APPEND_UNDER_WAY: an earlier try of the same append still
//     runs. It is tried until it has another answer; these tries do not count.
//
// Nothing else is tried again. The pause before the next try is what the server asked
// for, or 100 ms, 200 ms, 400 ms; and up to a fifth more. Where it would pass the
// deadline the error is returned at once.
type Client struct {
	target string
	config *clientConfig
	conn   *grpc.ClientConn
	conns  *connections

	attention attentionpb.AttentionServiceClient
	sessions  attentionpb.SessionServiceClient
	health    healthpb.HealthClient

	// Set once the server has shown that it knows no streams.
	knowsNoStreams atomic.Bool
	streams        stepStreams
	renewer        leaseRenewer
}

// New makes a client of the server at target: "host:port", "unix:/path",
// "dns:///name:port" or any other name that gRPC knows. It does not wait for the
// network: the first call connects, and says if that fails. New fails, with an
// [Error], if an option cannot be used, such as a file that is not there.
func New(target string, options ...ClientOption) (*Client, error) {
	config := &clientConfig{call: callConfig{maxAttempts: defaultMaxAttempts}}
	for _, option := range options {
		option.applyClient(config)
	}
	client := &Client{target: target, config: config, conns: &connections{}}
	conn, failed := connect(target, config, client.conns)
	if failed != nil {
		failed.Server = target
		return nil, failed
	}
	client.conn = conn
	client.attention = attentionpb.NewAttentionServiceClient(conn)
	client.sessions = attentionpb.NewSessionServiceClient(conn)
	client.health = healthpb.NewHealthClient(conn)
	client.streams.client = client
	client.renewer.start(client)
	return client, nil
}

// Close ends the client: calls under way fail with CANCELLED, and leases are no
// longer renewed. It does not delete sessions, and returns when nothing of the client
// runs any more. To close twice is no error.
func (c *Client) Close() error {
	c.renewer.stop()
	c.streams.close()
	_ = c.conn.Close() // Says no more than that it was closed before.
	return nil
}

// Target is the server's name, as New was given it.
func (c *Client) Target() string { return c.target }

// Conn is gRPC's connection, for calls through stubs of one's own. Calls on it carry
// the client's token; they are not tried again.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// String names the server.
func (c *Client) String() string { return fmt.Sprintf("attention.Client(%s)", c.target) }

// Capabilities are what a server can do, and its limits: see attention.proto.
type Capabilities = attentionpb.GetCapabilitiesResponse

// Capabilities tells the server's limits, types and build. They do not change while
// the server lives.
func (c *Client) Capabilities(ctx context.Context, options ...CallOption) (*Capabilities, error) {
	var capabilities *Capabilities
	err := c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		capabilities, err = c.attention.GetCapabilities(ctx, &attentionpb.GetCapabilitiesRequest{}, option)
		return err
	})
	if err != nil {
		return nil, err
	}
	return capabilities, nil
}

// Health is whether a server, or a service of it, takes calls.
type Health int

// What a server says of its health.
const (
	HealthUnknown Health = iota
	HealthServing
	HealthNotServing
)

// String is gRPC's name: "SERVING".
func (h Health) String() string {
	switch h {
	case HealthServing:
		return "SERVING"
	case HealthNotServing:
		return "NOT_SERVING"
	}
	return "UNKNOWN"
}

// Health asks for the health of a service, such as "attention.v1.AttentionService";
// of the whole server if it is "".
func (c *Client) Health(ctx context.Context, service string, options ...CallOption) (Health, error) {
	var answer *healthpb.HealthCheckResponse
	err := c.call(ctx, repeatable, options, func(ctx context.Context, option grpc.CallOption) (err error) {
		answer, err = c.health.Check(ctx, &healthpb.HealthCheckRequest{Service: service}, option)
		return err
	})
	if err != nil {
		return HealthUnknown, err
	}
	switch answer.GetStatus() {
	case healthpb.HealthCheckResponse_SERVING:
		return HealthServing, nil
	case healthpb.HealthCheckResponse_NOT_SERVING:
		return HealthNotServing, nil
	}
	return HealthUnknown, nil
}

// prepare gives a call its options, deadline and headers.
func (c *Client) prepare(ctx context.Context, options []CallOption) (context.Context, context.CancelFunc, *callConfig) {
	config := c.config.call
	for _, option := range options {
		option.applyCall(&config)
	}
	config.maxAttempts = max(config.maxAttempts, 1)
	if len(config.headers) > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, config.headers...)
	}
	timeout := config.timeout
	if timeout == 0 {
		if _, has := ctx.Deadline(); has {
			return ctx, func() {}, &config
		}
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return ctx, cancel, &config
}

// named says which server an error is of.
func (c *Client) named(e *Error) error {
	if e == nil {
		return nil
	}
	e.Server = c.target
	return e
}

// call makes a call whose messages are protobuf's, and tries it again as its kind
// may be.
func (c *Client) call(ctx context.Context, k kind, options []CallOption, invoke func(context.Context, grpc.CallOption) error) error {
	ctx, cancel, config := c.prepare(ctx, options)
	defer cancel()
	return c.named(retry(ctx, newRetrier(k, config.maxAttempts), func() *Error {
		var trailer metadata.MD
		if err := invoke(ctx, grpc.Trailer(&trailer)); err != nil {
			return errorFrom(ctx, err, trailer)
		}
		return nil
	}))
}

// send makes one attempt of a unary call whose request lends its tensors. It returns
// when nothing lent is used any more.
func (c *Client) send(ctx context.Context, method string, request *writer, answer incoming, headers ...string) *Error {
	end, failed := c.sendLent(ctx, method, request.finish(), answer, headers)
	if end != nil {
		end.wait(c.conns)
	}
	return failed
}

func (c *Client) sendLent(ctx context.Context, method string, request *outgoing, answer incoming, headers []string) (*leaseEnd, *Error) {
	if len(headers) > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	}
	var trailer metadata.MD
	err := c.conn.Invoke(ctx, method, request, answer, grpc.Trailer(&trailer))
	end := request.release()
	if err != nil {
		return end, errorFrom(ctx, err, trailer)
	}
	return end, nil
}

// sizeHeaders tell the server how large the request is, and how large its answer may
// be.
func (c *Client) sizeHeaders(requestBytes int) []string {
	headers := []string{"attention-request-bytes", strconv.Itoa(requestBytes)}
	if c.config.maxReceiveBytes > 0 {
		headers = append(headers, "attention-max-response-bytes", strconv.Itoa(c.config.maxReceiveBytes))
	}
	return headers
}

// Timing is how long the server took.
type Timing struct {
	// Queue is from the request's arrival to the start of work on it.
	Queue time.Duration
	// Decode is reading the message into tensors.
	Decode time.Duration
	// Compute is the attention itself.
	Compute time.Duration
	// Encode is writing the answer.
	Encode time.Duration
}

func timingOf(t *attentionpb.Timing) Timing {
	return Timing{
		Queue:   time.Duration(t.GetQueueUs()) * time.Microsecond,
		Decode:  time.Duration(t.GetDecodeUs()) * time.Microsecond,
		Compute: time.Duration(t.GetComputeUs()) * time.Microsecond,
		Encode:  time.Duration(t.GetEncodeUs()) * time.Microsecond,
	}
}
