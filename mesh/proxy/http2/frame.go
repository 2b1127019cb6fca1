package http2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// appendHead appends the nine bytes that every frame begins with (RFC 9113 section 4.1).
func appendHead(b []byte, n int, t http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendSettings(b []byte, s ...http2.Setting) []byte {
	b = appendHead(b, 6*len(s), http2.FrameSettings, 0, 0)
	for _, v := range s {
		b = binary.BigEndian.AppendUint16(b, uint16(v.ID))
		b = binary.BigEndian.AppendUint32(b, v.Val)
	}
	return b
}

func appendPing(b []byte, flags http2.Flags, data [8]byte) []byte {
	return append(appendHead(b, 8, http2.FramePing, flags, 0), data[:]...)
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, http2.FrameWindowUpdate, 0, id), n)
}

func appendReset(b []byte, id uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, http2.FrameRSTStream, 0, id), uint32(code))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, why string) []byte {
	b = appendHead(b, 8+len(why), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, why...)
}

// appendBlock appends a header block as HEADERS and, beyond the peer's frame size, CONTINUATION frames.
func appendBlock(b []byte, id uint32, block []byte, end bool, size int) []byte {
	t, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		part := block[:min(len(block), size)]
		block = block[len(part):]
		if len(block) == 0 {
			flags |= http2.FlagHeadersEndHeaders // the same bit in CONTINUATION
		}
		b = append(appendHead(b, len(part), t, flags, id), part...)
		if len(block) == 0 {
			return b
		}
		t, flags = http2.FrameContinuation, 0
	}
}
