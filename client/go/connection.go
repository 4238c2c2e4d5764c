package attention

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	maxHeaderBytes = 64 << 10
	pingEvery      = 30 * time.Second
	// Answers of some MB then need no window updates on their way. Of the
	// connection: many answers at once.
	streamWindow     = 4 << 20
	connectionWindow = 16 << 20
)

var errPlaintextToken = errors.New("the token would travel in plain text to an address that is not loopback: use TLS, or AllowPlaintextToken")

// connect makes the connection that options ask for; nothing is sent yet.
func connect(target string, config *clientConfig, conns *connections) (*grpc.ClientConn, *Error) {
	if target == "" || strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		return nil, newError(codes.InvalidArgument, "", "target: got %q, wanted an address such as 127.0.0.1:50051", target)
	}
	security, err := transportSecurity(config)
	if err != nil {
		return nil, err
	}
	token, err := newTokenSource(config.token, config.tokenFile)
	if err != nil {
		return nil, err
	}
	watched := &watchingCredentials{TransportCredentials: security, conns: conns}
	options := []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec{}),
			grpc.MaxCallRecvMsgSize(receiveLimit(config)),
			grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithUserAgent("attention-go/" + Version),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery}),
		// What is tried again is decided in retry.go alone. A connection that cannot be
		// made is begun anew in time for the next try.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.1, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithWriteBufferSize(128 << 10),
		grpc.WithReadBufferSize(128 << 10),
	}
	if config.noProxy {
		options = append(options, grpc.WithNoProxy())
	}
	if token != nil {
		options = append(options, grpc.WithPerRPCCredentials(token))
		if !encrypts(security) && !config.allowPlaintextToken {
			if isRemote(target) {
				return nil, newError(codes.InvalidArgument, reasonPlaintextToken, "target: got %s, wanted loopback or a Unix socket: %v", target, errPlaintextToken)
			}
			watched.loopbackOnly = true
			// A proxy on loopback would pass the token on.
			options = append(options, grpc.WithNoProxy())
		}
	}
	options = append(options, config.dialOptions...)
	conn, dialErr := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(watched))...)
	if dialErr != nil {
		return nil, newError(codes.InvalidArgument, "", "target: got %q: %v", target, dialErr)
	}
	return conn, nil
}

func receiveLimit(config *clientConfig) int {
	if config.maxReceiveBytes > 0 {
		return config.maxReceiveBytes
	}
	return math.MaxInt
}

// isRemote tells whether the target itself says that it is not on this machine. Of a
// name only the connection can tell.
func isRemote(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return false
	}
	host := target[strings.LastIndexByte(target, '/')+1:]
	if only, _, err := net.SplitHostPort(host); err == nil {
		host = only
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && !address.Unmap().IsLoopback() && !address.IsUnspecified()
}

func isLocal(address net.Addr) bool {
	switch address := address.(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		return address.IP.IsLoopback()
	}
	return false
}

func encrypts(security credentials.TransportCredentials) bool {
	return security.Info().SecurityProtocol != insecure.NewCredentials().Info().SecurityProtocol
}

func transportSecurity(config *clientConfig) (credentials.TransportCredentials, *Error) {
	if config.credentials != nil {
		if config.tls {
			return nil, newError(codes.InvalidArgument, "", "WithTransportCredentials: wanted no option of TLS beside it")
		}
		return config.credentials, nil
	}
	if !config.tls {
		return insecure.NewCredentials(), nil
	}
	if config.tlsConfig != nil {
		if config.tlsCA != "" || config.tlsCert != "" || config.tlsKey != "" {
			return nil, newError(codes.InvalidArgument, "", "WithTLSConfig: wanted no other option of TLS beside it")
		}
		return credentials.NewTLS(config.tlsConfig), nil
	}
	made := &tls.Config{MinVersion: tls.VersionTLS12}
	if config.tlsCA != "" {
		pem, err := os.ReadFile(config.tlsCA)
		if err != nil {
			return nil, fileError("WithTLSCA", err)
		}
		made.RootCAs = x509.NewCertPool()
		if !made.RootCAs.AppendCertsFromPEM(pem) {
			return nil, newError(codes.InvalidArgument, "", "WithTLSCA: %s holds no certificate in PEM", config.tlsCA)
		}
	}
	if config.tlsCert != "" || config.tlsKey != "" {
		pair, err := tls.LoadX509KeyPair(config.tlsCert, config.tlsKey)
		if err != nil {
			return nil, fileError("WithClientCertificate", err)
		}
		made.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(made), nil
}

func fileError(option string, err error) *Error {
	e := newError(codes.InvalidArgument, "", "%s: %v", option, err)
	e.cause = err
	return e
}

// watchingCredentials sees each connection before anything is sent through it.
type watchingCredentials struct {
	credentials.TransportCredentials
	conns *connections
	// Whether connections that lead elsewhere are refused.
	loopbackOnly bool
}

func (w *watchingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if w.loopbackOnly && !isLocal(raw.RemoteAddr()) {
		return nil, nil, errPlaintextToken
	}
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return w.conns.watch(conn), info, nil
}

func (w *watchingCredentials) Clone() credentials.TransportCredentials {
	cloned := *w
	cloned.TransportCredentials = w.TransportCredentials.Clone()
	return &cloned
}

// connections are the open connections of a client, to close those that are stuck.
type connections struct {
	mutex sync.Mutex
	open  map[*watchedConn]struct{}
}

// watchedConn knows since when a write to it is under way.
type watchedConn struct {
	net.Conn
	conns *connections
	// Unix nanoseconds; 0: no write is under way.
	writingSince atomic.Int64
}

func (c *connections) watch(conn net.Conn) net.Conn {
	watched := &watchedConn{Conn: conn, conns: c}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.open == nil {
		c.open = make(map[*watchedConn]struct{})
	}
	c.open[watched] = struct{}{}
	return watched
}

// closeStuck closes the connections whose peer has taken nothing for so long.
func (c *connections) closeStuck(after time.Duration) {
	limit := time.Now().Add(-after).UnixNano()
	c.mutex.Lock()
	var stuck []*watchedConn
	for conn := range c.open {
		if since := conn.writingSince.Load(); since != 0 && since < limit {
			stuck = append(stuck, conn)
		}
	}
	c.mutex.Unlock()
	for _, conn := range stuck {
		_ = conn.Close() // What was to be written fails, and says so itself.
	}
}

func (w *watchedConn) Write(data []byte) (int, error) {
	w.writingSince.Store(time.Now().UnixNano())
	defer w.writingSince.Store(0)
	return w.Conn.Write(data)
}

func (w *watchedConn) Close() error {
	w.conns.mutex.Lock()
	delete(w.conns.open, w)
	w.conns.mutex.Unlock()
	return w.Conn.Close()
}

// tokenSource gives each call its token. Nothing prints one: see Format.
type tokenSource struct {
	file string

	mutex  sync.Mutex
	token  string
	readAt time.Time
}

// newTokenSource is nil where there is no token.
func newTokenSource(token, file string) (*tokenSource, *Error) {
	if token != "" && file != "" {
		return nil, newError(codes.InvalidArgument, "", "WithToken: wanted it or WithTokenFile, not both")
	}
	if token == "" && file == "" {
		return nil, nil
	}
	source := &tokenSource{file: file, token: token}
	if file != "" {
		read, err := readToken(file)
		if err != nil {
			return nil, fileError("WithTokenFile", err)
		}
		source.token, source.readAt = read, time.Now()
	}
	if !isToken(source.token) {
		return nil, newError(codes.InvalidArgument, "", "WithToken: got %d bytes that are no token, wanted up to %d letters, digits and -._~+/, with = at the end",
			len(source.token), maxTokenBytes)
	}
	return source, nil
}

const (
	maxTokenBytes = 4096
	rereadAfter   = time.Second
)

func isToken(token string) bool {
	body := strings.TrimRight(token, "=")
	if body == "" || len(token) > maxTokenBytes {
		return false
	}
	for _, letter := range []byte(body) {
		switch {
		case 'a' <= letter && letter <= 'z', 'A' <= letter && letter <= 'Z', '0' <= letter && letter <= '9':
		case strings.IndexByte("-._~+/", letter) >= 0:
		default:
			return false
		}
	}
	return true
}

func readToken(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if info.Size() > 2*maxTokenBytes {
		return "", fmt.Errorf("%s: got %d bytes, wanted a token on one line", file, info.Size())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if !isToken(token) {
		return "", fmt.Errorf("%s: holds no token on one line", file)
	}
	return token, nil
}

func (s *tokenSource) current() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.file != "" && time.Since(s.readAt) >= rereadAfter {
		s.readAt = time.Now()
		if token, err := readToken(s.file); err == nil {
			s.token = token
		}
	}
	return s.token
}

// GetRequestMetadata is gRPC's question for the headers of a call.
func (s *tokenSource) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + s.current()}, nil
}

// RequireTransportSecurity is false: watchingCredentials decides.
func (s *tokenSource) RequireTransportSecurity() bool { return false }

// Format keeps the token out of everything that is printed.
func (s *tokenSource) Format(state fmt.State, _ rune) { _, _ = state.Write([]byte("token")) }
