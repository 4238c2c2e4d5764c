package main

import (
	"context"
	"encoding/json"
	"log"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/examples/pipeline/front/pipelinepb"
)

const (
	mostBodyBytes = 1 << 20
	mostMatches   = 100
	width         = 384
	heads         = 12
	headSize      = 32
)

type api struct{ *parts }

// handler answers with what becomes JSON. Its context ends with the request's deadline,
// or as soon as the caller goes away; gRPC passes both on to the parts, and they to the
// attention service.
type handler func(ctx context.Context, r *http.Request) (any, error)

func routes(parts *parts, page string, timeout time.Duration) http.Handler {
	a := api{parts}
	mux := http.NewServeMux()
	handle := func(pattern string, handle handler) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), timeout)
			defer cancel()
			r.Body = http.MaxBytesReader(w, r.Body, mostBodyBytes)
			answer, err := handle(ctx, r)
			if err != nil {
				log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
				writeError(w, err)
				return
			}
			writeJSON(w, http.StatusOK, answer)
		})
	}
	handle("GET /api/sentences", a.list)
	handle("POST /api/sentences", a.add)
	handle("POST /api/embeddings", a.embeddings)
	handle("GET /api/search", a.find)
	handle("GET /api/weights", a.weights)
	mux.HandleFunc("GET /api/ready", a.ready)
	files := http.FileServer(http.Dir(page))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		files.ServeHTTP(w, r)
	})
	return mux
}

func (a api) ready(w http.ResponseWriter, r *http.Request) {
	states, answer := a.health(r.Context()), http.StatusOK
	for _, state := range states {
		if state != "SERVING" {
			answer = http.StatusServiceUnavailable
		}
	}
	writeJSON(w, answer, states)
}

func (a api) list(ctx context.Context, _ *http.Request) (any, error) {
	answer, err := a.searcher.List(ctx, &pipelinepb.ListRequest{})
	if err != nil {
		return nil, from("search", err)
	}
	return map[string]any{"sentences": append([]string{}, answer.Sentences...)}, nil
}

func (a api) add(ctx context.Context, r *http.Request) (any, error) {
	sentences, err := sentencesOf(r)
	if err != nil {
		return nil, err
	}
	var times timings
	tokens, err := a.embed(ctx, sentences, &times)
	if err != nil {
		return nil, err
	}
	done := times.start("search")
	answer, err := a.searcher.Add(ctx, &pipelinepb.AddRequest{Sentences: sentences, Tokens: tokens})
	done()
	if err != nil {
		return nil, from("search", err)
	}
	return map[string]any{"kept": answer.Kept, "timings": times}, nil
}

func (a api) embeddings(ctx context.Context, r *http.Request) (any, error) {
	sentences, err := sentencesOf(r)
	if err != nil {
		return nil, err
	}
	tokens, err := a.embed(ctx, sentences, new(timings))
	if err != nil {
		return nil, err
	}
	answer, err := a.searcher.Pool(ctx, tokens)
	if err != nil {
		return nil, from("search", err)
	}
	rows := attention.OfBytes(attention.TypeFloat32, answer.Embeddings, len(sentences), width).Float32s()
	return map[string]any{"embeddings": split(rows, width)}, nil
}

func (a api) find(ctx context.Context, r *http.Request) (any, error) {
	query := strings.TrimSpace(r.FormValue("q"))
	if query == "" {
		return nil, badRequest("q: wanted a sentence")
	}
	limit, err := number(r, "limit", 5, 1, mostMatches)
	if err != nil {
		return nil, err
	}
	var times timings
	tokens, err := a.embed(ctx, []string{query}, &times)
	if err != nil {
		return nil, err
	}
	done := times.start("search")
	answer, err := a.searcher.Find(ctx, &pipelinepb.FindRequest{Tokens: tokens, Limit: int32(limit)})
	done()
	if err != nil {
		return nil, from("search", err)
	}
	matches := []map[string]any{}
	for _, match := range answer.Matches {
		matches = append(matches, map[string]any{"sentence": match.Sentence, "score": match.Score})
	}
	return map[string]any{"matches": matches, "timings": times}, nil
}

func (a api) embed(ctx context.Context, sentences []string, times *timings) (*pipelinepb.TokenVectors, error) {
	done := times.start("embed")
	answer, err := a.embedder.Embed(ctx, &pipelinepb.EmbedRequest{Sentences: sentences})
	done()
	if err != nil {
		return nil, from("embed", err)
	}
	times.add("attention, of that", answer.AttentionMs)
	return answer.Tokens, nil
}

// weights asks the attention service itself, for one head of one layer: how much each
// token of a sentence reads of each other one.
func (a api) weights(ctx context.Context, r *http.Request) (any, error) {
	sentence := strings.TrimSpace(r.FormValue("sentence"))
	if sentence == "" {
		return nil, badRequest("sentence: wanted some text")
	}
	layer, err := number(r, "layer", 0, 0, math.MaxInt32)
	if err != nil {
		return nil, err
	}
	head, err := number(r, "head", 0, 0, heads-1)
	if err != nil {
		return nil, err
	}
	var times timings
	done := times.start("embed")
	projected, err := a.embedder.Project(ctx, &pipelinepb.ProjectRequest{Sentence: sentence, Layer: int32(layer)})
	done()
	if err != nil {
		return nil, from("embed", err)
	}
	tokens := len(projected.Tokens)
	tensor := func(data []byte) attention.Tensor {
		return attention.OfBytes(attention.TypeFloat32, data, 1, tokens, heads, headSize)
	}
	done = times.start("attention")
	result, err := a.attention.Compute(ctx, &attention.Request{
		Query: tensor(projected.Query),
		Key:   tensor(projected.Key),
		// Only the weights are wanted: values of one column, which cost next to nothing.
		Value:   attention.Of(make([]float32, tokens*heads), 1, tokens, heads, 1),
		Options: attention.Options{Layout: attention.LayoutBSHD, ReturnScores: attention.ScoresWeights},
	})
	done()
	if err != nil {
		return nil, from("attention", err)
	}
	matrix := result.Scores.Float32s()[head*tokens*tokens:][:tokens*tokens]
	return map[string]any{"tokens": projected.Tokens, "weights": split(matrix, tokens), "timings": times}, nil
}

func sentencesOf(r *http.Request) ([]string, error) {
	var body struct{ Sentences []string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, badRequest(`the body: wanted {"sentences": ["...", ...]}: ` + err.Error())
	}
	for i, sentence := range body.Sentences {
		if body.Sentences[i] = strings.TrimSpace(sentence); body.Sentences[i] == "" {
			return nil, badRequest("sentences[" + strconv.Itoa(i) + "]: wanted some text")
		}
	}
	return body.Sentences, nil
}

// number is that of a parameter in [least, most].
func number(r *http.Request, name string, without, least, most int) (int, error) {
	text := r.FormValue(name)
	if text == "" {
		return without, nil
	}
	value, err := strconv.Atoi(text)
	if err != nil || value < least || value > most {
		return 0, badRequest(name + ": wanted a number from " + strconv.Itoa(least) + " to " + strconv.Itoa(most))
	}
	return value, nil
}

func split(rows []float32, width int) [][]float32 {
	var matrix [][]float32
	for ; len(rows) > 0; rows = rows[width:] {
		matrix = append(matrix, rows[:width])
	}
	return matrix
}

// timings is how long each part took, in order.
type timings []timing

type timing struct {
	Part string  `json:"part"`
	MS   float64 `json:"ms"`
}

func (t *timings) add(part string, ms float64) { *t = append(*t, timing{part, ms}) }

// start begins to measure a part; the function that it returns ends that.
func (t *timings) start(part string) func() {
	began := time.Now()
	return func() { t.add(part, float64(time.Since(began).Microseconds())/1000) }
}

func writeJSON(w http.ResponseWriter, answer int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(answer)
	_ = json.NewEncoder(w).Encode(body) // The caller may be gone.
}
