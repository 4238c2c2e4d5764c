package attention_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	attention "github.com/attention-service/attention-service/client/go"
)

func TestMain(m *testing.M) {
	if address == "" {
		fmt.Fprintln(os.Stderr, "ATTENTION_TEST_SERVER is not set: examples are skipped")
		if err := flag.Set("test.skip", "^Example"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// environment is a variable that tests/polyglot/README.md names; without it the test
// is skipped.
func environment(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Skipf("%s is not set: tests/polyglot/README.md says how", name)
	}
	return value
}

// newClient is closed at the end of the test.
func newClient(t testing.TB, target string, options ...attention.ClientOption) *attention.Client {
	t.Helper()
	client, err := attention.New(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newServerClient(t testing.TB, options ...attention.ClientOption) *attention.Client {
	return newClient(t, environment(t, "ATTENTION_TEST_SERVER"), options...)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// readVectors reads a file of tests/vectors.
func readVectors(t testing.TB, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(environment(t, "ATTENTION_TEST_VECTORS"), name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// asError fails the test unless err is an *attention.Error.
func asError(t testing.TB, err error) *attention.Error {
	t.Helper()
	var failed *attention.Error
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, wanted an *attention.Error", err)
	}
	return failed
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func digest(t attention.Tensor) string {
	return fmt.Sprintf("%x", sha256.Sum256(t.Bytes()))
}

// rule is a tensor of the vectors: elements by the rule of tests/vectors/README.md.
type rule struct {
	DataType string `json:"data_type"`
	Shape    []int  `json:"shape"`
	Seed     int    `json:"seed"`
}

func (r *rule) tensor() attention.Tensor {
	if r == nil {
		return attention.Tensor{}
	}
	count := 1
	for _, length := range r.Shape {
		count *= length
	}
	whole := make([]int, count)
	floats := make([]float32, count)
	for i := range whole {
		mixed := uint32(i)*2654435761 + uint32(r.Seed)*40503
		whole[i] = int(mixed>>16)%255 - 127
		floats[i] = float32(whole[i]) / 64
	}
	switch r.DataType {
	case "DATA_TYPE_FLOAT16":
		return attention.Of(attention.ToFloat16s(floats), r.Shape...)
	case "DATA_TYPE_BFLOAT16":
		return attention.Of(attention.ToBFloat16s(floats), r.Shape...)
	case "DATA_TYPE_FLOAT64":
		doubles := make([]float64, count)
		for i := range doubles {
			doubles[i] = float64(floats[i])
		}
		return attention.Of(doubles, r.Shape...)
	case "DATA_TYPE_BOOL":
		odd := make([]bool, count)
		for i := range odd {
			odd[i] = whole[i]&1 == 1
		}
		return attention.Of(odd, r.Shape...)
	}
	return attention.Of(floats, r.Shape...)
}

func filled(seed int, shape ...int) attention.Tensor {
	return (&rule{DataType: "DATA_TYPE_FLOAT32", Shape: shape, Seed: seed}).tensor()
}

// wantedError is how the vectors describe one.
type wantedError struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
	Field  string `json:"field"`
	Length *int64 `json:"length"`
}

func (w *wantedError) check(t testing.TB, err error) {
	t.Helper()
	failed := asError(t, err)
	if failed.CodeName() != w.Code || w.Reason != "" && failed.Reason != w.Reason {
		t.Errorf("got %v, wanted %s (%s)", failed, w.Code, w.Reason)
	}
	if w.Field != "" && (len(failed.FieldViolations) == 0 || failed.FieldViolations[0].Field != w.Field) {
		t.Errorf("got fields %v, wanted %s", failed.FieldViolations, w.Field)
	}
	if w.Length != nil {
		if length, ok := failed.Length(); !ok || length != *w.Length {
			t.Errorf("got length %d, wanted %d", length, *w.Length)
		}
	}
}

func tokenOf(name string) string {
	return fmt.Sprintf("%s.%d", name, time.Now().UnixNano())
}

func contains(t testing.TB, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("got %q, wanted %q in it", text, part)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
