package listener

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// chains as a permissive inbound listener has them.
func permissive() *conf.Listener {
	fc := func(name string, m conf.ChainMatch) *conf.FilterChain { return &conf.FilterChain{Name: name, Match: m} }
	return &conf.Listener{Chains: []*conf.FilterChain{
		fc("blackhole", conf.ChainMatch{DestPort: 15006}),
		fc("catchall-mtls-http", conf.ChainMatch{Transport: "tls", ALPN: []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}}),
		fc("catchall-plain-http", conf.ChainMatch{Transport: "raw_buffer", ALPN: []string{"http/1.1", "h2c"}}),
		fc("catchall-mtls-tcp", conf.ChainMatch{Transport: "tls", ALPN: []string{"istio-peer-exchange", "istio"}}),
		fc("catchall-plain", conf.ChainMatch{Transport: "raw_buffer"}),
		fc("catchall-tls", conf.ChainMatch{Transport: "tls"}),
		fc("9080-mtls", conf.ChainMatch{DestPort: 9080, Transport: "tls", ALPN: []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}}),
		fc("9080-plain", conf.ChainMatch{DestPort: 9080, Transport: "raw_buffer"}),
		fc("sni-exact", conf.ChainMatch{DestPort: 443, ServerNames: []string{"a.b.c"}}),
		fc("sni-wild", conf.ChainMatch{DestPort: 443, ServerNames: []string{"*.b.c"}}),
		fc("sni-wider", conf.ChainMatch{DestPort: 443, ServerNames: []string{"*.c"}}),
		fc("net-8", conf.ChainMatch{DestPort: 70, DestPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}),
		fc("net-16", conf.ChainMatch{DestPort: 70, DestPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}),
		fc("local", conf.ChainMatch{DestPort: 71, SourceType: conf.SourceLocal}),
		fc("external", conf.ChainMatch{DestPort: 71, SourceType: conf.SourceExternal}),
	}}
}

func TestMatch(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		p    Properties
		want string
	}{
		{Properties{Local: at("10.1.0.1:15006"), Transport: "raw_buffer"}, "blackhole"},
		{Properties{Local: at("10.1.0.1:9080"), Transport: "tls", ALPN: []string{"istio-http/1.1", "istio"}}, "9080-mtls"},
		{Properties{Local: at("10.1.0.1:9080"), Transport: "raw_buffer", ALPN: []string{"http/1.1"}}, "9080-plain"},
		{Properties{Local: at("10.1.0.1:9080"), Transport: "tls", ALPN: []string{"h2"}}, ""}, // the port was matched: no way back
		{Properties{Local: at("10.1.0.1:1"), Transport: "tls", ALPN: []string{"istio-http/1.1", "istio"}}, "catchall-mtls-http"},
		{Properties{Local: at("10.1.0.1:1"), Transport: "tls", ALPN: []string{"istio-peer-exchange", "istio"}}, "catchall-mtls-tcp"},
		{Properties{Local: at("10.1.0.1:1"), Transport: "tls", ALPN: []string{"h2"}}, "catchall-tls"},
		{Properties{Local: at("10.1.0.1:1"), Transport: "raw_buffer", ALPN: []string{"http/1.1"}}, "catchall-plain-http"},
		{Properties{Local: at("10.1.0.1:1"), Transport: "raw_buffer"}, "catchall-plain"},
		{Properties{Local: at("10.1.0.1:443"), Transport: "tls", ServerName: "a.b.c"}, "sni-exact"},
		{Properties{Local: at("10.1.0.1:443"), Transport: "tls", ServerName: "x.b.c"}, "sni-wild"},
		{Properties{Local: at("10.1.0.1:443"), Transport: "tls", ServerName: "x.y.c"}, "sni-wider"},
		{Properties{Local: at("10.1.0.1:443"), Transport: "tls"}, ""},
		{Properties{Local: at("10.1.9.9:70"), Transport: "raw_buffer"}, "net-16"},
		{Properties{Local: at("10.2.9.9:70"), Transport: "raw_buffer"}, "net-8"},
		{Properties{Local: at("10.2.9.9:71"), Remote: at("10.2.9.9:5"), Transport: "raw_buffer"}, "local"},
		{Properties{Local: at("10.2.9.9:71"), Remote: at("10.2.9.8:5"), Transport: "raw_buffer"}, "external"},
	} {
		if !c.p.Remote.IsValid() {
			c.p.Remote = at("10.9.9.9:999")
		}
		got := ""
		if fc := Match(permissive(), &c.p); fc != nil {
			got = fc.Name
		}
		if got != c.want {
			t.Errorf("%+v: got %q, want %q", c.p, got, c.want)
		}
	}
}

// helloOf captures a real ClientHello.
func helloOf(t testing.TB, cfg *tls.Config) []byte {
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(a, cfg).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	_ = a.Close()
	<-done
	return buf[:n]
}

func TestInspect(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "Outbound_.9080_._.reviews.default.svc.cluster.local", NextProtos: []string{"istio-http/1.1", "istio"}})
	// The same message over two records.
	two := append([]byte{22, 3, 1, 0, 10}, hello[5:15]...)
	two = append(two, 22, 3, 1, byte((len(hello)-15)>>8), byte(len(hello)-15))
	two = append(two, hello[15:]...)
	for name, c := range map[string]struct {
		in        []byte
		transport string
		sni       string
		alpn      []string
	}{
		"tls":             {hello, "tls", "outbound_.9080_._.reviews.default.svc.cluster.local", []string{"istio-http/1.1", "istio"}},
		"tls two records": {two, "tls", "outbound_.9080_._.reviews.default.svc.cluster.local", []string{"istio-http/1.1", "istio"}},
		"http":            {[]byte("GET / HTTP/1.1\r\n"), "raw_buffer", "", []string{"http/1.1"}},
		"http 1.0":        {[]byte("POST /x HTTP/1.0\r\n"), "raw_buffer", "", []string{"http/1.0"}},
		"h2c":             {[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "raw_buffer", "", []string{"h2c"}},
		"propfind":        {[]byte("PROPFIND / HTTP/1.1\r\n"), "raw_buffer", "", []string{"http/1.1"}},
		"redis":           {[]byte("*1\r\n$4\r\nPING\r\n"), "raw_buffer", "", nil},
		"text":            {[]byte("GETTING STARTED\r\n"), "raw_buffer", "", nil},
		"nothing":         {nil, "raw_buffer", "", nil},
		"half a hello":    {hello[:40], "raw_buffer", "", nil},
	} {
		for _, slow := range []bool{false, true} {
			var src io.Reader = bytes.NewReader(c.in)
			if slow {
				src = iotest.OneByteReader(src)
			}
			var p Properties
			read, err := inspect(src, true, true, &p)
			if err != nil || p.Transport != c.transport || p.ServerName != c.sni || !slices.Equal(p.ALPN, c.alpn) {
				t.Errorf("%s (slow %v): %+v, %v", name, slow, p, err)
			}
			rest, _ := io.ReadAll(src)
			if !bytes.Equal(append(read, rest...), c.in) {
				t.Errorf("%s: bytes were lost", name)
			}
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(helloOf(f, &tls.Config{ServerName: "a.b", NextProtos: []string{"h2"}}))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var p Properties
		src := bytes.NewReader(in)
		read, _ := inspect(src, true, true, &p)
		if !bytes.HasPrefix(in, read) || strings.ToLower(p.ServerName) != p.ServerName {
			t.Fatal("bytes changed")
		}
	})
}
