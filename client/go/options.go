package attention

import (
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// DefaultTimeout is the deadline of a call whose context has none, and for which
// [WithTimeout] gives none.
const DefaultTimeout = 60 * time.Second

// ClientOption is how a client connects, for [New]. Every [CallOption] is one too,
// and then the default of all calls.
type ClientOption interface {
	applyClient(*clientConfig)
}

// CallOption changes one call.
type CallOption interface {
	ClientOption
	applyCall(*callConfig)
}

type clientConfig struct {
	tls                 bool
	tlsCA               string
	tlsCert, tlsKey     string
	tlsConfig           *tls.Config
	credentials         credentials.TransportCredentials
	token               string
	tokenFile           string
	allowPlaintextToken bool
	maxReceiveBytes     int
	noProxy             bool
	noStreams           bool
	dialOptions         []grpc.DialOption
	call                callConfig
}

type callConfig struct {
	timeout     time.Duration
	maxAttempts int
	progress    func(sent, total int64)
	headers     []string
}

type clientOption func(*clientConfig)

func (o clientOption) applyClient(c *clientConfig) { o(c) }

type callOption func(*callConfig)

func (o callOption) applyClient(c *clientConfig) { o(&c.call) }
func (o callOption) applyCall(c *callConfig)     { o(c) }

// WithTLS encrypts, and trusts the machine's authorities.
func WithTLS() ClientOption {
	return clientOption(func(c *clientConfig) { c.tls = true })
}

// WithTLSCA encrypts, and trusts the authorities in this PEM file instead.
func WithTLSCA(file string) ClientOption {
	return clientOption(func(c *clientConfig) { c.tls, c.tlsCA = true, file })
}

// WithClientCertificate encrypts, and shows the server a certificate (with its
// chain): names of PEM files.
func WithClientCertificate(certFile, keyFile string) ClientOption {
	return clientOption(func(c *clientConfig) { c.tls, c.tlsCert, c.tlsKey = true, certFile, keyFile })
}

// WithTLSConfig encrypts as config says, in place of the three options above.
func WithTLSConfig(config *tls.Config) ClientOption {
	return clientOption(func(c *clientConfig) { c.tls, c.tlsConfig = true, config })
}

// WithTransportCredentials secures the connection by other means of gRPC's, in place
// of the four options above. Credentials that do not encrypt count as plain text.
func WithTransportCredentials(security credentials.TransportCredentials) ClientOption {
	return clientOption(func(c *clientConfig) { c.credentials = security })
}

// WithToken sends "authorization: Bearer TOKEN" with each call. Without TLS it goes
// to loopback addresses and Unix sockets only: see [AllowPlaintextToken].
func WithToken(token string) ClientOption {
	return clientOption(func(c *clientConfig) { c.token = token })
}

// WithTokenFile does the same with the token on the one line of a file. The file is
// read now, and again with a call when the last time is a second ago, so that it
// may be replaced. One that cannot be read then leaves the last token in use.
func WithTokenFile(file string) ClientOption {
	return clientOption(func(c *clientConfig) { c.tokenFile = file })
}

// AllowPlaintextToken lets a token travel where others can read it.
func AllowPlaintextToken() ClientOption {
	return clientOption(func(c *clientConfig) { c.allowPlaintextToken = true })
}

// WithMaxReceiveBytes is the largest answer that is taken, in bytes of its message.
// A larger one fails with RESOURCE_EXHAUSTED; the server refuses it before it is
// computed. Default: no limit.
func WithMaxReceiveBytes(bytes int) ClientOption {
	return clientOption(func(c *clientConfig) { c.maxReceiveBytes = bytes })
}

// WithoutProxy asks no HTTP proxy, whatever the environment says. Loopback and Unix
// sockets are never asked for through one.
func WithoutProxy() ClientOption {
	return clientOption(func(c *clientConfig) { c.noProxy = true })
}

// WithoutStreams sends every request of [Client.Compute] as one message.
func WithoutStreams() ClientOption {
	return clientOption(func(c *clientConfig) { c.noStreams = true })
}

// WithDialOptions are gRPC's own, such as an interceptor. They come after those of this
// package, and may undo them, but for what secures the connection.
func WithDialOptions(options ...grpc.DialOption) ClientOption {
	return clientOption(func(c *clientConfig) { c.dialOptions = append(c.dialOptions, options...) })
}

// WithTimeout ends the call with DEADLINE_EXCEEDED when this much time has passed,
// tries and pauses included. The context's own deadline counts too.
func WithTimeout(timeout time.Duration) CallOption {
	return callOption(func(c *callConfig) { c.timeout = timeout })
}

// WithMaxAttempts is how often a call is tried at most: 1 is once, and then an
// append that is still under way is not waited for either. Default: 4. [Client]
// says what is tried again.
func WithMaxAttempts(attempts int) CallOption {
	return callOption(func(c *callConfig) { c.maxAttempts = attempts })
}

// WithProgress is told how many bytes of keys and values were handed to the
// connection, of a request that is sent in pieces. It must not block.
func WithProgress(progress func(sent, total int64)) CallOption {
	return callOption(func(c *callConfig) { c.progress = progress })
}

// WithHeader sends one more header, such as "x-request-id" or "traceparent": the
// server logs these two and sends them back. A step goes over a stream that was opened
// with the same headers, and begins one where there is none: headers that differ in
// every step cost it a stream each.
func WithHeader(name, value string) CallOption {
	return callOption(func(c *callConfig) { c.headers = append(c.headers[:len(c.headers):len(c.headers)], name, value) })
}
