package env

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/status"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// maxLog bounds what is kept of one container's log, from its end.
const maxLog = 256 << 10

// Collect writes what is needed to explain a failure into dir: pods, events, logs, Istio objects, sync status and each
// proxy's configuration. It collects as much as it can; what it could not is listed in errors.txt there.
func (e *Env) Collect(ctx context.Context, dir string) error {
	if e.Client == nil {
		return nil // there is no API server to ask
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	namespaces := []string{MeshNamespace, workload.HelloNamespace, workload.BookinfoNamespace, workload.LoadNamespace}
	var errs []error
	for _, ns := range namespaces {
		errs = append(errs, e.collectNamespace(ctx, dir, ns))
	}
	errs = append(errs, writeJSON(filepath.Join(dir, "istio.json"), e.Client.Istio(ctx)))
	if m, ok := e.Mesh.(*istioMesh); ok {
		errs = append(errs, e.collectMesh(ctx, dir, m))
	}
	if err := errors.Join(errs...); err != nil {
		return writeFile(filepath.Join(dir, "errors.txt"), []byte(err.Error()+"\n"))
	}
	return nil
}

func (e *Env) collectNamespace(ctx context.Context, dir, ns string) error {
	var errs []error
	pods, err := e.Client.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("pods of %s: %w", ns, err)
	}
	errs = append(errs, writeJSON(filepath.Join(dir, ns, "pods.json"), pods.Items))
	events, err := e.Client.Kube.CoreV1().Events(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		errs = append(errs, fmt.Errorf("events of %s: %w", ns, err))
	} else {
		errs = append(errs, writeEvents(filepath.Join(dir, ns, "events.txt"), events.Items))
	}
	for _, p := range pods.Items {
		for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			errs = append(errs, e.collectLog(ctx, filepath.Join(dir, ns), p, c.Name, false))
			if restarted(p, c.Name) {
				errs = append(errs, e.collectLog(ctx, filepath.Join(dir, ns), p, c.Name, true))
			}
		}
	}
	return errors.Join(errs...)
}

func restarted(p corev1.Pod, container string) bool {
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if s.Name == container && s.RestartCount > 0 {
			return true
		}
	}
	return false
}

func (e *Env) collectLog(ctx context.Context, dir string, p corev1.Pod, container string, previous bool) error {
	limit := int64(maxLog)
	lines := int64(2000)
	data, err := e.Client.Kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, LimitBytes: &limit, TailLines: &lines, Timestamps: true,
	}).DoRaw(ctx)
	if err != nil {
		data = []byte("no log: " + err.Error() + "\n") // a container that never started has none; that is a finding, not an error
	}
	name := p.Name + "." + container
	if previous {
		name += ".previous"
	}
	return writeFile(filepath.Join(dir, name+".log"), data)
}

func (e *Env) collectMesh(ctx context.Context, dir string, m *istioMesh) error {
	var errs []error
	syncz, err := status.Syncz(ctx, m.http, "http://"+m.istiod)
	errs = append(errs, err, writeJSON(filepath.Join(dir, "syncz.json"), syncz))
	problems, err := status.Problems(ctx, m.http, "http://"+m.istiod)
	errs = append(errs, err, writeJSON(filepath.Join(dir, "problems.json"), problems))
	for _, p := range syncz {
		pod, ns, ok := strings.Cut(p.Proxy, ".")
		if !ok {
			continue
		}
		dump, err := e.Client.Admin(ctx, ns, pod, "/config_dump")
		if err != nil {
			errs = append(errs, fmt.Errorf("config dump of %s: %w", p.Proxy, err))
			continue
		}
		errs = append(errs, writeFile(filepath.Join(dir, "config", p.Proxy+".json"), dump))
	}
	return errors.Join(errs...)
}

func writeEvents(file string, events []corev1.Event) error {
	var b bytes.Buffer
	for _, ev := range events {
		at := ev.LastTimestamp.Time
		if at.IsZero() {
			at = ev.EventTime.Time
		}
		fmt.Fprintf(&b, "%s %-7s %s/%s %s: %s\n", at.UTC().Format("15:04:05"), ev.Type, ev.InvolvedObject.Kind, ev.InvolvedObject.Name, ev.Reason, ev.Message)
	}
	return writeFile(file, b.Bytes())
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
