package fabric

import (
	"errors"
	"io"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// checkCapture reads a capture with somebody else's reader and follows the one TCP stream in it.
func checkCapture(t *testing.T, file io.Reader, client, server string, payload int) {
	t.Helper()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.LinkType() != layers.LinkTypeEthernet {
		t.Errorf("link type %s", r.LinkType())
	}
	syn, frames := 0, 0
	seen := map[uint32]bool{}
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frames++
		if info.Length != info.CaptureLength || info.Length > 1514 || info.Timestamp.IsZero() {
			t.Errorf("frame %d: %d of %d bytes at %s; want all of one that fits a wire", frames, info.CaptureLength, info.Length, info.Timestamp)
		}
		p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		tcp, ok2 := p.TransportLayer().(*layers.TCP)
		if !ok || !ok2 {
			t.Errorf("frame %d is no TCP over IPv4: %s", frames, p)
			continue
		}
		if s, d := ip.SrcIP.String(), ip.DstIP.String(); (s != client || d != server) && (s != server || d != client) {
			if !tcp.SYN && len(tcp.Payload) == 0 {
				continue // the end of a connection from before the capture
			}
			t.Errorf("frame %d goes from %s to %s", frames, s, d)
		}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
			t.Fatalf("frame %d: checksums: %v %v", frames, err, bad)
		}
		if tcp.SYN {
			syn++
		}
		if ip.SrcIP.String() == server && len(tcp.Payload) > 0 {
			if !seen[tcp.Seq] {
				payload -= len(tcp.Payload)
			}
			seen[tcp.Seq] = true
		}
	}
	if syn != 2 {
		t.Errorf("%d SYN and SYN-ACK, want 2", syn)
	}
	if payload > 0 { // the answer's header comes on top
		t.Errorf("%d bytes of the answer are not in the capture", payload)
	}
}
