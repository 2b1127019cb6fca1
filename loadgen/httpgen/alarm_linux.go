package httpgen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm waits on a timerfd. The runtime's own timers ride on epoll's milliseconds and fire up to one late when the process
// is idle, which would be half of a loopback latency; a timerfd wakes epoll itself, at the kernel's resolution.
type alarm struct {
	fd   int
	file *os.File
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a timer: %w", err)
	}
	return &alarm{fd: fd, file: os.NewFile(uintptr(fd), "timerfd")}, nil
}

// wait returns after d, or with ctx's error when that ends first. Calls must not overlap.
func (a *alarm) wait(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d <= 0 {
		return nil
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(a.fd, 0, &spec, nil); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	// The alarm is not used again after a canceled wait, so the deadline is never taken back.
	stop := context.AfterFunc(ctx, func() { _ = a.file.SetReadDeadline(time.Unix(0, 1)) })
	defer stop()
	var expirations [8]byte
	if _, err := a.file.Read(expirations[:]); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return context.Cause(ctx)
		}
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

func (a *alarm) close() { _ = a.file.Close() }
