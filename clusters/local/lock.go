package local

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile takes the lock of a file or folder, which is made as a file if missing. It ends with the process at the latest. waiting is
// called once if somebody else has it; it may be nil.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, f, waiting); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// lockLab makes the lab's folder and locks it. The folder is the lock, so nothing else stays behind when it is removed.
// waiting is as in lockFile.
func lockLab(ctx context.Context, dir string, waiting func()) (unlock func(), err error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, f, waiting); err != nil {
			_ = f.Close()
			return nil, err
		}
		// Whoever held it may have removed the folder meanwhile.
		mine, err1 := f.Stat()
		now, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

// locked says whether somebody holds the lock of a lab's folder.
func locked(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close() // which gives back what Flock takes
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

func flock(ctx context.Context, f *os.File, waiting func()) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		if err == unix.EWOULDBLOCK && waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
