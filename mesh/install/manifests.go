package install

import (
	"strconv"

	admissionv1 "k8s.io/api/admissionregistration/v1"
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
	revLabel       = "istio.io/rev"
	componentLabel = "operator.istio.io/component"
	ownerLabel     = "app.kubernetes.io/managed-by"
	owner          = "meshproof"
	rootCertMap    = "istio-ca-root-cert"
	gatewayName    = "istio-ingressgateway"
	gatewayAccount = "istio-ingressgateway-service-account"
	proxyUser      = 1337
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
	for i := 0; i+1 < len(extra); i += 2 {
		m.Labels[extra[i]] = extra[i+1]
	}
	return m
}

// controlPlane lists the objects of istiod, in the order in which they are made.
func controlPlane(o Options) []runtime.Object {
	app := istiod(o)
	account := meta(o, app, "Pilot", true, "app", "istiod")
	cluster := meta(o, "istiod-clusterrole"+suffix(o.Revision)+"-"+o.Namespace, "Pilot", false, "app", "istiod")
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: app, Namespace: o.Namespace}}
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Namespace}},
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
					port("grpc-xds", 15010, 15010), port("https-dns", 15012, 15012), port("https-webhook", 443, 15017), port("http-monitoring", 15014, 15014),
				},
			},
		},
		istiodDeployment(o),
		injector(o),
	}
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
			Args: []string{
				"discovery", "--namespace=" + o.Namespace, "--revision=" + o.Revision, "--cluster-id=" + o.ClusterID,
				"--trust-domain=" + o.TrustDomain, "--proxy-image=" + o.Hub + "/meshproxy:" + o.Tag,
			},
			Env: []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace")},
			Ports: []corev1.ContainerPort{
				containerPort("http-debug", 8080), containerPort("grpc-xds", 15010), containerPort("tls-xds", 15012),
				containerPort("https-webhooks", 15017), containerPort("http-monitoring", 15014),
			},
			ReadinessProbe:  probe("/ready", 8080),
			Resources:       resources("50m", "64Mi", "1Gi"),
			SecurityContext: restricted(proxyUser),
		}},
	})
}

// gateway lists the objects of the ingress gateway.
func gateway(o Options) []runtime.Object {
	labels := map[string]string{
		"app": gatewayName, "istio": "ingressgateway", revLabel: o.Revision, "sidecar.istio.io/inject": "false",
		"service.istio.io/canonical-name": gatewayName, "service.istio.io/canonical-revision": "latest",
	}
	selector := map[string]string{"app": gatewayName, "istio": "ingressgateway"}
	m := func(name string) metav1.ObjectMeta {
		return meta(o, name, "IngressGateways", true, "app", gatewayName, "istio", "ingressgateway")
	}
	return []runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: m(gatewayAccount)},
		&corev1.Service{ObjectMeta: m(gatewayName), Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeNodePort,
			Selector: selector,
			Ports:    []corev1.ServicePort{port("status-port", 15021, 15021), port("http2", 80, 8080), port("https", 443, 8443)},
		}},
		deployment(m(gatewayName), selector, labels, corev1.PodSpec{
			ServiceAccountName: gatewayAccount,
			// Connections in flight get as long to end as a sidecar's do.
			TerminationGracePeriodSeconds: new(int64(30)),
			Containers: []corev1.Container{{
				Name:            "istio-proxy",
				Image:           o.Hub + "/meshproxy:" + o.Tag,
				ImagePullPolicy: corev1.PullIfNotPresent,
				Args:            []string{"gateway"},
				Env: []corev1.EnvVar{
					fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace"), fieldEnv("INSTANCE_IP", "status.podIP"),
					fieldEnv("HOST_IP", "status.hostIP"), fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
					{Name: "ISTIO_META_CLUSTER_ID", Value: o.ClusterID},
					{Name: "ISTIO_META_WORKLOAD_NAME", Value: gatewayName},
					{Name: "ISTIO_META_OWNER", Value: "kubernetes://apis/apps/v1/namespaces/" + o.Namespace + "/deployments/" + gatewayName},
					{Name: "ISTIO_META_MESH_ID", Value: o.TrustDomain},
					{Name: "TRUST_DOMAIN", Value: o.TrustDomain},
					{Name: "PROXY_CONFIG", Value: `{"discoveryAddress":"` + istiod(o) + "." + o.Namespace + `.svc:15012"}`},
					{Name: "CA_ADDR", Value: istiod(o) + "." + o.Namespace + ".svc:15012"},
				},
				Ports: []corev1.ContainerPort{
					containerPort("status", 15021), containerPort("http", 8080), containerPort("https", 8443), containerPort("http-envoy-prom", 15090),
				},
				ReadinessProbe:  probe("/healthz/ready", 15021),
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
		}),
	}
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

// injector is the webhook configuration, with the four selections of a default revision and two of a named one. The
// caBundle is meshd's to set; until then calls fail, and with them the creation of pods that want a sidecar.
func injector(o Options) *admissionv1.MutatingWebhookConfiguration {
	type req = metav1.LabelSelectorRequirement
	in := func(key string, values ...string) req {
		return req{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
	}
	notIn := func(key string, values ...string) req {
		return req{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values}
	}
	absent := func(key string) req { return req{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist} }
	hook := func(name string, namespace, object []req) admissionv1.MutatingWebhook {
		return admissionv1.MutatingWebhook{
			Name: name + ".sidecar-injector.istio.io",
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{
				Name: istiod(o), Namespace: o.Namespace, Path: new("/inject"), Port: new(int32(443)),
			}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: new(admissionv1.AllScopes)},
			}},
			FailurePolicy:           new(admissionv1.Fail),
			MatchPolicy:             new(admissionv1.Equivalent),
			ReinvocationPolicy:      new(admissionv1.NeverReinvocationPolicy),
			SideEffects:             new(admissionv1.SideEffectClassNone),
			TimeoutSeconds:          new(int32(10)),
			AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: namespace},
			ObjectSelector:          &metav1.LabelSelector{MatchExpressions: object},
		}
	}
	const enable, inject = "istio-injection", "sidecar.istio.io/inject"
	hooks := []admissionv1.MutatingWebhook{
		hook("rev.namespace", []req{in(revLabel, o.Revision), absent(enable)}, []req{notIn(inject, "false")}),
		hook("rev.object", []req{absent(revLabel), absent(enable)}, []req{notIn(inject, "false"), in(revLabel, o.Revision)}),
	}
	if o.Revision == "default" {
		hooks = append(hooks,
			hook("namespace", []req{in(enable, "enabled")}, []req{notIn(inject, "false")}),
			hook("object", []req{absent(enable), absent(revLabel)}, []req{in(inject, "true"), absent(revLabel)}))
	}
	return &admissionv1.MutatingWebhookConfiguration{ObjectMeta: meta(o, webhookName(o), "Pilot", false, "app", "sidecar-injector"), Webhooks: hooks}
}
