// Package hangup closes connections without a farewell.
package hangup

import "net"

// Now closes c, and under TLS only what is below: (*tls.Conn).Close first sends a close_notify, for which it waits up to five
// seconds while the peer does not read. Calls on c that are under way fail. It is for connections that ended in the midst of
// something, of which the peer learns by the missing close_notify.
func Now(c net.Conn) error {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	return c.Close()
}
