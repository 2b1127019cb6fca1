package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/meshproof/meshproof/mesh/model"
)

// Source is what the endpoints tell of.
type Source interface {
	Proxies() []Proxy
	Push(object model.Key, generation int64) Push
	Current() *model.Snapshot
}

// Register adds the debug endpoints to a mux.
func Register(mux *http.ServeMux, s Source) {
	mux.HandleFunc("GET "+SynczPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Proxies()) })
	mux.HandleFunc("GET "+PushzPath, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		generation, err := strconv.ParseInt(q.Get("generation"), 10, 64)
		if err != nil || generation < Absent {
			http.Error(w, fmt.Sprintf("generation=%q: want a number, or -1 for an object that is gone", q.Get("generation")), http.StatusBadRequest)
			return
		}
		if q.Get("kind") == "" || q.Get("name") == "" {
			http.Error(w, "want kind, namespace, name and generation", http.StatusBadRequest)
			return
		}
		answer(w, s.Push(model.Key{Kind: q.Get("kind"), Namespace: q.Get("namespace"), Name: q.Get("name")}, generation))
	})
	mux.HandleFunc("GET "+ConfigPath, func(w http.ResponseWriter, r *http.Request) {
		snap := s.Current()
		problems := []model.ObjectProblem{}
		if snap != nil {
			problems = append(problems, snap.Problems...)
		}
		if r.URL.Query().Has("problems") {
			answer(w, problems)
			return
		}
		type object struct {
			Kind       string `json:"kind"`
			Namespace  string `json:"namespace"`
			Name       string `json:"name"`
			Generation int64  `json:"generation"`
		}
		objects := []object{}
		var seq uint64
		if snap != nil {
			seq = snap.Sequence
			for _, k := range snap.Keys() {
				objects = append(objects, object{k.Kind, k.Namespace, k.Name, snap.Objects[k].Generation})
			}
		}
		answer(w, map[string]any{"snapshot": seq, "objects": objects, "problems": problems})
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
