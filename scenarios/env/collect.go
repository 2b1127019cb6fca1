package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/mesh/status"
)

// Broken says which of the lab's own parts ended although it should not; nil while all run, and where the provider cannot tell.
func (e *Env) Broken() error {
	if l, ok := e.Lab.(clusters.Supervised); ok {
		return l.Broken()
	}
	return nil
}

// labLogs is where the logs of the lab's own parts lie in a folder of diagnostics; no namespace or cluster can have the name.
const labLogs = "_lab"

// brokenBudget bounds the questions to a broken lab.
const brokenBudget = 10 * time.Second

// Collect writes what is needed to explain a failure into dir: pods, events, logs, Istio objects, sync status and each
// proxy's configuration; of a lab with several clusters, into a folder for each; and what the lab's own parts logged, into _lab. It
// collects as much as it can; what it could not is listed in errors.txt there.
func (e *Env) Collect(ctx context.Context, dir string) error {
	var errs []error
	if l, ok := e.Lab.(clusters.Supervised); ok { // first: it needs no API server that answers
		errs = append(errs, l.Logs(filepath.Join(dir, labLogs)))
	}
	if e.Broken() != nil { // most of what follows is asked for in vain
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, brokenBudget)
		defer cancel()
	}
	for _, s := range e.Sites {
		to := dir
		if len(e.Sites) > 1 {
			to = filepath.Join(dir, s.ID)
		}
		errs = append(errs, s.collect(ctx, to))
	}
	return errors.Join(errs...)
}

func (s *Site) collect(ctx context.Context, dir string) error {
	if s.Client == nil {
		return nil // there is no API server to ask
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{s.Client.Collect(ctx, dir)}
	errs = append(errs, writeJSON(filepath.Join(dir, "istio.json"), s.Client.Istio(ctx)))
	if m, ok := s.Mesh.(*istioMesh); ok {
		errs = append(errs, s.collectMesh(ctx, dir, m))
	}
	if err := errors.Join(errs...); err != nil {
		return writeFile(filepath.Join(dir, "errors.txt"), []byte(err.Error()+"\n"))
	}
	return nil
}

// collectMesh asks the control plane about all its proxies, and those of this cluster themselves.
func (s *Site) collectMesh(ctx context.Context, dir string, m *istioMesh) error {
	var errs []error
	syncz, err := status.Syncz(ctx, m.http, "http://"+m.istiod)
	errs = append(errs, err, writeJSON(filepath.Join(dir, "syncz.json"), syncz))
	problems, err := status.Problems(ctx, m.http, "http://"+m.istiod)
	errs = append(errs, err, writeJSON(filepath.Join(dir, "problems.json"), problems))
	remote, err := status.Clusterz(ctx, m.http, "http://"+m.istiod)
	errs = append(errs, err, writeJSON(filepath.Join(dir, "clusters.json"), remote))
	for _, p := range syncz {
		pod, ns, ok := strings.Cut(p.Proxy, ".")
		if !ok || p.ClusterID != s.ID {
			continue
		}
		dump, err := s.Client.Admin(ctx, ns, pod, "/config_dump")
		if err != nil {
			errs = append(errs, fmt.Errorf("config dump of %s: %w", p.Proxy, err))
			continue
		}
		errs = append(errs, writeFile(filepath.Join(dir, "config", p.Proxy+".json"), dump))
	}
	return errors.Join(errs...)
}

func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return writeFile(file, data)
}

func writeFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
