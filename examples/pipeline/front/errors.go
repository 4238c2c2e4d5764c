package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	attention "github.com/attention-service/attention-service/client/go"
)

// partError is a call to a part that failed.
type partError struct {
	part string
	err  error
}

func (e *partError) Error() string { return e.part + ": " + e.err.Error() }
func (e *partError) Unwrap() error { return e.err }

func from(part string, err error) error {
	if err == nil {
		return nil
	}
	return &partError{part, err}
}

// badRequest is what the caller of the API did wrong.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// httpStatuses of gRPC's codes; any other is a failure of a part.
var httpStatuses = map[codes.Code]int{
	codes.InvalidArgument:   http.StatusBadRequest,
	codes.ResourceExhausted: http.StatusTooManyRequests,
	codes.Unavailable:       http.StatusServiceUnavailable,
	codes.DeadlineExceeded:  http.StatusGatewayTimeout,
	codes.Canceled:          499, // As nginx has it: nobody waits for it any more.
}

type errorBody struct {
	// Part is the one that the front called; empty if the request is wrong.
	Part    string `json:"part,omitempty"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func writeError(w http.ResponseWriter, err error) {
	var bad badRequest
	if errors.As(err, &bad) {
		writeJSON(w, http.StatusBadRequest, map[string]errorBody{"error": {Code: "InvalidArgument", Message: bad.Error()}})
		return
	}
	body := errorBody{Message: err.Error()}
	var failed *partError
	if errors.As(err, &failed) {
		body.Part, err = failed.part, failed.err
	}
	// The errors of the attention client are gRPC's too.
	code := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	if st, ok := status.FromError(err); ok {
		body.Message = st.Message()
	}
	var told *attention.Error
	if errors.As(err, &told) {
		body.Message = told.Error()
		if delay, ok := told.RetryDelay(); ok {
			w.Header().Set("Retry-After", strconv.Itoa(int(delay.Seconds())+1))
		}
	}
	body.Code = code.String()
	answer, ok := httpStatuses[code]
	if !ok {
		answer = http.StatusBadGateway
	}
	writeJSON(w, answer, map[string]errorBody{"error": body})
}
