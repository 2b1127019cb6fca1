package peer

import (
	"bytes"
	"errors"
	"strconv"
	"testing"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// TestRemembered: what clients say is decoded once and held within bounds, both in number and in size.
func TestRemembered(t *testing.T) {
	decoded := 0
	f := New("id", nil, func(b []byte) (*conf.Workload, error) {
		decoded++
		if string(b) == "bad" {
			return nil, errors.New("bad")
		}
		return &conf.Workload{Name: string(b)}, nil
	})
	for range 2 {
		if w := f.workload([]byte("a")); w == nil || w.Name != "a" {
			t.Errorf("workload %v", w)
		}
		if w := f.workload([]byte("bad")); w != nil {
			t.Errorf("workload %v of metadata that cannot be read", w)
		}
	}
	if decoded != 2 {
		t.Errorf("decoded %d times, want once each", decoded)
	}
	if f.workload(bytes.Repeat([]byte("x"), longest+1)) != nil || len(f.peers) != 2 {
		t.Errorf("%d peers: one that says too much is remembered", len(f.peers))
	}
	for i := range 2 * known {
		f.workload([]byte(strconv.Itoa(i)))
	}
	if len(f.peers) > known {
		t.Errorf("%d peers are remembered", len(f.peers))
	}
}
