package attention_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// authority signs certificates for a test.
type authority struct {
	folder      string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{folder: t.TempDir()}
	a.certificate, a.key = a.make(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// make writes NAME.pem and NAME.key.
func (a *authority) make(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer))(t)
	write := func(suffix, kind string, data []byte) {
		if err := os.WriteFile(a.file(name+suffix), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(".pem", "CERTIFICATE", der)
	write(".key", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(t))
	return must(x509.ParseCertificate(der))(t), key
}

func (a *authority) file(name string) string { return filepath.Join(a.folder, name) }

func serverTemplate() *x509.Certificate {
	return &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
}

func computes(t *testing.T, client *attention.Client) error {
	t.Helper()
	_, err := client.Compute(testContext(t), &attention.Request{Query: eye(), Key: eye(), Value: eye()}, attention.WithMaxAttempts(1))
	return err
}

func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	ours.make(t, "server", serverTemplate())
	address, _ := startServer(t, "--tls-cert="+ours.file("server.pem"), "--tls-key="+ours.file("server.key"))
	if err := computes(t, newClient(t, address, attention.WithTLSCA(ours.file("ca.pem")))); err != nil {
		t.Error(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ours.certificate)
	if err := computes(t, newClient(t, address, attention.WithTLSConfig(&tls.Config{RootCAs: pool}))); err != nil {
		t.Error(err)
	}
	own := credentials.NewTLS(&tls.Config{RootCAs: pool})
	if err := computes(t, newClient(t, address, attention.WithTransportCredentials(own))); err != nil {
		t.Error(err)
	}
	plain := environment(t, "ATTENTION_TEST_SERVER")
	for _, c := range []struct {
		address, text string
		options       []attention.ClientOption
	}{
		{address, "the server's certificate was refused: certificate signed by unknown authority", []attention.ClientOption{attention.WithTLSCA(others.file("ca.pem"))}},
		{address, "the server's certificate was refused: ", []attention.ClientOption{attention.WithTLS()}},
		{address, "it may want TLS", nil},
		{plain, "the server does not speak TLS on this port", []attention.ClientOption{attention.WithTLSCA(ours.file("ca.pem"))}},
	} {
		failed := asError(t, computes(t, newClient(t, c.address, c.options...)))
		if failed.Code != codes.Unavailable {
			t.Error(failed)
		}
		contains(t, failed.Message, c.text)
	}
}

func TestMutualTLS(t *testing.T) {
	ours := newAuthority(t)
	ours.make(t, "server", serverTemplate())
	ours.make(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	address, _ := startServer(t, "--tls-cert="+ours.file("server.pem"), "--tls-key="+ours.file("server.key"), "--tls-client-ca="+ours.file("ca.pem"))
	ca := attention.WithTLSCA(ours.file("ca.pem"))
	if err := computes(t, newClient(t, address, ca, attention.WithClientCertificate(ours.file("client.pem"), ours.file("client.key")))); err != nil {
		t.Error(err)
	}
	// The text depends on whether a write or a read fails first.
	if failed := asError(t, computes(t, newClient(t, address, ca))); failed.Code != codes.Unavailable {
		t.Error(failed)
	}
}

func tokenLine(token, tenant string) string {
	return fmt.Sprintf("%x %s\n", sha256.Sum256([]byte(token)), tenant)
}

func TestTokensOfTheServer(t *testing.T) {
	folder := t.TempDir()
	tokens, file := filepath.Join(folder, "tokens"), filepath.Join(folder, "token")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(tokens, tokenLine("first-token", "a")+tokenLine("second-token", "b"))
	write(file, "first-token\n")
	address, _ := startServer(t, "--tokens="+tokens)
	for _, c := range []struct {
		options []attention.ClientOption
		reason  string
	}{
		{nil, "TOKEN_MISSING"},
		{[]attention.ClientOption{attention.WithToken("third-token")}, "TOKEN_UNKNOWN"},
		{[]attention.ClientOption{attention.WithToken("second-token")}, ""},
	} {
		err := computes(t, newClient(t, address, c.options...))
		if c.reason == "" && err != nil || c.reason != "" && asError(t, err).Reason != c.reason {
			t.Errorf("got %v, wanted %q", err, c.reason)
		}
	}
	// The file is read again, at most once a second; what is no token is not taken.
	client := newClient(t, address, attention.WithTokenFile(file))
	session := must(client.CreateSession(testContext(t), "", attention.SessionConfig{KVHeads: 1, HeadSize: 2}))(t)
	write(file, "no token at all\n")
	time.Sleep(1100 * time.Millisecond)
	if err := session.Refresh(testContext(t)); err != nil {
		t.Errorf("with the last token: %v", err)
	}
	write(file, "second-token\n")
	time.Sleep(1100 * time.Millisecond)
	if err := session.Refresh(testContext(t)); err == nil || asError(t, err).Reason != "SESSION_UNKNOWN" {
		t.Errorf("another tenant: got %v", err)
	}
}

// TestPlaintextTokensStayOnTheMachine, whatever the target is called.
func TestPlaintextTokensStayOnTheMachine(t *testing.T) {
	outside := outsideAddress(t)
	listener := must(net.Listen("tcp", outside+":0"))(t)
	server := grpc.NewServer()
	fake := &fakeAttention{}
	attentionpb.RegisterAttentionServiceServer(server, fake)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	defer func() { server.Stop(); <-done }()
	address := listener.Addr().String()

	_, err := attention.New(address, attention.WithToken("secret"))
	if failed := asError(t, err); failed.Code != codes.InvalidArgument {
		t.Error(failed)
	}
	names := manual.NewBuilderWithScheme("named")
	names.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: address}}})
	byName := attention.WithDialOptions(grpc.WithResolvers(names))
	client := newClient(t, "named:///server", byName, attention.WithToken("secret"))
	_, err = client.Compute(testContext(t), &attention.Request{Query: eye(), Key: eye(), Value: eye()})
	failed := asError(t, err)
	if failed.Code != codes.FailedPrecondition || failed.Attempts != 1 || fake.whole.Load() != 0 {
		t.Errorf("got %v after %d attempts", failed, failed.Attempts)
	}
	contains(t, failed.Message, "plain text")
	// Nor is it let go by other options.
	for _, option := range []attention.ClientOption{
		attention.WithTransportCredentials(insecure.NewCredentials()),
		attention.WithDialOptions(grpc.WithTransportCredentials(insecure.NewCredentials())),
	} {
		client := newClient(t, "named:///server", byName, attention.WithToken("secret"), option)
		if failed := asError(t, computes(t, client)); failed.Code != codes.FailedPrecondition {
			t.Error(failed)
		}
	}
	for _, options := range [][]attention.ClientOption{
		{byName}, {byName, attention.WithToken("secret"), attention.AllowPlaintextToken()},
	} {
		if err := computes(t, newClient(t, "named:///server", options...)); err != nil {
			t.Error(err)
		}
	}
}

// outsideAddress is one of this machine that is not loopback.
func outsideAddress(t *testing.T) string {
	t.Helper()
	for _, address := range must(net.InterfaceAddrs())(t) {
		if network, ok := address.(*net.IPNet); ok && !network.IP.IsLoopback() && network.IP.To4() != nil {
			return network.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

func TestUnixSockets(t *testing.T) {
	path := "unix:" + filepath.Join(t.TempDir(), "socket")
	startServer(t, "--listen="+path)
	for i := 0; ; i++ {
		err := computes(t, newClient(t, path, attention.WithToken("secret")))
		if err == nil {
			return
		}
		if i == 50 {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestNothingPrintsAToken: not the client, nor an error.
func TestNothingPrintsAToken(t *testing.T) {
	const secret = "a-very-secret-token"
	client := newClient(t, "127.0.0.1:1", attention.WithToken(secret))
	texts := fmt.Sprintf("%v %+v %#v %s", client, client, client, client)
	_, err := client.Capabilities(testContext(t), attention.WithMaxAttempts(1))
	texts += fmt.Sprintf("%v %+v %#v", err, err, err)
	_, err = attention.New("127.0.0.1:1", attention.WithToken(secret+" "))
	texts += fmt.Sprintf("%v %+v", err, err)
	_, err = attention.New("192.0.2.1:1", attention.WithToken(secret))
	texts += fmt.Sprintf("%v %+v", err, err)
	if strings.Contains(texts, secret) {
		t.Error(texts)
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for text, options := range map[string][]attention.ClientOption{
		"no option of TLS beside":   {attention.WithTLS(), attention.WithTransportCredentials(insecure.NewCredentials())},
		"WithTLSCA":                 {attention.WithTLSCA(missing)},
		"holds no certificate":      {attention.WithTLSCA("security_test.go")},
		"WithClientCertificate":     {attention.WithClientCertificate(missing, missing)},
		"WithTokenFile":             {attention.WithTokenFile(missing)},
		"holds no token":            {attention.WithTokenFile("go.mod")},
		"not both":                  {attention.WithTokenFile("go.mod"), attention.WithToken("a")},
		"that are no token":         {attention.WithToken("a b")},
		"wanted no other option of": {attention.WithTLSConfig(&tls.Config{}), attention.WithTLSCA(missing)},
	} {
		_, err := attention.New("127.0.0.1:1", options...)
		failed := asError(t, err)
		if failed.Code != codes.InvalidArgument {
			t.Error(failed)
		}
		contains(t, failed.Error(), text)
	}
}
