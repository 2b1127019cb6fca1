package install

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// withDefaults fills what g leaves out, as Istio's charts do.
func (g Gateway) withDefaults(o Options) Gateway {
	kind := "ingressgateway"
	if g.Egress {
		kind = "egressgateway"
	}
	g.Name = cmp.Or(g.Name, "istio-"+kind)
	g.Namespace = cmp.Or(g.Namespace, o.Namespace)
	g.Labels = maps.Clone(g.Labels)
	if len(g.Labels) == 0 {
		g.Labels = map[string]string{"istio": kind}
	}
	if g.Labels["app"] == "" {
		g.Labels["app"] = g.Name
	}
	if g.Service.Type == "" {
		g.Service.Type = corev1.ServiceTypeLoadBalancer
		if g.Egress {
			g.Service.Type = corev1.ServiceTypeClusterIP
		}
	}
	if len(g.Service.Ports) == 0 {
		g.Service.Ports = []corev1.ServicePort{port("status-port", 15021, 15021), port("http2", 80, 8080), port("https", 443, 8443)}
		if g.Egress {
			g.Service.Ports = g.Service.Ports[1:]
		}
	}
	g.Service.Ports = slices.Clone(g.Service.Ports)
	for i := range g.Service.Ports {
		p := &g.Service.Ports[i]
		p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	return g
}

func (g Gateway) component() string {
	if g.Egress {
		return egressComponent
	}
	return ingressComponent
}

func (g Gateway) account() string { return g.Name + "-service-account" }

// selector picks the pods of g alone, whatever other labels Gateway objects select it by.
func (g Gateway) selector() map[string]string {
	s := map[string]string{"app": g.Labels["app"]}
	if v, ok := g.Labels["istio"]; ok {
		s["istio"] = v
	}
	return s
}

func (g Gateway) meta(o Options, name string) metav1.ObjectMeta {
	m := meta(o, name, g.component(), true)
	m.Namespace = g.Namespace
	maps.Copy(m.Labels, g.Labels)
	return m
}

// gateways lists the objects of all gateways, in the order in which they are made.
func gateways(o Options) []runtime.Object {
	var out []runtime.Object
	for _, g := range o.Gateways {
		out = append(out, gateway(o, g)...)
	}
	return out
}

// gateway lists the objects of one gateway.
func gateway(o Options, g Gateway) []runtime.Object {
	labels := map[string]string{
		revLabel: o.Revision, "sidecar.istio.io/inject": "false",
		"service.istio.io/canonical-name": g.Name, "service.istio.io/canonical-revision": "latest",
	}
	maps.Copy(labels, g.Labels)
	service := *g.Service.DeepCopy()
	service.Selector = g.selector()
	serviceMeta := g.meta(o, g.Name)
	serviceMeta.Annotations = g.ServiceAnnotations
	pod := corev1.PodSpec{
		ServiceAccountName: g.account(),
		// Connections in flight get as long to end as a sidecar's do.
		TerminationGracePeriodSeconds: new(int64(30)),
		Containers: []corev1.Container{{
			Name:            "istio-proxy",
			Image:           o.Hub + "/meshproxy:" + o.Tag,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Args:            []string{"gateway"},
			Env:             gatewayEnv(o, g),
			Ports:           gatewayPorts(service.Ports),
			ReadinessProbe:  probe("/healthz/ready", 15021),
			// Who sends from outside has this long to learn that the pod is on its way out before it begins to drain.
			Lifecycle:       &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}},
			Resources:       resources("50m", "64Mi", "1Gi"),
			SecurityContext: restricted(proxyUser),
			VolumeMounts: []corev1.VolumeMount{
				{Name: "istio-token", MountPath: "/var/run/secrets/tokens"},
				{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio"},
				{Name: "podinfo", MountPath: "/etc/istio/pod"},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
				ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: new(int64(43200)), Path: "istio-token"},
			}}}}},
			{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootCertMap}}}},
			{Name: "podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "annotations", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations"}},
			}}}},
		},
	}
	if slices.ContainsFunc(service.Ports, func(p corev1.ServicePort) bool { return p.TargetPort.IntValue() < 1024 }) {
		// The proxy is not root. The sysctl is of the pod's own network namespace, and one of the safe ones.
		pod.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}}}
	}
	d := deployment(g.meta(o, g.Name), g.selector(), labels, pod)
	// Whoever takes the gateway over in place does not take away what serves before the new pods do.
	d.Spec.Strategy.RollingUpdate.MaxUnavailable = new(intstr.FromInt32(0))
	out := []runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: g.meta(o, g.account())},
		&corev1.Service{ObjectMeta: serviceMeta, Spec: service},
		d,
	}
	return append(out, g.Workload.shape(d)...)
}

func gatewayEnv(o Options, g Gateway) []corev1.EnvVar {
	env := []corev1.EnvVar{
		fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace"), fieldEnv("INSTANCE_IP", "status.podIP"),
		fieldEnv("HOST_IP", "status.hostIP"), fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		{Name: "ISTIO_META_CLUSTER_ID", Value: o.ClusterID},
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: g.Name},
		{Name: "ISTIO_META_OWNER", Value: "kubernetes://apis/apps/v1/namespaces/" + g.Namespace + "/deployments/" + g.Name},
		{Name: "ISTIO_META_MESH_ID", Value: o.MeshID},
		{Name: "TRUST_DOMAIN", Value: o.TrustDomain},
		{Name: "PROXY_CONFIG", Value: `{"discoveryAddress":"` + o.DiscoveryAddress + `"}`},
		{Name: "CA_ADDR", Value: o.DiscoveryAddress},
	}
	if o.Network != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_META_NETWORK", Value: o.Network})
	}
	for _, name := range slices.Sorted(maps.Keys(g.Env)) {
		env = replaceEnv(env, corev1.EnvVar{Name: name, Value: g.Env[name]})
	}
	return env
}

// gatewayPorts are the container's ports: readiness, metrics, and what the Service leads to.
func gatewayPorts(service []corev1.ServicePort) []corev1.ContainerPort {
	out := []corev1.ContainerPort{containerPort("status", 15021), containerPort("http-envoy-prom", 15090)}
	for _, p := range service {
		n := int32(p.TargetPort.IntValue())
		if n == 0 || slices.ContainsFunc(out, func(c corev1.ContainerPort) bool { return c.ContainerPort == n }) {
			continue
		}
		out = append(out, corev1.ContainerPort{ContainerPort: n, Protocol: p.Protocol})
	}
	return out
}
