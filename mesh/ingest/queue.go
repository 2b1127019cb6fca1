package ingest

import (
	"sync"

	"github.com/meshproof/meshproof/mesh/model"
)

// queue carries events from the informers, in their order, without holding an informer up.
type queue struct {
	mu     sync.Mutex
	events []event
	notify chan struct{}
}

type event struct {
	cluster string // empty for the control plane's own
	obj     any
	deleted bool
	forget  bool // everything of the cluster; there is no obj
}

func newQueue() *queue { return &queue{notify: make(chan struct{}, 1)} }

func (q *queue) add(e ...event) {
	q.mu.Lock()
	q.events = append(q.events, e...)
	q.mu.Unlock()
	select {
	case q.notify <- struct{}{}:
	default:
	}
}

// drain applies everything that waits and tells how far it reaches.
func (q *queue) drain(b *model.Builder) model.Change {
	q.mu.Lock()
	events := q.events
	q.events = nil
	q.mu.Unlock()
	reach := model.Nothing
	for _, e := range events {
		reach = max(reach, e.apply(b))
	}
	return reach
}

func (e event) apply(b *model.Builder) model.Change {
	switch {
	case e.forget:
		return b.Forget(e.cluster)
	case e.cluster == "" && e.deleted:
		return b.Delete(e.obj)
	case e.cluster == "":
		return b.Set(e.obj)
	case e.deleted:
		return b.DeleteIn(e.cluster, e.obj)
	default:
		return b.SetIn(e.cluster, e.obj)
	}
}

// held keeps the first events of a cluster back, so that all of them come at once.
type held struct {
	q        *queue
	mu       sync.Mutex
	events   []event
	released bool
}

func (h *held) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		h.q.add(e)
		return
	}
	h.events = append(h.events, e)
}

func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = true
	h.q.add(h.events...)
	h.events = nil
}
