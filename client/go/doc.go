// Package attention computes scaled dot-product attention over the network, with a
// server of attention.v1 (gRPC).
//
// A call that works:
//
//	client, err := attention.New("127.0.0.1:50051")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	eye := attention.Of([]float32{1, 0, 0, 1}, 2, 2)
//	result, err := client.Compute(ctx, &attention.Request{Query: eye, Key: eye, Value: eye})
//	if err != nil {
//		return err
//	}
//	fmt.Println(result.Output.Float32s()) // [0.669762 0.330238 0.330238 0.669762], about
//
// [Client] says how calls behave: deadlines, cancellation, what is tried again.
// [Session] keeps keys and values in the server, so that a decode step sends only
// the new token. [Error] is what every failed call returns.
//
// What is computed, every option and every error are specified by
// proto/attention/v1/attention.proto and session.proto of the repository; the
// generated code of both is package attentionpb.
//
// # Letters
//
// The letters in shapes are the same everywhere: B batch size, S query length, L
// new key/value length, P past length, T = P + L, Hq query heads, Hkv key/value
// heads, D head size of query and key, Dv head size of value and output.
//
// # Memory
//
// A [Tensor] lends the slice that it was made of; large tensors are sent from there
// without a copy. They must not change until the call has returned, and may change
// afterwards, however the call ended: a call that failed or was cancelled waits
// until gRPC has let go of the memory. That takes no time unless the server has
// stopped reading. A connection to which nothing can be written for a second while
// a call that was given up waits for its memory is closed; other calls on that
// connection then fail as if it had been lost, and are tried again.
//
// Answers are new memory, which belongs to the caller.
package attention
