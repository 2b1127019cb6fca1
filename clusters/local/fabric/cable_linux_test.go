package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/link"
)

// relay puts a relay into the cable for the length of f.
func relay(t testing.TB, fabric *testFabric, how clusters.Impairment, f func()) {
	t.Helper()
	if err := fabric.Connect(0, 1, false); err != nil {
		t.Fatal(err)
	}
	a, b := Middle(0, 1)
	r, err := link.StartRelay(a, b, how)
	if err != nil {
		t.Fatal(err)
	}
	f()
	r.Stop()
	if err := fabric.Connect(0, 1, true); err != nil {
		t.Fatal(err)
	}
}

func TestRelay(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 1), site(1, "west", "network1", 1))
	from, to := NodeIP(0, 0).String(), podIP(1, 0)+":8080"
	const delay = 40 * time.Millisecond
	relay(t, f, clusters.Impairment{Delay: delay}, func() {
		start := time.Now()
		if _, err := f.get(t.Context(), from, to); err != nil {
			t.Fatal(err)
		}
		// SYN, SYN-ACK, request, answer: four ways.
		if took := time.Since(start); took < 4*delay {
			t.Errorf("connect and ask took %s with %s each way, which is impossible", took, delay)
		}
	})
	const rate, size = 1 << 20, 1 << 19
	relay(t, f, clusters.Impairment{Rate: rate}, func() {
		start := time.Now()
		got, err := f.get(t.Context(), from, to+"/?bytes="+fmt.Sprint(size))
		if err != nil || len(got) != size {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took < time.Second*size/rate {
			t.Errorf("%d bytes at %d bytes/s took only %s", size, rate, took)
		}
	})
	relay(t, f, clusters.Impairment{Loss: 1}, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := f.get(ctx, from, to); err == nil {
			t.Error("an answer over a link that loses everything")
		}
	})
}

// TestCapture finds each packet of an exchange in the capture, once, with its right addresses and checksums.
func TestCapture(t *testing.T) {
	f := newFabric(t, site(0, "east", "network1", 1), site(1, "west", "network1", 1))
	a, _ := Middle(0, 1)
	var file bytes.Buffer
	c, err := link.StartCapture(a, &file)
	if err != nil {
		t.Fatal(err)
	}
	const size = 200 << 10 // many segments
	got, err := f.get(t.Context(), NodeIP(0, 0).String()+"/"+podIP(0, 0), podIP(1, 0)+":8080/?bytes="+fmt.Sprint(size))
	if err != nil || len(got) != size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	checkCapture(t, &file, podIP(0, 0), podIP(1, 0), size)
}

// BenchmarkCable downloads over a cable that the kernel carries and one that a relay does.
func BenchmarkCable(b *testing.B) {
	f := newFabric(b, site(0, "east", "network1", 1), site(1, "west", "network1", 1))
	from, to := NodeIP(0, 0).String(), podIP(1, 0)+":8080"
	const size = 32 << 20
	download := func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if got, err := f.get(b.Context(), from, to+"/?bytes="+strconv.Itoa(size)); err != nil || len(got) != size {
				b.Fatalf("%d bytes, %v", len(got), err)
			}
		}
	}
	exchange := func(b *testing.B) {
		for b.Loop() {
			if _, err := f.get(b.Context(), from, to); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("kernel/download", download)
	b.Run("kernel/exchange", exchange)
	relay(b, f, clusters.Impairment{Delay: 1}, func() {
		b.Run("relay/download", download)
		b.Run("relay/exchange", exchange)
	})
}
