package hcm

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// from is a request from 10.0.0.1. fields are names and values in turn.
func from(h *conf.HTTP, fields ...string) *filter.Stream {
	s := &filter.Stream{Conn: &filter.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:1234"), Local: netip.MustParseAddrPort("10.0.0.2:80")}, HTTP: h, Scheme: schemeHTTP}
	for i := 0; i < len(fields); i += 2 {
		s.Req.Add([]byte(fields[i]), []byte(fields[i+1]))
	}
	return s
}

// TestForwarded: x-forwarded-for on several lines is one list (RFC 9110 section 5.3), whichever line says what.
func TestForwarded(t *testing.T) {
	const xff = "x-forwarded-for"
	for _, c := range []struct {
		name     string
		http     conf.HTTP
		fields   []string
		want     string // of x-forwarded-for
		external string
		internal bool
	}{
		{"none", conf.HTTP{UseRemote: true}, nil, "10.0.0.1", "", true},
		{"one line", conf.HTTP{UseRemote: true}, []string{xff, "1.1.1.1, 2.2.2.2"}, "1.1.1.1, 2.2.2.2,10.0.0.1", "10.0.0.1", false},
		{"two lines", conf.HTTP{UseRemote: true}, []string{xff, "1.1.1.1", "a", "b", xff, "2.2.2.2"}, "1.1.1.1,2.2.2.2,10.0.0.1", "10.0.0.1", false},
		{"a trusted hop, one line", conf.HTTP{UseRemote: true, TrustedHops: 1}, []string{xff, "1.1.1.1,2.2.2.2"}, "1.1.1.1,2.2.2.2,10.0.0.1", "2.2.2.2", false},
		{"a trusted hop, two lines", conf.HTTP{UseRemote: true, TrustedHops: 1}, []string{xff, "1.1.1.1", xff, "2.2.2.2"}, "1.1.1.1,2.2.2.2,10.0.0.1", "2.2.2.2", false},
		{"two trusted hops, two lines", conf.HTTP{UseRemote: true, TrustedHops: 2}, []string{xff, "1.1.1.1", xff, "2.2.2.2"}, "1.1.1.1,2.2.2.2,10.0.0.1", "1.1.1.1", false},
		{"inside, one address", conf.HTTP{}, []string{xff, "10.1.1.1"}, "10.1.1.1", "", true},
		{"inside, two lines", conf.HTTP{}, []string{xff, "10.1.1.1", xff, "1.1.1.1"}, "10.1.1.1,1.1.1.1", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := from(&c.http, c.fields...)
			forwarded(s)
			got, _ := s.Req.Joined(hXFF)
			if string(got) != c.want || string(s.Req.Get("x-envoy-external-address")) != c.external || s.Internal != c.internal {
				t.Errorf("x-forwarded-for %q, external address %q, internal %v; want %q, %q, %v",
					got, s.Req.Get("x-envoy-external-address"), s.Internal, c.want, c.external, c.internal)
			}
		})
	}
}

// TestClientCertLines: what came on several lines is kept before what is added.
func TestClientCertLines(t *testing.T) {
	s := from(&conf.HTTP{XFCC: conf.XFCCAppendForward}, "x-forwarded-client-cert", "URI=a", "x-forwarded-client-cert", "URI=b")
	s.Conn.XFCC = []byte("URI=c")
	clientCert(s)
	if got, _ := s.Req.Joined(hXFCC); string(got) != "URI=a,URI=b,URI=c" {
		t.Errorf("got %q", got)
	}
}
