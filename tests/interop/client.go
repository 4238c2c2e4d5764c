// Calls a server by the functions that client/README.md shows, which stand in
// readme.go beside this file.
//
//	client ADDRESS SERVICE_CONFIG large      a request whose answer is above 4 MB
//	client ADDRESS SERVICE_CONFIG PADDING    one with so many bytes of padding
//
// Prints one line of JSON: the code, and of an answer its bytes and first value.
package main

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"strconv"

	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "interop/attention"
)

// One row of `width` numbers, each of them `value`.
func row(width int, value float32) *pb.Tensor {
	data := make([]byte, 4*width)
	for i := 0; i < width; i++ {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(value))
	}
	return &pb.Tensor{DataType: pb.DataType_DATA_TYPE_FLOAT32, Shape: []int64{1, int64(width)}, Data: data}
}

func request(size string) *pb.ComputeAttentionRequest {
	one := row(1, 1)
	if size == "large" {
		queries := row(2048, 1)
		queries.Shape = []int64{2048, 1}
		return &pb.ComputeAttentionRequest{Query: queries, Key: one, Value: row(600, 1.5)}
	}
	bytes, err := strconv.Atoi(size)
	if err != nil {
		panic(err)
	}
	return &pb.ComputeAttentionRequest{Query: one, Key: one, Value: row(bytes/4, 1.5)}
}

func main() {
	conn, err := connect(os.Args[1], insecure.NewCredentials(), os.Args[2])
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	response, err := compute(conn, "a-token", request(os.Args[3]))
	result := map[string]any{"code": status.Code(err)}
	if err == nil {
		data := response.Output.Data
		result["bytes"] = len(data)
		result["first"] = math.Float32frombits(binary.LittleEndian.Uint32(data))
	}
	json.NewEncoder(os.Stdout).Encode(result)
}
