// Package outlier takes endpoints out of a cluster that fail, for a while, as Envoy does: after errors in a row at once,
// and at every interval by comparing success rates. It knows nothing of connections and pickers: it is told the results of
// tries, and tells which hosts are ejected.
//
// Source: Envoy's outlier_detection_impl.cc and outlier_detection.proto.
package outlier

// Result is what became of one try.
type Result uint8

// The results, Envoy's Outlier::Result. "Local" are those seen on this side of the wire: no connection, no answer.
const (
	// Answered says that the upstream answered; the status says how well.
	Answered Result = iota
	// Connected says that a connection for a request was there; the request's own result follows.
	Connected
	// ConnectedFinal says that a connection was made and that nothing more will be known (TCP).
	ConnectedFinal
	// ConnectFailed says that no connection could be made or that it was lost.
	ConnectFailed
	// TimedOut says that no answer came in time.
	TimedOut
)
