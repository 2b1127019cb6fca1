// Package inject adds the sidecar to pods: a pure function from a pod to a JSON patch, and the webhook that serves it.
//
// Probes are left as they are: the kubelet calls in plaintext, which the sidecar's permissive inbound side passes on.
package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Labels and annotations, as Istio has them.
const (
	InjectLabel       = "sidecar.istio.io/inject"
	RevisionLabel     = "istio.io/rev"
	StatusAnnotation  = "sidecar.istio.io/status"
	tlsModeLabel      = "security.istio.io/tlsMode"
	canonicalName     = "service.istio.io/canonical-name"
	canonicalRevision = "service.istio.io/canonical-revision"
)

// ProxyUser is the user and group that the sidecar runs as; the redirect rules leave its traffic alone.
const ProxyUser int64 = 1337

// Config is what injection needs to know of the mesh.
type Config struct {
	Image            string // meshproof.dev/meshproxy:TAG
	Revision         string // "default" or a name
	DiscoveryAddress string // istiod.istio-system.svc:15012
	ClusterID        string
	MeshID           string
	Network          string
	TrustDomain      string
}

// Result is what to do with a pod.
type Result struct {
	Patch    []byte   // JSON patch, nil for none
	Reason   string   // why there is no patch
	Warnings []string // for the person who made the pod
}

// Patch decides whether a pod of that namespace gets a sidecar, and gives the patch that adds it. name stands in for a pod
// that has only a generated one.
func Patch(pod *corev1.Pod, namespace string, cfg Config) (Result, error) {
	if why := skip(pod); why != "" {
		return Result{Reason: why}, nil
	}
	p := pod.DeepCopy()
	warnings := unsupported(p.Annotations)
	args, err := redirectArgs(p.Annotations)
	if err != nil {
		return Result{}, err
	}
	res, err := proxyResources(p.Annotations)
	if err != nil {
		return Result{}, err
	}
	initC, sidecar := initContainer(cfg, args), sidecarContainer(p, namespace, cfg, res)
	p.Spec.InitContainers = append([]corev1.Container{initC, sidecar}, p.Spec.InitContainers...)
	p.Spec.Volumes = append(p.Spec.Volumes, ProxyVolumes()...)
	label(p)
	annotate(p, cfg)
	patch, err := diff(p, pod)
	return Result{Patch: patch, Warnings: warnings}, err
}

// skip is Istio's rule: host network never, the label before the annotation, no pod twice.
func skip(p *corev1.Pod) string {
	if p.Spec.HostNetwork {
		return "the pod uses the host's network"
	}
	if p.Annotations[StatusAnnotation] != "" {
		return "the pod has a sidecar already"
	}
	v, ok := p.Labels[InjectLabel]
	if !ok {
		v = p.Annotations[InjectLabel]
	}
	switch strings.ToLower(v) {
	case "false", "no", "off", "n":
		return InjectLabel + " is " + v
	}
	return ""
}

// honoured are the annotations of Istio's sidecar groups that have an effect here.
var honoured = []string{
	InjectLabel, StatusAnnotation,
	"sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyCPULimit", "sidecar.istio.io/proxyMemoryLimit",
	"traffic.sidecar.istio.io/includeOutboundIPRanges", "traffic.sidecar.istio.io/excludeOutboundIPRanges",
	"traffic.sidecar.istio.io/includeInboundPorts", "traffic.sidecar.istio.io/excludeInboundPorts",
	"traffic.sidecar.istio.io/includeOutboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts",
}

func unsupported(a map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(a)) {
		group, _, _ := strings.Cut(k, "/")
		if (group == "sidecar.istio.io" || group == "traffic.sidecar.istio.io" || group == "proxy.istio.io" || group == "inject.istio.io") &&
			!slices.Contains(honoured, k) {
			out = append(out, fmt.Sprintf("annotation %s is not supported and has no effect", k))
		}
	}
	return out
}

// redirectArgs are the arguments of the init container, Istio's own.
func redirectArgs(a map[string]string) ([]string, error) {
	get := func(name, def string) string {
		if v, ok := a["traffic.sidecar.istio.io/"+name]; ok {
			return v
		}
		return def
	}
	for _, name := range []string{"includeInboundPorts", "excludeInboundPorts", "includeOutboundPorts", "excludeOutboundPorts"} {
		v := get(name, "")
		if v == "*" && name == "includeInboundPorts" {
			continue
		}
		for p := range strings.SplitSeq(v, ",") {
			if p = strings.TrimSpace(p); p == "" {
				continue
			}
			if n := intstr.Parse(p); n.Type != intstr.Int || n.IntVal < 1 || n.IntVal > 65535 {
				return nil, fmt.Errorf("annotation traffic.sidecar.istio.io/%s: %q is not a port; want a comma-separated list of 1 to 65535", name, p)
			}
		}
	}
	exclude := "15090,15021,15020"
	if v := get("excludeInboundPorts", ""); v != "" {
		exclude += "," + v
	}
	args := []string{
		"init", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT",
		"-i", get("includeOutboundIPRanges", "*"), "-x", get("excludeOutboundIPRanges", ""),
		"-b", get("includeInboundPorts", "*"), "-d", exclude,
	}
	if v := get("excludeOutboundPorts", ""); v != "" {
		args = append(args, "-o", v)
	}
	if v := get("includeOutboundPorts", ""); v != "" {
		args = append(args, "-q", v)
	}
	return args, nil
}

func proxyResources(a map[string]string) (corev1.ResourceRequirements, error) {
	out := corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("40Mi"),
	}}
	for _, x := range []struct {
		name  string
		res   corev1.ResourceName
		limit bool
	}{
		{"proxyCPU", corev1.ResourceCPU, false},
		{"proxyMemory", corev1.ResourceMemory, false},
		{"proxyCPULimit", corev1.ResourceCPU, true},
		{"proxyMemoryLimit", corev1.ResourceMemory, true},
	} {
		v, ok := a["sidecar.istio.io/"+x.name]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(v)
		if err != nil {
			return out, fmt.Errorf("annotation sidecar.istio.io/%s: %q is not a quantity: %w", x.name, v, err)
		}
		if x.limit {
			if out.Limits == nil {
				out.Limits = corev1.ResourceList{}
			}
			out.Limits[x.res] = q
		} else {
			out.Requests[x.res] = q
		}
	}
	return out, nil
}

func label(p *corev1.Pod) {
	set := func(k, v string) {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		if _, ok := p.Labels[k]; !ok {
			p.Labels[k] = v
		}
	}
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := p.Labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	set(tlsModeLabel, "istio")
	set(canonicalName, cmp.Or(first("app.kubernetes.io/name", "app"), workload(p)))
	set(canonicalRevision, cmp.Or(first("app.kubernetes.io/version", "version"), "latest"))
}

func annotate(p *corev1.Pod, cfg Config) {
	status, _ := json.Marshal(map[string]any{ // strings only: cannot fail
		"initContainers": []string{"istio-init", "istio-proxy"}, "containers": nil, "imagePullSecrets": nil,
		"volumes": names(ProxyVolumes()), "revision": cfg.Revision,
	})
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	a := p.Annotations
	a[StatusAnnotation] = string(status)
	a[RevisionLabel] = cfg.Revision
	if merged(a) {
		a["prometheus.io/scrape"], a["prometheus.io/port"], a["prometheus.io/path"] = "true", "15020", "/stats/prometheus"
	}
	if _, ok := a["kubectl.kubernetes.io/default-container"]; !ok && len(p.Spec.Containers) > 0 {
		a["kubectl.kubernetes.io/default-container"] = p.Spec.Containers[0].Name
	}
}

// merged says whether the pod's metrics are scraped at the sidecar, which adds the application's to its own.
func merged(a map[string]string) bool {
	return a["prometheus.io/scrape"] != "false" && a["prometheus.istio.io/merge-metrics"] != "false"
}

func names(vs []corev1.Volume) []string {
	var out []string
	for _, v := range vs {
		out = append(out, v.Name)
	}
	return out
}

// diff replaces whole fields: few operations, and none that depends on what another webhook did inside a list.
func diff(p, old *corev1.Pod) ([]byte, error) {
	type op struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	ops := []op{
		{"add", "/metadata/labels", p.Labels},
		{"add", "/metadata/annotations", p.Annotations},
		{"add", "/spec/initContainers", p.Spec.InitContainers},
		{"add", "/spec/volumes", p.Spec.Volumes},
	}
	b, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode patch of pod %s: %w", old.Name, err)
	}
	return b, nil
}
