package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/meshproof/meshproof/loadgen"
	"github.com/meshproof/meshproof/loadgen/summary"
)

// flushEvery bounds how long a Result may wait for others to share a packet with.
const flushEvery = 50 * time.Millisecond

// Handler returns the server side. Runs may overlap; they share this process's processors, and their lateness shows it.
func Handler(run RunFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ready\n") })
	mux.HandleFunc("POST /run", func(w http.ResponseWriter, r *http.Request) {
		p, err := readProfile(http.MaxBytesReader(w, r.Body, maxProfile))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		stream(w, r, p, run)
	})
	return mux
}

func readProfile(body io.Reader) (loadgen.Profile, error) {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	var p loadgen.Profile
	if err := dec.Decode(&p); err != nil {
		return p, fmt.Errorf("read the profile: %w", err)
	}
	return p, p.Validate()
}

// stream runs p and writes its records. The load and the writing are apart, so that a slow reader delays no request.
func stream(w http.ResponseWriter, r *http.Request, p loadgen.Profile, run RunFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return // the caller is gone, or cannot be streamed to
	}

	var (
		q       = queue{done: make(chan struct{})}
		running sync.WaitGroup
		failed  error // of the run; read after it
	)
	running.Go(func() {
		defer close(q.done)
		failed = run(ctx, p, q.add)
	})
	recorder := summary.New(summary.Options{})
	sent, err := forward(w, &q, recorder)
	if err != nil {
		cancel() // the caller is gone
		running.Wait()
		return
	}
	running.Wait()
	trailer := Trailer{Summary: recorder.Summary(), Results: sent}
	if err := errors.Join(failed, ctx.Err()); err != nil {
		trailer.Error = err.Error()
	}
	_ = json.NewEncoder(w).Encode(record{Trailer: &trailer}) // a caller that does not get it knows by its absence
}

// forward writes what comes through q, a batch a tick, until it is done. It returns how many Results that were.
func forward(w http.ResponseWriter, q *queue, recorder *summary.Recorder) (uint64, error) {
	out := json.NewEncoder(w)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var sent uint64
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-q.done:
			done = true
		}
		batch := q.take()
		for i := range batch {
			recorder.Add(batch[i])
			if err := out.Encode(record{Result: &batch[i]}); err != nil {
				return sent, err
			}
			sent++
		}
		if len(batch) > 0 {
			if err := http.NewResponseController(w).Flush(); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// queue holds Results between the load and the writing. It has no bound: a run has one, its profile.
type queue struct {
	done chan struct{} // closed after the last add

	mu    sync.Mutex
	items []loadgen.Result
}

func (q *queue) add(r loadgen.Result) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, r)
}

func (q *queue) take() []loadgen.Result {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}
