package multicluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// flow is one TCP connection on the link, as far as the capture saw it.
type flow struct {
	Client, Server netip.AddrPort // who opened it and who was called; for one that was open before, the lower port is the Server
	Whole          bool           // it was opened within the capture
	Bytes          int            // of payload, both ways
	SNI            string         // that the client asked for, if Whole
	ALPN           []string       // that the client offered, if Whole
	Problem        string         // why what it carries is not TLS, or ""
	Unproven       string         // why it is not known to be TLS to its last byte, or ""
}

// wire is what was seen on the link.
type wire struct {
	Frames int
	Flows  []flow         // that carried payload, or are known to have, by server
	Other  map[string]int // frames that are not TCP over IPv4, by what they are; ARP is no traffic and left out
}

// readWire reads a capture. It keeps what TCP carried of each direction, put in order, and checks that it is TLS and nothing else.
func readWire(r io.Reader) (wire, error) {
	in, err := pcapgo.NewReader(r)
	if err != nil {
		return wire{}, fmt.Errorf("capture: %w", err)
	}
	if in.LinkType() != layers.LinkTypeEthernet {
		return wire{}, fmt.Errorf("capture: link type %s, not Ethernet", in.LinkType())
	}
	w := wire{Other: map[string]int{}}
	conns := map[[2]netip.AddrPort]*conn{}
	var order []*conn
	for {
		data, _, err := in.ReadPacketData()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break // a capture that was cut off has told all it can
		}
		if err != nil {
			return wire{}, fmt.Errorf("capture, frame %d: %w", w.Frames, err)
		}
		w.Frames++
		src, dst, seg, other := parseFrame(data)
		if other != "" {
			if other != "ARP" {
				w.Other[other]++
			}
			continue
		}
		key, back := [2]netip.AddrPort{src, dst}, [2]netip.AddrPort{dst, src}
		c := conns[key]
		if c == nil {
			c = conns[back]
		}
		if c == nil || seg.SYN && !seg.ACK && c.ended {
			c = newConn(src, dst, seg)
			conns[key] = c
			delete(conns, back)
			order = append(order, c)
		}
		c.add(src, seg)
	}
	for _, c := range order {
		if f := c.flow(); f.Bytes > 0 || f.Unproven != "" {
			w.Flows = append(w.Flows, f)
		}
	}
	slices.SortStableFunc(w.Flows, func(a, b flow) int { return cmp.Or(a.Server.Compare(b.Server), a.Client.Compare(b.Client)) })
	return w, nil
}

// parseFrame takes an Ethernet frame apart. other names what is not TCP over IPv4.
func parseFrame(data []byte) (src, dst netip.AddrPort, tcp *layers.TCP, other string) {
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: false, NoCopy: true})
	if p.Layer(layers.LayerTypeARP) != nil {
		return src, dst, nil, "ARP"
	}
	ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp, _ = p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if ip == nil || tcp == nil {
		var names []string
		for _, l := range p.Layers() {
			names = append(names, l.LayerType().String())
		}
		return src, dst, nil, strings.Join(names, "/")
	}
	from, _ := netip.AddrFromSlice(ip.SrcIP.To4())
	to, _ := netip.AddrFromSlice(ip.DstIP.To4())
	return netip.AddrPortFrom(from, uint16(tcp.SrcPort)), netip.AddrPortFrom(to, uint16(tcp.DstPort)), tcp, ""
}

// conn is one connection while its segments come in. half[0] is what the client sends.
type conn struct {
	client, server netip.AddrPort
	whole, ended   bool
	half           [2]half
}

func newConn(src, dst netip.AddrPort, seg *layers.TCP) *conn {
	c := &conn{client: src, server: dst}
	switch {
	case seg.SYN && !seg.ACK:
		c.whole = true
	case seg.SYN: // the answer; the question was before the capture
		c.client, c.server = dst, src
	case src.Port() < dst.Port():
		c.client, c.server = dst, src
	}
	return c
}

func (c *conn) add(src netip.AddrPort, seg *layers.TCP) {
	h := &c.half[0]
	if src == c.server {
		h = &c.half[1]
	}
	if seg.FIN || seg.RST {
		c.ended = true
	}
	seq := seg.Seq
	if seg.SYN {
		seq++
	}
	h.add(seq, seg.Payload, seg.SYN)
}

func (c *conn) flow() flow {
	f := flow{Client: c.client, Server: c.server, Whole: c.whole}
	for i := range c.half {
		data := c.half[i].data()
		f.Bytes += len(data)
		who := []string{"the client", "the server"}[i]
		if c.half[i].gap {
			f.Unproven = fmt.Sprintf("of what %s sends a part was not captured", who)
		}
		if f.Problem != "" || len(data) == 0 {
			continue
		}
		fromStart := c.whole && (c.half[i].fromSYN || !c.half[i].gap)
		if fromStart {
			if i == 0 && !c.half[i].gap { // of a ClientHello that is cut off by a gap the records tell
				hello, err := parseHello(data)
				if err != nil {
					f.Problem = fmt.Sprintf("the client does not begin with a ClientHello: %v", err)
					continue
				}
				f.SNI, f.ALPN = hello.sni, hello.alpn
			} else if !isHandshake(data) {
				f.Problem = fmt.Sprintf("%s does not begin with a TLS handshake: %s", who, begins(data))
				continue
			}
		}
		proven, err := records(data, fromStart)
		switch {
		case err != nil:
			f.Problem = fmt.Sprintf("%s sends what is not TLS: %v", who, err)
		case !proven && f.Unproven == "":
			f.Unproven = fmt.Sprintf("what %s sends is the middle of one record", who)
		}
	}
	return f
}

// half is one direction: segments by their place in it.
type half struct {
	base     uint32
	begun    bool
	fromSYN  bool // base is where the payload begins
	segments []segment
	gap      bool // data: something is missing before what was seen last
}

type segment struct {
	at   int64 // relative to base
	data []byte
}

func (h *half) add(seq uint32, payload []byte, syn bool) {
	if !h.begun && (syn || len(payload) > 0) {
		h.base, h.begun, h.fromSYN = seq, true, syn
	}
	if len(payload) == 0 {
		return
	}
	h.segments = append(h.segments, segment{at: int64(int32(seq - h.base)), data: bytes.Clone(payload)})
}

// data puts the segments in order and drops what was sent twice. It ends at the first gap.
func (h *half) data() []byte {
	slices.SortStableFunc(h.segments, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	var out []byte
	if len(h.segments) == 0 {
		return nil
	}
	next := h.segments[0].at
	if h.fromSYN {
		next = 0
	}
	for _, s := range h.segments {
		end := s.at + int64(len(s.data))
		switch {
		case end <= next:
		case s.at > next:
			h.gap = true
			return out
		default:
			out = append(out, s.data[next-s.at:]...)
			next = end
		}
	}
	return out
}

func begins(data []byte) string { return fmt.Sprintf("%.40q", data[:min(len(data), 40)]) }
