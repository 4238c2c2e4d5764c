package attention_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	attention "github.com/attention-service/attention-service/client/go"
)

// The server's address, such as "127.0.0.1:50051".
var address = os.Getenv("ATTENTION_TEST_SERVER")

func ExampleClient_Compute() {
	client, err := attention.New(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	eye := attention.Of([]float32{1, 0, 0, 1}, 2, 2)
	result, err := client.Compute(context.Background(), &attention.Request{Query: eye, Key: eye, Value: eye})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Output.Shape(), result.Output.Float32s())
	// Output: [2 2] [0.66976154 0.33023846 0.33023846 0.66976154]
}

func ExampleClient_Compute_options() {
	client, err := attention.New(address, attention.WithTimeout(5*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	eye := attention.Of([]float32{1, 0, 0, 1}, 2, 2)
	result, err := client.Compute(context.Background(), &attention.Request{
		Query: eye, Key: eye, Value: eye,
		Options: attention.Options{
			Causal:       attention.CausalTopLeft,
			Scale:        attention.Ptr(0.5),
			ReturnScores: attention.ScoresWeights,
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Scores.Float32s())
	// Output: [1 0 0.37754068 0.62245935]
}

func ExampleError() {
	client, err := attention.New(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	eye := attention.Of([]float32{1, 0, 0, 1}, 2, 2)
	wide := attention.Of(make([]float32, 12), 3, 4)
	_, err = client.Compute(context.Background(), &attention.Request{Query: eye, Key: wide, Value: eye})
	var failed *attention.Error
	if errors.As(err, &failed) {
		fmt.Println(failed.CodeName(), failed.Reason, failed.FieldViolations[0].Field)
	}
	// Output: INVALID_ARGUMENT INVALID_FIELD key.shape
}

func ExampleSession() {
	ctx := context.Background()
	client, err := attention.New(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	session, err := client.CreateSession(ctx, "", attention.SessionConfig{KVHeads: 1, HeadSize: 2})
	if err != nil {
		log.Fatal(err)
	}
	defer session.Delete(ctx)
	prompt := attention.Of([]float32{1, 0, 0, 1}, 1, 2, 2) // (Hkv, tokens, D)
	if _, err := session.Append(ctx, 0, prompt, prompt); err != nil {
		log.Fatal(err)
	}
	token := attention.Of([]float32{1, 0}, 1, 1, 2)
	result, err := session.Step(ctx, 0, token, token, token, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Length, result.Output.Float32s())
	// Output: 3 [0.80222416 0.19777581]
}

func ExampleClient_Step() {
	ctx := context.Background()
	client, err := attention.New(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	token := attention.Of([]float32{1, 0}, 1, 1, 2)
	var items []attention.StepItem // One for each sequence that is worked on.
	for range 2 {
		session, err := client.CreateSession(ctx, "", attention.SessionConfig{KVHeads: 1, HeadSize: 2})
		if err != nil {
			log.Fatal(err)
		}
		defer session.Delete(ctx)
		items = append(items, attention.StepItem{Session: session, Key: token, Value: token, Query: token})
	}
	for _, result := range client.Step(ctx, items) {
		if result.Err != nil {
			log.Fatal(result.Err)
		}
		fmt.Println(result.Length, result.Output.Float32s())
	}
	// Output:
	// 1 [1 0]
	// 1 [1 0]
}
