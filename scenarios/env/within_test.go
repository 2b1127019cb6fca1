package env

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/meshproof/meshproof/clusters"
)

// stuck is a cluster whose nodes take no images.
type stuck struct{ clusters.Cluster }

func (stuck) Name() string { return "one" }

func (stuck) LoadImages(ctx context.Context, _ ...string) error {
	<-ctx.Done()
	return ctx.Err()
}

type stuckLab struct{ clusters.Lab }

func (stuckLab) Clusters() []clusters.Cluster { return []clusters.Cluster{stuck{}} }

func TestImagesAreNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Env{Lab: stuckLab{}}
		err := e.load(t.Context(), []string{"x.tar"})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cluster one: took longer than 3m0s") {
			t.Errorf("load: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := e.load(ctx, nil); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "took longer") {
			t.Errorf("load with an ended context: %v", err)
		}
	})
}
