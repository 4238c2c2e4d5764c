// Command scenario prints what the clients in every language print: see
// tests/polyglot/README.md of the repository.
//
//	go run ./examples/scenario --server HOST:PORT --misbehaving HOST:PORT --misbehaving-http HOST:PORT
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"time"

	"github.com/attention-service/attention-service/client/go"
)

func main() {
	server := flag.String("server", "127.0.0.1:50051", "address of attention_server")
	misbehaving := flag.String("misbehaving", "", "address of the misbehaving server")
	misbehavingHTTP := flag.String("misbehaving-http", "", "address of its HTTP")
	flag.Parse()
	ctx := context.Background()
	client, err := attention.New(*server)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, part := range []func() error{
		func() error { return compute(ctx, client) },
		func() error { return refused(ctx, client) },
		func() error { return busy(ctx, *misbehaving, *misbehavingHTTP) },
		func() error { return session(ctx, client) },
		func() error { return cancel(ctx, *misbehaving) },
	} {
		if err := part(); err != nil {
			log.Fatal(err)
		}
	}
}

// numbers fills a shape by the rule of tests/vectors/README.md.
func numbers(seed int, shape ...int) []float32 {
	count := 1
	for _, length := range shape {
		count *= length
	}
	filled := make([]float32, count)
	for i := range filled {
		mixed := uint32(i)*2654435761 + uint32(seed)*40503
		filled[i] = float32(int(mixed>>16)%255-127) / 64
	}
	return filled
}

func tensor(seed int, shape ...int) attention.Tensor {
	return attention.Of(numbers(seed, shape...), shape...)
}

func digest(t attention.Tensor) string {
	return fmt.Sprintf("%x", sha256.Sum256(t.Bytes()))
}

func compute(ctx context.Context, client *attention.Client) error {
	result, err := client.Compute(ctx, &attention.Request{
		Query: tensor(1, 2, 8, 33, 64),
		Key:   tensor(2, 2, 2, 57, 64),
		Value: tensor(3, 2, 2, 57, 64),
		Options: attention.Options{
			Causal: attention.CausalBottomRight,
			Window: &attention.Window{Left: 40, Right: attention.Unbounded},
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("compute f32", digest(result.Output))
	half := func(seed int) attention.Tensor {
		shape := []int{1, 4, 16, 32}
		return attention.Of(attention.ToBFloat16s(numbers(seed, shape...)), shape...)
	}
	result, err = client.Compute(ctx, &attention.Request{Query: half(4), Key: half(5), Value: half(6)})
	if err != nil {
		return err
	}
	fmt.Println("compute bf16", digest(result.Output))
	return nil
}

func refused(ctx context.Context, client *attention.Client) error {
	_, err := client.Compute(ctx, &attention.Request{Query: tensor(1, 2, 2), Key: tensor(2, 3, 4), Value: tensor(3, 2, 2)})
	var failed *attention.Error
	if !errors.As(err, &failed) || len(failed.FieldViolations) == 0 {
		return fmt.Errorf("a wrong request: got %v", err)
	}
	fmt.Println("refused", failed.CodeName(), failed.Reason, failed.FieldViolations[0].Field)
	return nil
}

func busy(ctx context.Context, address, httpAddress string) error {
	token := "busy_then_ok." + rand.Text()
	client, err := attention.New(address, attention.WithToken(token))
	if err != nil {
		return err
	}
	defer client.Close()
	row := tensor(1, 1, 4)
	if _, err := client.Compute(ctx, &attention.Request{Query: row, Key: row, Value: row}); err != nil {
		return err
	}
	answer, err := http.Get("http://" + httpAddress + "/attempts?token=" + url.QueryEscape(token))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var attempts []json.RawMessage
	if err := json.NewDecoder(answer.Body).Decode(&attempts); err != nil {
		return err
	}
	fmt.Println("busy OK", len(attempts))
	return nil
}

func session(ctx context.Context, client *attention.Client) error {
	first, err := client.CreateSession(ctx, "", attention.SessionConfig{KVHeads: 2, HeadSize: 16})
	if err != nil {
		return err
	}
	defer first.Delete(ctx)
	length, err := first.Append(ctx, 0, tensor(7, 2, 7, 16), tensor(8, 2, 7, 16))
	if err != nil {
		return err
	}
	fmt.Println("session append", length)
	result, err := first.Step(ctx, 0, tensor(9, 2, 1, 16), tensor(10, 2, 1, 16), tensor(11, 4, 1, 16), nil)
	if err != nil {
		return err
	}
	fmt.Println("session step", first.Length(0), digest(result.Output))

	fork, err := first.Fork(ctx, "")
	if err != nil {
		return err
	}
	defer fork.Delete(ctx)
	before := fork.Length(0)
	if err := fork.Truncate(ctx, 5); err != nil {
		return err
	}
	if result, err = fork.Attend(ctx, 0, tensor(12, 4, 1, 16), nil); err != nil {
		return err
	}
	fmt.Println("session fork", before, "truncate", fork.Length(0), digest(result.Output))

	second, err := client.OpenSession(ctx, first.ID())
	if err != nil {
		return err
	}
	if _, err := second.Append(ctx, 0, tensor(13, 2, 1, 16), tensor(14, 2, 1, 16)); err != nil {
		return err
	}
	_, err = first.Append(ctx, 0, tensor(15, 2, 1, 16), tensor(16, 2, 1, 16))
	var failed *attention.Error
	if !errors.As(err, &failed) {
		return fmt.Errorf("an append behind another one: got %v", err)
	}
	trueLength, _ := failed.Length()
	fmt.Println("session conflict", failed.CodeName(), failed.Reason, trueLength)

	if err := first.Refresh(ctx); err != nil {
		return err
	}
	if result, err = first.Attend(ctx, 0, tensor(12, 4, 1, 16), nil); err != nil {
		return err
	}
	fmt.Println("session parent", first.Length(0), digest(result.Output))
	return nil
}

func cancel(ctx context.Context, address string) error {
	client, err := attention.New(address, attention.WithToken("hang."+rand.Text()))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, cancel)
	row := tensor(1, 1, 4)
	_, err = client.Compute(ctx, &attention.Request{Query: row, Key: row, Value: row})
	var failed *attention.Error
	if !errors.As(err, &failed) || !errors.Is(err, context.Canceled) {
		return fmt.Errorf("a cancelled call: got %v", err)
	}
	fmt.Println("cancel", failed.CodeName())
	return nil
}
