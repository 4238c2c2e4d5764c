package attention_test

import (
	"io"
	"net"
	"testing"

	"google.golang.org/grpc/codes"

	attention "github.com/attention-service/attention-service/client/go"
)

func TestTargetsThatAreNone(t *testing.T) {
	for _, target := range []string{"", "http://127.0.0.1:50051", "https://attention.example"} {
		client, err := attention.New(target)
		if err == nil {
			_ = client.Close()
			t.Errorf("%q was taken", target)
			continue
		}
		failed := asError(t, err)
		if failed.Code != codes.InvalidArgument {
			t.Error(failed)
		}
		contains(t, failed.Message, "wanted an address such as 127.0.0.1:50051")
	}
}

func TestPortOfHTTP(t *testing.T) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"))
			// A client that still writes would hear of that first.
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	failed := asError(t, computes(t, newClient(t, listener.Addr().String())))
	if failed.Code != codes.Unavailable {
		t.Error(failed)
	}
	contains(t, failed.Message, "the server speaks HTTP/1.1 on this port, not gRPC")
}
