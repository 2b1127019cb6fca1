package proxy

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/http2"
)

// echoServer answers every request that ends in an empty line with the same bytes, without allocating.
func echoServer(b *testing.B) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ln.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 60\r\n\r\n" + string(bytes.Repeat([]byte("x"), 60)))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// BenchmarkRequest is one request through the whole proxy over loopback: parse, route by weight, pooled connection,
// headers, metrics, answer. allocs/op is of the proxy alone, as client and server here do not allocate.
func BenchmarkRequest(b *testing.B) {
	a := newADS(b)
	addr := freeAddr(b).String()
	a.put(canary(b, addr, echoServer(b), echoServer(b), 90, 10))
	start(b, a)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	req := []byte("GET /index.html?a=b HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	r := bufio.NewReader(c)
	body := make([]byte, 60)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(req); err != nil {
			b.Fatal(err)
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := io.ReadFull(r, body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRequestHTTP2 is one request that comes by HTTP/2 and goes on by HTTP/2. Client and server are the codec's own, in
// the same process, so that allocs/op is of four ends of two connections.
func BenchmarkRequestHTTP2(b *testing.B) { benchmarkHTTP2(b, "text/plain") }

// BenchmarkRequestGRPC is the same with what gRPC calls need above others.
func BenchmarkRequestGRPC(b *testing.B) { benchmarkHTTP2(b, "application/grpc") }

func benchmarkHTTP2(b *testing.B, contentType string) {
	up := codecServer(b, func(s *http2.Stream) {
		var q http1.Request
		s.ReadRequest(&q)
		p := http1.Response{Status: 200, Framing: http1.Length, Length: 60}
		s.Response(&p, 0, false, false)
		_ = s.Body(make([]byte, 60))
		_ = s.End(nil)
		_ = s.Flush()
	})
	a := newADS(b)
	addr := freeAddr(b).String()
	set := canary(b, addr, up, up, 90, 10)
	for _, c := range set.Clusters {
		speakHTTP2(b, c)
	}
	a.put(set)
	start(b, a)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	c := http2.NewClient(nc, http2.Options{})
	defer func() {
		_ = c.Close()
		c.Wait()
	}()
	q := http1.Request{Method: []byte("GET"), Target: []byte("/index.html?a=b"), Host: []byte("reviews:9080"), Framing: http1.NoBody}
	q.Add([]byte("user-agent"), []byte("bench"))
	q.Add([]byte("accept"), []byte("*/*"))
	q.Add([]byte("content-type"), []byte(contentType))
	var p http1.Response
	b.ReportAllocs()
	for b.Loop() {
		s := c.Open(0)
		s.Request(&q)
		_ = s.Flush()
		p.Reset()
		if err := s.ReadResponse(&p, http1.Limits{}, false); err != nil || p.Status != 200 {
			b.Fatalf("status %d, %v", p.Status, err)
		}
		for {
			if _, err := s.NextBody(); err != nil {
				break
			}
		}
		s.Close()
	}
}

// codecServer serves HTTP/2 on loopback by the codec itself.
func codecServer(t testing.TB, handle func(*http2.Stream)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_ = http2.NewServer(nc, nil, http2.Options{}).Serve(ctx, handle)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		wg.Wait()
	})
	return ln.Addr().String()
}

// speakHTTP2 makes the cluster one of HTTP/2 endpoints.
func speakHTTP2(t testing.TB, c *clusterPB) {
	t.Helper()
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(t, &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		}},
	})}
}
