package attention_test

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/attention-service/attention-service/client/go/attentionpb"
)

// serveFake is the address of a server in this process.
func serveFake(t testing.TB, attentionServer attentionpb.AttentionServiceServer, sessionServer attentionpb.SessionServiceServer) string {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(1 << 30))
	if attentionServer != nil {
		attentionpb.RegisterAttentionServiceServer(server, attentionServer)
	}
	if sessionServer != nil {
		attentionpb.RegisterSessionServiceServer(server, sessionServer)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // Ends with Stop.
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return listener.Addr().String()
}

// startServer runs attention_server with flags, until the test ends.
func startServer(t testing.TB, flags ...string) (address string, process *os.Process) {
	t.Helper()
	command := exec.Command(environment(t, "ATTENTION_TEST_SERVER_BINARY"), append([]string{"--listen=127.0.0.1:0"}, flags...)...)
	var log bytes.Buffer
	command.Stderr = &log
	output := must(command.StdoutPipe())(t)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGKILL) // It may have ended.
		_ = command.Wait()
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v\n%s", err, log.String())
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "listening on ")), command.Process
}

// deafServer speaks as much HTTP/2 as lets a client send without end, and takes what
// it is told to take.
type deafServer struct {
	listener net.Listener
	// Told of each connection, once the client's preface is there.
	conns chan net.Conn
}

// hugeWindows are SETTINGS with the largest initial window, an acknowledgement of the
// client's own, and a WINDOW_UPDATE of the connection.
var hugeWindows = []byte{
	0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff,
	0, 0, 0, 4, 1, 0, 0, 0, 0,
	0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0,
}

func serveDeaf(t testing.TB) *deafServer {
	t.Helper()
	server := &deafServer{listener: must(net.Listen("tcp", "127.0.0.1:0"))(t), conns: make(chan net.Conn, 16)}
	t.Cleanup(func() { _ = server.listener.Close() })
	go func() {
		for {
			conn, err := server.listener.Accept()
			if err != nil {
				return
			}
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = conn.Write(hugeWindows)
			server.conns <- conn
		}
	}()
	return server
}

func (d *deafServer) address() string { return d.listener.Addr().String() }
