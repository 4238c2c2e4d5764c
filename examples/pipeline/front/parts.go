package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	attention "github.com/attention-service/attention-service/client/go"
	"github.com/attention-service/attention-service/examples/pipeline/front/pipelinepb"
)

// parts are the other programs of the pipeline. Each connection is made when it is first
// needed, and again whenever it was lost.
type parts struct {
	attention             *attention.Client
	embedder              pipelinepb.EmbedderClient
	searcher              pipelinepb.SearcherClient
	embedConn, searchConn *grpc.ClientConn
}

func connect(attentionTarget, embedTarget, searchTarget string) (*parts, error) {
	client, err := attention.New(attentionTarget)
	if err != nil {
		return nil, fmt.Errorf("--attention: %w", err)
	}
	embedConn, err := dial(embedTarget)
	if err != nil {
		return nil, fmt.Errorf("--embed: %w", err)
	}
	searchConn, err := dial(searchTarget)
	if err != nil {
		return nil, fmt.Errorf("--search: %w", err)
	}
	return &parts{
		attention: client,
		embedder:  pipelinepb.NewEmbedderClient(embedConn), embedConn: embedConn,
		searcher: pipelinepb.NewSearcherClient(searchConn), searchConn: searchConn,
	}, nil
}

func dial(target string) (*grpc.ClientConn, error) {
	// 64 sentences of 256 tokens are 25 MB of vectors. A part that was started anew is
	// found within a second.
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second},
		}))
}

func (p *parts) close() {
	_ = p.attention.Close()
	_ = p.embedConn.Close()
	_ = p.searchConn.Close()
}

// health asks every part, all at once: "SERVING", or why not.
func (p *parts) health(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	checks := map[string]func() (string, error){
		"attention": func() (string, error) {
			health, err := p.attention.Health(ctx, "", attention.WithMaxAttempts(1))
			return health.String(), err
		},
		"embed":  func() (string, error) { return check(ctx, p.embedConn, "pipeline.Embedder") },
		"search": func() (string, error) { return check(ctx, p.searchConn, "pipeline.Searcher") },
	}
	type answer struct{ part, state string }
	answers := make(chan answer, len(checks))
	for part, ask := range checks {
		go func() {
			state, err := ask()
			if err != nil {
				state = err.Error()
			}
			answers <- answer{part, state}
		}()
	}
	states := make(map[string]string)
	for range checks {
		a := <-answers
		states[a.part] = a.state
	}
	return states
}

func check(ctx context.Context, conn *grpc.ClientConn, service string) (string, error) {
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	return answer.GetStatus().String(), err
}
