package link

import (
	"encoding/binary"
	"io"
	"time"
)

// pcapWriter writes the classic capture format with times in nanoseconds (draft-ietf-opsawg-pcap), link type Ethernet.
type pcapWriter struct {
	w   io.Writer
	buf []byte
}

func newPcapWriter(w io.Writer) (*pcapWriter, error) {
	h := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	h = binary.LittleEndian.AppendUint16(h, 2)        // major version
	h = binary.LittleEndian.AppendUint16(h, 4)        // minor version
	h = append(h, make([]byte, 8)...)                 // time zone and accuracy, both unused
	h = binary.LittleEndian.AppendUint32(h, maxFrame) // longest record
	h = binary.LittleEndian.AppendUint32(h, 1)        // LINKTYPE_ETHERNET
	_, err := w.Write(h)
	return &pcapWriter{w: w}, err
}

// write writes one frame of which length bytes were on the link and data is the beginning.
func (p *pcapWriter) write(at time.Time, data []byte, length int) error {
	b := binary.LittleEndian.AppendUint32(p.buf[:0], uint32(at.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Nanosecond()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	p.buf = append(b, data...)
	_, err := p.w.Write(p.buf)
	return err
}
