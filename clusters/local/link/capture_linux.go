package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// captureBuf holds a second of a busy link while the writer is slow.
const captureBuf = 64 << 20

// Capture writes every frame that a device of this process's network namespace sends or receives to w, from when it returns
// until it is closed: a pcap stream, Ethernet frames, whole, in nanoseconds.
type Capture struct {
	socket *os.File
	wg     sync.WaitGroup
	once   sync.Once
	err    error
}

// StartCapture begins a capture. Whoever starts it may leave the namespace afterwards.
func StartCapture(device string, w io.Writer) (*Capture, error) {
	out, err := newPcapWriter(w)
	if err != nil {
		return nil, err
	}
	c := &Capture{}
	c.socket, err = packetSocket(device, option{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuf}, option{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1})
	if err != nil {
		return nil, err
	}
	c.wg.Go(func() { c.err = c.copy(out) })
	return c, nil
}

// Close ends the capture and returns when the last frame is written. The error also tells of frames that the kernel had to drop.
func (c *Capture) Close() error {
	c.once.Do(func() {
		// What has arrived is still written; a read that finds nothing ends.
		_ = c.socket.SetReadDeadline(time.Now())
		c.wg.Wait()
		c.err = errors.Join(c.err, c.dropped(), c.socket.Close())
	})
	return c.err
}

func (c *Capture) copy(out *pcapWriter) error {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	buf, oob := make([]byte, maxFrame), make([]byte, 128)
	for {
		var n, oobn int
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_TRUNC)
			return recvErr != unix.EAGAIN
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return c.rest(out)
		}
		if err != nil {
			return err
		}
		if recvErr == unix.ENETDOWN || recvErr == unix.EINTR {
			continue
		}
		if recvErr != nil {
			return os.NewSyscallError("recvmsg", recvErr)
		}
		if err := write(out, buf, n, oob[:oobn]); err != nil {
			return err
		}
	}
}

// rest writes what the socket still holds after the deadline, beyond which the poller no longer reads.
func (c *Capture) rest(out *pcapWriter) error {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	buf, oob := make([]byte, maxFrame), make([]byte, 128)
	var result error
	err = raw.Control(func(fd uintptr) {
		for {
			n, oobn, _, _, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			if err != nil { // EAGAIN: empty
				return
			}
			if result = write(out, buf, n, oob[:oobn]); result != nil {
				return
			}
		}
	})
	return errors.Join(err, result)
}

func write(out *pcapWriter, buf []byte, n int, oob []byte) error {
	return out.write(timestamp(oob), buf[:min(n, len(buf))], n)
}

// timestamp is when the kernel saw the frame.
func timestamp(oob []byte) time.Time {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

// dropped is an error if the socket's buffer was full at times.
func (c *Capture) dropped() error {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var statErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil || statErr != nil {
		return errors.Join(err, statErr)
	}
	if stats.Drops > 0 {
		return fmt.Errorf("capture is not complete: %d of %d frames were dropped because the writer was too slow", stats.Drops, stats.Packets)
	}
	return nil
}
