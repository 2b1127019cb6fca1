package telemetry

// Messages counts the gRPC messages of a body that comes in pieces. The zero value is ready.
//
// A message is a flag, a length of four bytes and that many bytes (gRPC over HTTP/2, Length-Prefixed-Message). It counts from
// its first byte on, as in Envoy (source/common/grpc/codec.cc, FrameInspector).
type Messages struct {
	N    uint64
	told uint64 // of N, by Untold
	head int    // bytes of the prefix that came
	left uint32 // bytes of the message that are to come; of the length so far while the prefix comes
}

// prefixLen is the flag and the length.
const prefixLen = 5

// Add takes the next piece.
func (m *Messages) Add(p []byte) {
	for len(p) > 0 {
		n := 1
		switch m.head {
		case 0:
			m.N++
			m.head, m.left = 1, 0
		case prefixLen:
			n = int(min(uint64(len(p)), uint64(m.left)))
			m.left -= uint32(n)
		default:
			m.left = m.left<<8 | uint32(p[0])
			m.head++
		}
		p = p[n:]
		if m.head == prefixLen && m.left == 0 {
			m.head = 0
		}
	}
}

// Untold returns how many messages came since it was called last.
func (m *Messages) Untold() uint64 {
	n := m.N - m.told
	m.told = m.N
	return n
}
