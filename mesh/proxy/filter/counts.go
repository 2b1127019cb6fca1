package filter

// What bodies count in Rec may be asked for while they pass, under the lock that each piece takes anyway.

// BodyIn counts a piece of the request's body, and notes that bytes moved.
func (s *Stream) BodyIn(p []byte) {
	i := &s.interrupt
	i.mu.Lock()
	s.Rec.BodyIn(p)
	i.moved()
	i.mu.Unlock()
}

// BodyOut counts a piece of the answer's body, and notes that bytes moved.
func (s *Stream) BodyOut(p []byte) {
	i := &s.interrupt
	i.mu.Lock()
	s.Rec.BodyOut(p)
	i.moved()
	i.mu.Unlock()
}

// Settled promises that what Rec says of who calls whom stays as it is: inbound from the choice of a cluster on, else from the head
// of the answer on, which tells who the peer is.
func (s *Stream) Settled() {
	s.interrupt.mu.Lock()
	s.interrupt.known = true
	s.interrupt.mu.Unlock()
}

// Untold returns how many messages of gRPC passed each way since it was called last. It returns none before Settled, for it would
// not be known whose they are.
func (s *Stream) Untold() (in, out uint64) {
	i := &s.interrupt
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.known {
		return 0, 0
	}
	return s.Rec.MessagesIn.Untold(), s.Rec.MessagesOut.Untold()
}
