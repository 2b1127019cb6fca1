package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproof/meshproof/clusters"
)

const (
	maxFrame  = 2048    // devices of a link have an MTU of 1500 and segment before they send
	queueLen  = 1 << 14 // frames on their way in one direction; more are lost
	socketBuf = 8 << 20
)

// Relay carries frames between two devices in place of a bridge, in both directions, until it is stopped.
type Relay struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ends   []*os.File
}

// StartRelay relays between two devices of this process's network namespace, which no bridge may have as ports.
func StartRelay(a, b string, how clusters.Impairment) (*Relay, error) {
	if err := Check(how); err != nil {
		return nil, err
	}
	r := &Relay{}
	var ends []*os.File
	for _, name := range []string{a, b} {
		f, err := packetSocket(name,
			option{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
			option{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuf},
			option{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuf})
		if err != nil {
			for _, e := range ends {
				_ = e.Close()
			}
			return nil, err
		}
		ends = append(ends, f)
	}
	r.ends = ends
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	for _, d := range [][2]*os.File{{ends[0], ends[1]}, {ends[1], ends[0]}} {
		queue := make(chan frame, queueLen)
		s := &shaper{how: how, random: rand.Float64}
		r.wg.Go(func() {
			defer close(queue)
			receive(d[0], s, queue)
		})
		r.wg.Go(func() { send(ctx, d[1], queue) })
	}
	return r, nil
}

// Stop loses what is on its way, and returns when nothing is relayed any more.
func (r *Relay) Stop() {
	r.cancel()
	for _, f := range r.ends {
		_ = f.Close()
	}
	r.wg.Wait()
}

type frame struct {
	due  time.Time
	data []byte
}

func receive(from *os.File, s *shaper, queue chan<- frame) {
	buf := make([]byte, maxFrame)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) { // once after the device was down
			continue
		}
		if err != nil {
			return
		}
		due, ok := s.admit(time.Now(), n)
		if !ok {
			continue
		}
		select {
		case queue <- frame{due: due, data: append([]byte(nil), buf[:n]...)}:
		default: // full: lost
		}
	}
}

func send(ctx context.Context, to *os.File, queue <-chan frame) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for f := range queue {
		if !pause(ctx, timer, time.Until(f.due)) {
			continue // stopped: drain
		}
		_, _ = to.Write(f.data) // a device that takes no more loses it
	}
}

// pause waits to within some tens of microseconds. The runtime's timers go by milliseconds when the process is idle, so the
// last stretch is the kernel's sleep.
func pause(ctx context.Context, timer *time.Timer, d time.Duration) bool {
	const coarse = 2 * time.Millisecond
	end := time.Now().Add(d)
	if d > coarse {
		timer.Reset(d - coarse)
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
	}
	for left := time.Until(end); left > 0; left = time.Until(end) {
		t := unix.NsecToTimespec(int64(left))
		_ = unix.Nanosleep(&t, nil)
	}
	return ctx.Err() == nil
}

type option struct{ level, name, value int }

// packetSocket returns a socket that reads the frames of a device of this process's network namespace, and writes frames that
// the device is to send.
func packetSocket(device string, options ...option) (*os.File, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	// Protocol 0 until it is bound: nothing of other devices gets in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), device)
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return nil, errors.Join(fmt.Errorf("device %s: %w", device, os.NewSyscallError("setsockopt", err)), f.Close())
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index}); err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", device, os.NewSyscallError("bind", err)), f.Close())
	}
	return f, nil
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
