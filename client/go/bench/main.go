// Command bench compares this package with the generated stub, used as tutorials do:
// the receive limit raised, tensors converted from []float32.
//
//	go run ./bench --server HOST:PORT --seconds S
//
// It prints a line of JSON for each case and way. The ways take turns, call by call.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/client/go/attentionpb"
)

type benchCase struct {
	name                                 string
	queries, keys, heads, kvHeads, width int
}

type line struct {
	Case  string  `json:"case"`
	Way   string  `json:"way"`
	P50Ms float64 `json:"p50_ms"`
	Calls int     `json:"calls"`
}

func main() {
	server := flag.String("server", "127.0.0.1:50051", "address of attention_server")
	seconds := flag.Float64("seconds", 2, "time for each case")
	flag.Parse()
	client, err := attention.New(*server)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	conn, err := grpc.NewClient(*server, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	stub := attentionpb.NewAttentionServiceClient(conn)
	for _, c := range []benchCase{
		{"tiny", 16, 16, 1, 1, 64},
		{"128", 128, 128, 8, 8, 64},
		{"decode", 1, 8192, 32, 8, 128},
	} {
		if err := c.run(client, stub, time.Duration(*seconds*float64(time.Second))); err != nil {
			log.Fatal(err)
		}
	}
}

func (c *benchCase) run(client *attention.Client, stub attentionpb.AttentionServiceClient, length time.Duration) error {
	queryShape := []int{1, c.heads, c.queries, c.width}
	keyShape := []int{1, c.kvHeads, c.keys, c.width}
	query, key, value := numbers(1, queryShape), numbers(2, keyShape), numbers(3, keyShape)
	ways := []struct {
		name string
		call func(context.Context) ([]float32, error)
	}{
		{"client", func(ctx context.Context) ([]float32, error) {
			result, err := client.Compute(ctx, &attention.Request{
				Query: attention.Of(query, queryShape...), Key: attention.Of(key, keyShape...), Value: attention.Of(value, keyShape...),
			})
			if err != nil {
				return nil, err
			}
			return result.Output.Float32s(), nil
		}},
		{"stub", func(ctx context.Context) ([]float32, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // As in gRPC's tutorial.
			defer cancel()
			answer, err := stub.ComputeAttention(ctx, &attentionpb.ComputeAttentionRequest{
				Query: message(query, queryShape), Key: message(key, keyShape), Value: message(value, keyShape),
			})
			if err != nil {
				return nil, err
			}
			output := make([]float32, len(answer.Output.Data)/4)
			return output, binary.Read(bytes.NewReader(answer.Output.Data), binary.LittleEndian, output)
		}},
	}
	times := make([][]time.Duration, len(ways))
	var first []float32
	ctx := context.Background()
	for begun, round := time.Now(), 0; round < 5 || time.Since(begun) < length; round++ {
		for turn := range ways {
			way := (turn + round) % len(ways)
			start := time.Now()
			output, err := ways[way].call(ctx)
			if err != nil {
				return err
			}
			if round > 0 { // The first round connects.
				times[way] = append(times[way], time.Since(start))
			}
			if first == nil {
				first = output
			}
			if !slices.EqualFunc(first, output, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
				return fmt.Errorf("%s: %s has other bits", c.name, ways[way].name)
			}
		}
	}
	for way := range ways {
		slices.Sort(times[way])
		middle := times[way][len(times[way])/2]
		if err := json.NewEncoder(os.Stdout).Encode(line{c.name, ways[way].name, float64(middle.Microseconds()) / 1000, len(times[way])}); err != nil {
			return err
		}
	}
	return nil
}

// message converts as tutorials do.
func message(values []float32, shape []int) *attentionpb.Tensor {
	data := new(bytes.Buffer)
	_ = binary.Write(data, binary.LittleEndian, values) // A buffer never fails.
	m := &attentionpb.Tensor{DataType: attentionpb.DataType_DATA_TYPE_FLOAT32, Data: data.Bytes()}
	for _, length := range shape {
		m.Shape = append(m.Shape, int64(length))
	}
	return m
}

// numbers fills a shape by the rule of tests/vectors/README.md.
func numbers(seed int, shape []int) []float32 {
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
