// Front is the pipeline's face: an HTTP API over the other parts, and the page.
//
//	front --listen 127.0.0.1:0 --attention HOST:PORT --embed HOST:PORT --search HOST:PORT --page ../page/dist
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8000", "`HOST:PORT`, port 0 for any")
	attention := flag.String("attention", "", "`HOST:PORT` of the attention service")
	embed := flag.String("embed", "", "`HOST:PORT` of the embedder")
	search := flag.String("search", "", "`HOST:PORT` of the searcher")
	page := flag.String("page", "", "`folder` of the page")
	timeout := flag.Duration("timeout", 10*time.Second, "for each request, all its calls included")
	check := flag.String("check", "", "asks the front at this `HOST:PORT` whether all is ready, and ends")
	flag.Parse()
	if *check != "" {
		os.Exit(checkReady(*check))
	}
	parts, err := connect(*attention, *embed, *search)
	if err != nil {
		log.Fatal(err)
	}
	defer parts.close()
	if err := serve(*listen, routes(parts, *page, *timeout)); err != nil {
		log.Fatal(err)
	}
}

// serve returns once a signal has come and the requests under way have ended.
func serve(address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	fmt.Printf("listening on http://%s\n", listener.Addr())
	select {
	case err := <-ended:
		return err
	case <-stop.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); errors.Is(err, context.DeadlineExceeded) {
		return server.Close()
	}
	return nil
}

// checkReady is the exit status of a container's health check.
func checkReady(address string) int {
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get("http://" + address + "/api/ready")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		fmt.Println(answer.Status)
		return 1
	}
	return 0
}
