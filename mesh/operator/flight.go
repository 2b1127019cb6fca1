package operator

import (
	"context"
	"errors"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

// errSuperseded ends the carrying out of a generation that nobody asks for any more.
var errSuperseded = errors.New("the object was changed or deleted meanwhile")

// flight is what is being carried out. One that cannot come to an end, for an image that is not there say, must not hold back its
// own correction or deletion.
type flight struct {
	mu     sync.Mutex
	latest map[string]int64 // generation of each object that the API server has told of
	key    string           // what is under way; empty for nothing
	at     int64            // its generation
	cancel context.CancelCauseFunc
}

// seen takes note of an object as the API server has it. A deletion is a generation, too.
func (f *flight) seen(u *unstructured.Unstructured) {
	key, err := cache.MetaNamespaceKeyFunc(u)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.latest == nil {
		f.latest = map[string]int64{}
	}
	f.latest[key] = u.GetGeneration()
	if key == f.key && f.latest[key] > f.at {
		f.cancel(errSuperseded)
	}
}

// gone forgets an object.
func (f *flight) gone(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.latest, key)
}

// begin returns a context that ends when a newer generation than u is seen, and what to call at the end.
func (f *flight) begin(ctx context.Context, u *unstructured.Unstructured) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.key, f.at, f.cancel = u.GetNamespace()+"/"+u.GetName(), u.GetGeneration(), cancel
	if f.latest[f.key] > f.at {
		cancel(errSuperseded)
	}
	return ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.key = ""
		cancel(nil)
	}
}
