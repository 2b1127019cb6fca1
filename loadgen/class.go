package loadgen

// Classes lists every class of a Result, OK first.
func Classes() []Class { return []Class{OK, Connect, Reset, Timeout, Status, Mismatch, Canceled} }

// Failed reports whether a Result of this class counts as lost: not OK, and not merely abandoned with its run.
func (c Class) Failed() bool { return c != OK && c != Canceled }
