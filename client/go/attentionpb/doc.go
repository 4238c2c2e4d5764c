// Package attentionpb is the code that protoc-gen-go and protoc-gen-go-grpc make of
// attention.proto and session.proto. Package attention needs no more of it than some
// names; it is for calls through stubs of one's own. ../generate.sh writes it anew.
package attentionpb
