package drive

import (
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/scenarios/workload"
)

func TestDisturbed(t *testing.T) {
	before := map[string]workload.Pod{
		"hello/x": {Ready: true}, "hello/y": {Ready: true}, "hello/z": {Ready: true}, "hello/w": {Ready: true}, "hello/v": {Ready: true}, "hello/u": {Ready: true},
	}
	after := map[string]workload.Pod{
		"hello/x": {Ready: true, Restarts: 1}, "hello/y": {Since: time.Unix(60, 0)}, "hello/z": {Ready: true, Since: time.Unix(61, 0)}, "hello/w": {Ready: true},
	}
	got := strings.Join(disturbed(before, after, func(pod string) bool { return pod == "hello/u" }), "; ")
	want := "hello/v (gone); hello/x (1 times); hello/y (no restart, but not Ready since 00:01:00); hello/z (no restart, but not Ready until 00:01:01)"
	if got != want {
		t.Errorf("disturbed: %s, want %s", got, want)
	}
}
