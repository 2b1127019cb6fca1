package inject

import (
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func initContainer(cfg Config, args []string) corev1.Container {
	return corev1.Container{
		Name: "istio-init", Image: cfg.Image, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(bool), Privileged: new(bool), ReadOnlyRootFilesystem: new(bool),
			RunAsUser: new(int64), RunAsGroup: new(int64), RunAsNonRoot: new(bool),
			Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}, Drop: []corev1.Capability{"ALL"}},
		},
	}
}

func sidecarContainer(p *corev1.Pod, namespace string, cfg Config, res corev1.ResourceRequirements) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	w := workload(p)
	c := corev1.Container{
		Name: "istio-proxy", Image: cfg.Image, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"sidecar"},
		RestartPolicy: &always, Resources: res,
		Ports:           []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: 15090, Protocol: corev1.ProtocolTCP}},
		Env:             append(ProxyEnv(cfg, w, owner(p, namespace, w)), appEnv(p)...),
		VolumeMounts:    ProxyMounts(),
		SecurityContext: ProxySecurity(),
	}
	// Native sidecars start before the application: it starts once the startup probe has passed.
	c.StartupProbe = ready(1, 600)
	c.ReadinessProbe = ready(5, 4)
	return c
}

func ready(period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: "/healthz/ready", Port: intstr.FromInt32(15021), Scheme: corev1.URISchemeHTTP,
		}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 3, SuccessThreshold: 1,
	}
}

// ProxySecurity is the security context of a proxy: its own user, no rights.
func ProxySecurity() *corev1.SecurityContext {
	user := ProxyUser
	yes := true
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(bool), Privileged: new(bool), ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes,
		RunAsUser: &user, RunAsGroup: &user, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// ProxyEnv is the environment that a proxy makes its node from, with Istio's names.
func ProxyEnv(cfg Config, workload, owner string) []corev1.EnvVar {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	config, _ := json.Marshal(map[string]string{"discoveryAddress": cfg.DiscoveryAddress}) // strings only: cannot fail
	return []corev1.EnvVar{
		{Name: "CA_ADDR", Value: cfg.DiscoveryAddress},
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("INSTANCE_IP", "status.podIP"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("HOST_IP", "status.hostIP"),
		{Name: "PROXY_CONFIG", Value: string(config)},
		{Name: "TRUST_DOMAIN", Value: cfg.TrustDomain},
		{Name: "ISTIO_META_CLUSTER_ID", Value: cfg.ClusterID},
		{Name: "ISTIO_META_INTERCEPTION_MODE", Value: "REDIRECT"},
		{Name: "ISTIO_META_MESH_ID", Value: cfg.MeshID},
		{Name: "ISTIO_META_NETWORK", Value: cfg.Network},
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: workload},
		{Name: "ISTIO_META_OWNER", Value: owner},
	}
}

func appEnv(p *corev1.Pod) []corev1.EnvVar {
	type port struct {
		Name          string `json:"name,omitempty"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol,omitempty"`
	}
	ports, apps := []port{}, []string{}
	for _, c := range p.Spec.Containers {
		apps = append(apps, c.Name)
		for _, cp := range c.Ports {
			ports = append(ports, port{cp.Name, cp.ContainerPort, string(cp.Protocol)})
		}
	}
	b, _ := json.Marshal(ports) // strings and numbers only: cannot fail
	env := []corev1.EnvVar{
		{Name: "ISTIO_META_POD_PORTS", Value: string(b)},
		{Name: "ISTIO_META_APP_CONTAINERS", Value: strings.Join(apps, ",")},
	}
	// The sidecar's own annotations are about to take the place of these.
	if a := p.Annotations; merged(a) && a["prometheus.io/scrape"] != "" {
		b, _ := json.Marshal(map[string]string{ // strings only: cannot fail
			"scrape": a["prometheus.io/scrape"], "path": a["prometheus.io/path"], "port": a["prometheus.io/port"],
		})
		env = append(env, corev1.EnvVar{Name: "ISTIO_PROMETHEUS_ANNOTATIONS", Value: string(b)})
	}
	return env
}

// ProxyMounts is where a proxy finds ProxyVolumes.
func ProxyMounts() []corev1.VolumeMount {
	return []corev1.VolumeMount{
		{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio", ReadOnly: true},
		{Name: "istio-token", MountPath: "/var/run/secrets/tokens", ReadOnly: true},
		{Name: "istio-podinfo", MountPath: "/etc/istio/pod", ReadOnly: true},
	}
}

// ProxyVolumes hold what a proxy needs to prove who it is and to know whom to trust.
func ProxyVolumes() []corev1.Volume {
	expiry := int64(43200)
	return []corev1.Volume{
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
			ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: &expiry, Path: "istio-token"},
		}}}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"},
		}}},
		{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels"}},
			{Path: "annotations", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.annotations"}},
		}}}},
	}
}

// workload is the name of what makes the pod.
func workload(p *corev1.Pod) string {
	kind, name := controller(p)
	if hash := p.Labels["pod-template-hash"]; kind == "ReplicaSet" && hash != "" {
		return strings.TrimSuffix(name, "-"+hash)
	}
	return name
}

func controller(p *corev1.Pod) (kind, name string) {
	if ref := metav1.GetControllerOf(p); ref != nil {
		return ref.Kind, ref.Name
	}
	if p.Name != "" {
		return "Pod", p.Name
	}
	return "Pod", strings.TrimSuffix(p.GenerateName, "-")
}

// owner is Istio's path of the object that makes the pod.
func owner(p *corev1.Pod, namespace, workload string) string {
	path := "kubernetes://apis/apps/v1/namespaces/" + namespace + "/"
	kind, name := controller(p)
	switch kind {
	case "ReplicaSet":
		return path + "deployments/" + workload
	case "StatefulSet":
		return path + "statefulsets/" + name
	case "DaemonSet":
		return path + "daemonsets/" + name
	case "Job":
		return "kubernetes://apis/batch/v1/namespaces/" + namespace + "/jobs/" + name
	}
	return "kubernetes://apis/v1/namespaces/" + namespace + "/pods/" + name
}
