package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"
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
