package install

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names, ports and labels are Istio's: manifests/charts/istio-control/istio-discovery and manifests/charts/gateways of istio/istio.
const (
	revLabel         = "istio.io/rev"
	componentLabel   = "operator.istio.io/component"
	owningName       = "install.operator.istio.io/owning-resource"
	owningSpace      = "install.operator.istio.io/owning-resource-namespace"
	ingressComponent = "IngressGateways" // values of componentLabel
	egressComponent  = "EgressGateways"
	ownerLabel       = "app.kubernetes.io/managed-by"
	owner            = "meshproof"
	rootCertMap      = "istio-ca-root-cert"
	gatewayName      = "istio-ingressgateway"
	egressName       = "istio-egressgateway"
	proxyUser        = 1337
)

// suffix is what a revision adds to names; the default revision adds nothing.
func suffix(rev string) string {
	if rev == "default" {
		return ""
	}
	return "-" + rev
}

func istiod(o Options) string { return "istiod" + suffix(o.Revision) }

func webhookName(o Options) string {
	name := "istio-sidecar-injector" + suffix(o.Revision)
	if o.Namespace != "istio-system" {
		name += "-" + o.Namespace
	}
	return name
}

func meta(o Options, name, component string, namespaced bool, extra ...string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: name, Labels: map[string]string{revLabel: o.Revision, componentLabel: component, ownerLabel: owner}}
	if namespaced {
		m.Namespace = o.Namespace
	}
	if o.Owner.Name != "" {
		m.Labels[owningName], m.Labels[owningSpace] = o.Owner.Name, o.Owner.Namespace
	}
	for i := 0; i+1 < len(extra); i += 2 {
		m.Labels[extra[i]] = extra[i+1]
	}
	return m
}

// controlPlane lists the objects of istiod, in the order in which they are made; none for a profile without one. Of a remote
// cluster's, they lead to its primary.
func controlPlane(o Options) []runtime.Object {
	if o.Profile == "remote" {
		return remote(o)
	}
	if !controls(o.Profile) {
		return nil
	}
	app := istiod(o)
	account := meta(o, app, "Pilot", true, "app", "istiod")
	cluster := meta(o, "istiod-clusterrole"+suffix(o.Revision)+"-"+o.Namespace, "Pilot", false, "app", "istiod")
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: app, Namespace: o.Namespace}}
	d := istiodDeployment(o)
	scaling := o.Pilot.shape(d)
	return append([]runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: account},
		&rbacv1.ClusterRole{ObjectMeta: cluster, Rules: clusterRules()},
		&rbacv1.ClusterRoleBinding{ObjectMeta: cluster, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: cluster.Name}},
		&rbacv1.Role{ObjectMeta: account, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create", "get", "list", "watch", "update", "patch", "delete"}},
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create", "get", "update", "patch"}},
		}},
		&rbacv1.RoleBinding{ObjectMeta: account, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: app}},
		&corev1.Service{
			ObjectMeta: meta(o, app, "Pilot", true, "app", "istiod", "istio", "pilot"),
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "istiod", revLabel: o.Revision},
				Ports: []corev1.ServicePort{
					port("https-dns", 15012, 15012), port("https-webhook", 443, 15017), port("http-monitoring", 15014, 15014),
				},
			},
		},
		d,
		injector(o),
	}, scaling...)
}

func clusterRules() []rbacv1.PolicyRule {
	read := []string{"get", "list", "watch"}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "services", "endpoints", "namespaces", "nodes"}, Verbs: read},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: append([]string{"create", "update", "patch", "delete"}, read...)},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		{APIGroups: []string{"networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"}, Resources: []string{"*"}, Verbs: read},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: append([]string{"update", "patch"}, read...)},
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	}
}

func port(name string, number int32, target int) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt(target), Protocol: corev1.ProtocolTCP}
}

func istiodDeployment(o Options) *appsv1.Deployment {
	labels := map[string]string{"app": "istiod", "istio": "pilot", revLabel: o.Revision, "sidecar.istio.io/inject": "false"}
	return deployment(meta(o, istiod(o), "Pilot", true, "app", "istiod", "istio", "pilot"), map[string]string{"app": "istiod", revLabel: o.Revision}, labels, corev1.PodSpec{
		ServiceAccountName: istiod(o),
		Containers: []corev1.Container{{
			Name:            "discovery",
			Image:           o.Hub + "/meshd:" + o.Tag,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Args:            discoveryArgs(o),
			Env:             []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace")},
			Ports: []corev1.ContainerPort{
				containerPort("http-debug", 8080), containerPort("tls-xds", 15012),
				containerPort("https-webhooks", 15017), containerPort("http-monitoring", 15014),
			},
			ReadinessProbe:  probe("/ready", 8080),
			Resources:       resources("50m", "64Mi", "1Gi"),
			SecurityContext: restricted(proxyUser),
		}},
	})
}

func discoveryArgs(o Options) []string {
	args := []string{
		"discovery", "--namespace=" + o.Namespace, "--revision=" + o.Revision, "--cluster-id=" + o.ClusterID,
		"--trust-domain=" + o.TrustDomain, "--mesh-id=" + o.MeshID, "--proxy-image=" + o.Hub + "/meshproxy:" + o.Tag,
		"--discovery-address=" + o.DiscoveryAddress,
	}
	if o.Network != "" {
		args = append(args, "--network="+o.Network)
	}
	if o.AccessLogFile != nil {
		args = append(args, "--access-log-file="+*o.AccessLogFile)
	}
	return args
}

func deployment(m metav1.ObjectMeta, selector, labels map[string]string, spec corev1.PodSpec) *appsv1.Deployment {
	surge, unavailable := intstr.FromString("100%"), intstr.FromString("25%")
	return &appsv1.Deployment{ObjectMeta: m, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(1)),
		Selector: &metav1.LabelSelector{MatchLabels: selector},
		Strategy: appsv1.DeploymentStrategy{
			Type:          appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
		},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{
				"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(promPort(spec)), "prometheus.io/path": promPath(spec),
			}},
			Spec: spec,
		},
	}}
}

func promPort(spec corev1.PodSpec) int {
	if spec.Containers[0].Name == "discovery" {
		return 15014
	}
	return 15090
}

func promPath(spec corev1.PodSpec) string {
	if spec.Containers[0].Name == "discovery" {
		return "/metrics"
	}
	return "/stats/prometheus"
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func containerPort(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP}
}

func probe(path string, port int) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt(port)}},
		PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 5,
	}
}

func resources(cpu, memory, limit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(limit)},
	}
}

func restricted(user int64) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: &user, RunAsGroup: &user, RunAsNonRoot: new(true), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}
