package multicluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// tape is what a connection carried, in the order in which it was written: who wrote what.
type tape struct {
	mu     sync.Mutex
	writes []write
}

type write struct {
	server bool
	data   []byte
}

type taped struct {
	net.Conn
	tape   *tape
	server bool
}

func (c taped) Write(b []byte) (int, error) {
	c.tape.mu.Lock()
	c.tape.writes = append(c.tape.writes, write{c.server, bytes.Clone(b)})
	c.tape.mu.Unlock()
	return c.Conn.Write(b)
}

// talk is a real conversation of mutual TLS over a real connection.
func talk(t *testing.T, sni string) []write {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	var tp tape
	a, b := net.Pipe()
	server := tls.Server(taped{b, &tp, true}, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	client := tls.Client(taped{a, &tp, false}, &tls.Config{
		Certificates: []tls.Certificate{cert}, ServerName: sni, InsecureSkipVerify: true, NextProtos: []string{"istio-peer-exchange", "istio"},
	})
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 5)
		_, err := io.ReadFull(server, buf)
		if err == nil {
			_, err = server.Write(bytes.Repeat([]byte("answer"), 5000))
		}
		done <- err
	}()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 30000)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	return tp.writes
}

var (
	pod     = netip.MustParseAddrPort("10.32.1.5:41000")
	gateway = netip.MustParseAddrPort("10.65.0.1:15443")
)

// segmentOf is one TCP segment of a capture.
type segmentOf struct {
	from, to netip.AddrPort
	seq      uint32
	syn, ack bool
	data     []byte
}

// segments cuts what was written into segments of at most 1000 bytes. opened puts the handshake of TCP before them.
func segments(client, server netip.AddrPort, writes []write, opened bool) []segmentOf {
	seq := [2]uint32{0xfffffff0, 7} // one wraps around
	var out []segmentOf
	if opened {
		out = append(out, segmentOf{from: client, to: server, seq: seq[0], syn: true}, segmentOf{from: server, to: client, seq: seq[1], syn: true, ack: true})
	}
	seq[0]++
	seq[1]++
	for _, w := range writes {
		from, to, i := client, server, 0
		if w.server {
			from, to, i = server, client, 1
		}
		for data := w.data; len(data) > 0; {
			n := min(len(data), 1000)
			out = append(out, segmentOf{from: from, to: to, seq: seq[i], ack: true, data: data[:n]})
			seq[i] += uint32(n)
			data = data[n:]
		}
	}
	return out
}

func frame(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func ethernet(kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: kind}
}

func tcpFrame(t *testing.T, s segmentOf) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: s.from.Addr().AsSlice(), DstIP: s.to.Addr().AsSlice()}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(s.from.Port()), DstPort: layers.TCPPort(s.to.Port()), Seq: s.seq, SYN: s.syn, ACK: s.ack, Window: 1000}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return frame(t, ethernet(layers.EthernetTypeIPv4), ip, tcp, gopacket.Payload(s.data))
}

func capture(t *testing.T, frames ...[]byte) wire {
	t.Helper()
	var buf bytes.Buffer
	out := pcapgo.NewWriterNanos(&buf)
	if err := out.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := out.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	w, err := readWire(&buf)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func frames(t *testing.T, list []segmentOf) [][]byte {
	var out [][]byte
	for _, s := range list {
		out = append(out, tcpFrame(t, s))
	}
	return out
}

func TestWire(t *testing.T) {
	const sni = "outbound_.7070_._.cartservice.shop.svc.cluster.local"
	said := talk(t, sni)
	plain := []write{{false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")}, {true, []byte("HTTP/1.1 200 OK\r\n\r\n")}}
	good := segments(pod, gateway, said, true)
	shuffled := append([]segmentOf{}, good...)
	for i := 3; i+1 < len(shuffled); i += 2 {
		shuffled[i], shuffled[i+1] = shuffled[i+1], shuffled[i]
	}
	shuffled = append(shuffled, good[4:9]...) // sent once more
	late := append(append([]write{}, said...), write{true, []byte("password=secret in plain text")})
	for _, test := range []struct {
		name    string
		list    []segmentOf
		whole   bool
		problem string // "" is TLS
	}{
		{"mutual TLS", good, true, ""},
		{"out of order and repeated", shuffled, true, ""},
		{"cut off within a record", good[:len(good)-2], true, ""},
		{"open before the capture", segments(pod, gateway, said, false)[6:], false, ""},
		{"plaintext HTTP", segments(pod, gateway, plain, true), true, "the client does not begin with a ClientHello"},
		{"plaintext HTTP, open before", segments(pod, gateway, append(plain, write{false, bytes.Repeat([]byte("x=y&"), 5000)}), false), false, "the client sends what is not TLS"},
		{"TLS, then plain text", segments(pod, gateway, late, true), true, "the server sends what is not TLS"},
		{"a server that answers in plain", segments(pod, gateway, []write{said[0], {true, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}}, true), true, "the server does not begin with a TLS handshake"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := capture(t, frames(t, test.list)...)
			if len(w.Flows) != 1 || len(w.Other) != 0 {
				t.Fatalf("%d flows, others %v", len(w.Flows), w.Other)
			}
			f := w.Flows[0]
			if f.Server != gateway || f.Client != pod || f.Whole != test.whole {
				t.Errorf("%s called %s, from its start: %t", f.Client, f.Server, f.Whole)
			}
			if (f.Problem == "") != (test.problem == "") || !strings.Contains(f.Problem, test.problem) {
				t.Errorf("problem %q, want %q in it", f.Problem, test.problem)
			}
			if test.whole && test.problem == "" && (f.SNI != sni || strings.Join(f.ALPN, " ") != "istio-peer-exchange istio") {
				t.Errorf("SNI %q, ALPN %q", f.SNI, f.ALPN)
			}
		})
	}
}

// What a capture lacks hides neither the connection nor what is wrong before the gap.
func TestWireGap(t *testing.T) {
	plain := []write{{false, bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 200)}} // of several segments
	said := segments(pod, gateway, talk(t, "x"), true)
	for _, test := range []struct {
		name    string
		list    []segmentOf
		missing int
		problem string // "" is none
	}{
		{"plain text, the first segment is missing", segments(pod, gateway, plain, true), 2, ""},
		{"plain text, then a gap", segments(pod, gateway, plain, true), 3, "the client does not begin with a TLS handshake"},
		{"TLS, the ClientHello is missing", said, 2, ""},
		{"TLS, then a gap", said, len(said) - 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := capture(t, frames(t, slices.Delete(slices.Clone(test.list), test.missing, test.missing+1))...)
			if len(w.Flows) != 1 {
				t.Fatalf("%d flows", len(w.Flows))
			}
			if f := w.Flows[0]; f.Unproven == "" || (f.Problem == "") != (test.problem == "") || !strings.Contains(f.Problem, test.problem) {
				t.Errorf("problem %q, want %q in it; unproven %q", f.Problem, test.problem, f.Unproven)
			}
		})
	}
}

func TestWireOtherKinds(t *testing.T) {
	arp := frame(t, ethernet(layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
		SourceHwAddress: make([]byte, 6), SourceProtAddress: make([]byte, 4), DstHwAddress: make([]byte, 6), DstProtAddress: make([]byte, 4),
	})
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
	udp := &layers.UDP{SrcPort: 1000, DstPort: 53}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	w := capture(t, arp, frame(t, ethernet(layers.EthernetTypeIPv4), ip, udp, gopacket.Payload("x")))
	if w.Frames != 2 || len(w.Flows) != 0 || len(w.Other) != 1 {
		t.Errorf("%d frames, flows %v, others %v", w.Frames, w.Flows, w.Other)
	}
	for kind := range w.Other {
		if !strings.Contains(kind, "UDP") {
			t.Errorf("other kind %q", kind)
		}
	}
}

// Whatever a ClientHello is, reading it neither panics nor runs on.
func FuzzHello(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 3})
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseHello(data)
		if err == nil && !isHandshake(data) {
			t.Errorf("%q is a ClientHello for %q but no handshake", data, h.sni)
		}
		for _, fromStart := range []bool{true, false} {
			if proven, err := records(data, fromStart); proven && err != nil {
				t.Errorf("proven, and %v", err)
			}
		}
	})
}

// Whatever a capture holds, reading it ends without a panic.
func FuzzWire(f *testing.F) {
	var buf bytes.Buffer
	out := pcapgo.NewWriterNanos(&buf)
	if err := out.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(append(buf.Bytes(), make([]byte, 40)...))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = readWire(bytes.NewReader(data))
	})
}
