package operator

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/objects"
)

// translation gathers problems on the way from an object to options.
type translation struct{ problems []objects.Problem }

func (t *translation) refuse(field, message, fix string) {
	t.problems = append(t.problems, objects.Problem{Severity: objects.Error, Field: field, Message: message, Fix: fix})
}

func (t *translation) warn(field, message, fix string) {
	t.problems = append(t.problems, objects.Problem{Severity: objects.Warning, Field: field, Message: message, Fix: fix})
}

// translate turns an object into what is installed. It is pure.
func translate(o IstioOperator) (install.Options, []objects.Problem) {
	t := &translation{}
	s, g := o.Spec, o.Spec.Values.Global
	out := install.Options{
		Owner:    install.Owner{Namespace: cmp.Or(o.Metadata.Namespace, "istio-system"), Name: cmp.Or(o.Metadata.Name, unnamed(s.Revision))},
		Profile:  cmp.Or(s.Profile, "default"),
		Revision: cmp.Or(s.Revision, "default"),
		Hub:      cmp.Or(s.Hub, g.Hub), Tag: cmp.Or(s.Tag, g.Tag),
		Namespace: cmp.Or(s.Namespace, g.IstioNamespace, "istio-system"),
		ClusterID: g.MultiCluster.ClusterName, Network: g.Network,
		MeshID:             cmp.Or(g.MeshID, s.MeshConfig.DefaultConfig.MeshID),
		RemotePilotAddress: g.RemotePilotAddress,
		TrustDomain:        s.MeshConfig.TrustDomain,
		AccessLogFile:      s.MeshConfig.AccessLogFile,
		DiscoveryAddress:   s.MeshConfig.DefaultConfig.DiscoveryAddress,
	}
	if !slices.Contains(install.Profiles(), out.Profile) {
		fix := "use one of " + strings.Join(install.Profiles(), ", ")
		if n := objects.Nearest(out.Profile, install.Profiles()); n != "" {
			fix = fmt.Sprintf("did you mean %q?", n)
		}
		t.refuse("spec.profile", fmt.Sprintf("there is no profile %q", out.Profile), fix)
	}
	if !install.IsName(out.Revision) {
		t.refuse("spec.revision", fmt.Sprintf("%q is not a DNS label", out.Revision), "write 1.20.1 as 1-20-1")
	}
	if theirs := istiosOwn(out.Hub); theirs {
		t.warn("spec.hub", out.Hub+" holds Istio's images, which are not this mesh's", "the images of this product are used, with its own tag")
		out.Hub, out.Tag = "", ""
	}
	t.injectionPath("spec.values.istiodRemote.injectionPath", s.Values.IstiodRemote.InjectionPath, &out)
	if out.Profile == "remote" {
		t.remote(out)
	}
	t.meshConfig(s.MeshConfig, out.Namespace)
	t.components(s.Components, &out)
	t.elsewhere(s, out.Profile)
	return out, t.problems
}

// unnamed is what an object of a file is called that has no name, as in Istio.
func unnamed(revision string) string {
	if revision == "" {
		return "installed-state"
	}
	return "installed-state-" + revision
}

// injectionPath takes from the path of a remote cluster's injector what that says of the cluster.
func (t *translation) injectionPath(at, path string, out *install.Options) {
	if path == "" {
		return
	}
	if out.Profile != "remote" {
		t.warn(at, "has no effect with profile "+out.Profile, "it is for profile remote")
		return
	}
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(parts)%2 == 0 || parts[0] != "inject" {
		t.refuse(at, fmt.Sprintf("%q is no path of an injector", path), "write /inject/cluster/NAME/net/NETWORK")
		return
	}
	for i := 1; i < len(parts); i += 2 {
		field, from := &out.ClusterID, "spec.values.global.multiCluster.clusterName"
		switch parts[i] {
		case "cluster":
		case "net":
			field, from = &out.Network, "spec.values.global.network"
		default:
			t.refuse(at, fmt.Sprintf("%q in %s is not known", parts[i], path), "write /inject/cluster/NAME/net/NETWORK")
			continue
		}
		value := strings.ReplaceAll(parts[i+1], "--slash--", "/")
		if *field != "" && *field != value {
			t.refuse(at, fmt.Sprintf("says %q, and %s %q", value, from, *field), "say it once")
			continue
		}
		*field = value
	}
}

// remote checks what a cluster without a control plane has to say of itself.
func (t *translation) remote(o install.Options) {
	const at = "spec.values.global."
	if net.ParseIP(o.RemotePilotAddress) == nil {
		t.refuse(at+"remotePilotAddress", fmt.Sprintf("%q is not an IP address", o.RemotePilotAddress), "give that of the primary's east-west gateway")
	}
	if o.ClusterID == "" {
		t.warn(at+"multiCluster.clusterName", "is not set, so the cluster is "+o.Default().ClusterID+" to its primary", "say the name that its remote secret has")
	}
}

// elsewhere warns of settings that only a control plane obeys, where the profile installs none, and the other way round.
func (t *translation) elsewhere(s Spec, profile string) {
	if profile != "remote" && s.Values.Global.RemotePilotAddress != "" {
		t.warn("spec.values.global.remotePilotAddress", "has no effect with profile "+profile, "it is for profile remote")
	}
	if profile != "remote" && profile != "empty" {
		return
	}
	for _, x := range []struct {
		field string
		set   bool
	}{
		{"meshConfig.accessLogFile", s.MeshConfig.AccessLogFile != nil},
		{"components.pilot.k8s", !reflect.ValueOf(s.Components.Pilot.K8s).IsZero()},
		{"components.pilot.enabled", s.Components.Pilot.Enabled != nil && *s.Components.Pilot.Enabled},
	} {
		if x.set {
			t.warn("spec."+x.field, fmt.Sprintf("has no effect with profile %s: it installs no control plane", profile), "say it where the control plane is installed")
		}
	}
}

// istiosOwn tells whether a registry is one that Istio's releases are pulled from.
func istiosOwn(hub string) bool {
	for _, prefix := range []string{"docker.io/istio", "gcr.io/istio", "istio"} {
		if hub == prefix || strings.HasPrefix(hub, prefix+"-") || strings.HasPrefix(hub, prefix+"/") {
			return true
		}
	}
	return false
}

func (t *translation) meshConfig(m MeshConfig, namespace string) {
	const at = "spec.meshConfig."
	if e := m.AccessLogEncoding; e != "" && e != "TEXT" {
		t.refuse(at+"accessLogEncoding", fmt.Sprintf("%q is not supported", e), "use TEXT")
	}
	if m.RootNamespace != "" && m.RootNamespace != namespace {
		t.refuse(at+"rootNamespace", "must be the control plane's namespace, "+namespace, "leave it out")
	}
	if m.EnableAutoMtls != nil && !*m.EnableAutoMtls {
		t.refuse(at+"enableAutoMtls", "false is not supported", "leave it out; a DestinationRule turns TLS off for a host")
	}
	if m.EnablePrometheusMerge != nil && !*m.EnablePrometheusMerge {
		t.warn(at+"enablePrometheusMerge", "false has no effect", "metrics of proxy and application are always merged at port 15020")
	}
	if p := m.OutboundTrafficPolicy; p != nil && p.Mode != "" && p.Mode != "ALLOW_ANY" {
		t.refuse(at+"outboundTrafficPolicy.mode", fmt.Sprintf("%q is not supported", p.Mode), "use ALLOW_ANY")
	}
}

func (t *translation) components(c Components, out *install.Options) {
	const at = "spec.components."
	if c.Base.Enabled != nil && !*c.Base.Enabled {
		t.warn(at+"base.enabled", "false has no effect", "the definitions are shared, and needed by every part")
	}
	for _, a := range []struct {
		name string
		Absent
	}{{"cni", c.CNI}, {"ztunnel", c.Ztunnel}, {"istiodRemote", c.IstiodRemote}} {
		if a.Enabled != nil && *a.Enabled {
			t.refuse(at+a.name, "is not part of this mesh", "leave it out")
		}
	}
	if ns := c.Pilot.Namespace; ns != "" && ns != out.Namespace {
		t.refuse(at+"pilot.namespace", "differs from the control plane's namespace "+out.Namespace, "use spec.namespace")
	}
	out.Pilot = t.workload(at+"pilot.k8s", c.Pilot.K8s)
	if c.Pilot.K8s.Service != nil || len(c.Pilot.K8s.ServiceAnnotations) > 0 {
		t.refuse(at+"pilot.k8s.service", "is not supported", "leave it out; the control plane's Service has a fixed form")
	}
	for i, e := range c.Pilot.K8s.Env {
		t.warn(fmt.Sprintf(at+"pilot.k8s.env[%d]", i), e.Name+" is set and has no effect", "this control plane has no settings in its environment")
	}
	ingress, egress := byProfile(out.Profile)
	// What a profile says of a gateway holds until the object says otherwise.
	gateways := t.gateways(at+"ingressGateways", c.IngressGateways, ingress, install.Gateway{Name: "istio-ingressgateway"})
	gateways = append(gateways, t.gateways(at+"egressGateways", c.EgressGateways, egress, install.Gateway{Name: "istio-egressgateway", Egress: true})...)
	out.Gateways = gateways
	if p := c.Pilot.Enabled; p != nil {
		switch has := out.Profile != "empty" && out.Profile != "remote"; {
		case *p && !has && out.Profile == "empty":
			out.Profile = "minimal"
		case !*p && has:
			out.Profile = "empty"
		}
	}
}

// byProfile tells which of the two usual gateways a profile has.
func byProfile(profile string) (ingress, egress bool) {
	switch profile {
	case "default", "preview":
		return true, false
	case "demo":
		return true, true
	}
	return false, false
}

// gateways merges a list with the profile's gateway of that kind, by name.
func (t *translation) gateways(at string, list []Gateway, usual bool, own install.Gateway) []install.Gateway {
	out := []install.Gateway{}
	named := false
	for i, g := range list {
		here := fmt.Sprintf("%s[%d]", at, i)
		if g.Name == "" {
			t.refuse(here+".name", "is missing", "give the gateway a name, such as "+own.Name)
			continue
		}
		named = named || g.Name == own.Name
		enabled := usual && g.Name == own.Name
		switch {
		case g.Enabled != nil:
			enabled = *g.Enabled
		case !enabled:
			t.warn(here+".enabled", "is not set, so gateway "+g.Name+" is not installed", "set enabled: true")
		}
		w := t.workload(here+".k8s", g.K8s)
		if g.K8s.Service != nil {
			t.service(here+".k8s.service", *g.K8s.Service)
		}
		if !enabled {
			continue
		}
		x := install.Gateway{
			Name: g.Name, Namespace: g.Namespace, Egress: own.Egress, Labels: maps.Clone(g.Label),
			ServiceAnnotations: g.K8s.ServiceAnnotations, Workload: w,
		}
		// Labels of the usual gateway add to what Gateway objects select it by.
		if x.Labels != nil && x.Labels["istio"] == "" && g.Name == own.Name {
			x.Labels["istio"] = strings.TrimPrefix(own.Name, "istio-")
		}
		if s := g.K8s.Service; s != nil {
			x.Service = *s
		}
		out = append(out, x)
	}
	if usual && !named {
		out = append(out, own)
	}
	return out
}

func (t *translation) service(at string, s corev1.ServiceSpec) {
	if len(s.Selector) > 0 {
		t.refuse(at+".selector", "is not supported", "leave it out; the Service selects the gateway's own pods")
	}
	for i, p := range s.Ports {
		here := fmt.Sprintf("%s.ports[%d]", at, i)
		if p.Port < 1 || p.Port > 65535 {
			t.refuse(here+".port", fmt.Sprintf("%d is not a port", p.Port), "use 1 to 65535")
		}
		if p.NodePort != 0 && s.Type == corev1.ServiceTypeClusterIP {
			t.refuse(here+".nodePort", "needs a Service of type NodePort or LoadBalancer", "set type, or leave it out")
		}
		if p.TargetPort.Type == intstr.String {
			t.refuse(here+".targetPort", "a name is not supported", "use a number")
		}
		if p.Name == "" && len(s.Ports) > 1 {
			t.refuse(here+".name", "is missing", "ports of a Service with several need names")
		}
	}
}

func (t *translation) workload(at string, k K8s) install.Workload {
	w := install.Workload{
		Replicas: k.ReplicaCount, Resources: k.Resources, Env: k.Env, NodeSelector: k.NodeSelector, Affinity: k.Affinity,
		Tolerations: k.Tolerations, Annotations: k.PodAnnotations, PriorityClass: k.PriorityClassName,
		PullPolicy: corev1.PullPolicy(k.ImagePullPolicy), Disruption: k.PodDisruptionBudget,
	}
	if p := k.ImagePullPolicy; p != "" && !slices.Contains([]string{"Always", "IfNotPresent", "Never"}, p) {
		t.refuse(at+".imagePullPolicy", fmt.Sprintf("%q is none of its values", p), "use Always, IfNotPresent or Never")
	}
	if r := k.ReplicaCount; r != nil && *r < 1 {
		t.refuse(at+".replicaCount", "must be 1 or more", "leave the component out with enabled: false")
	}
	least := int32(1)
	if k.ReplicaCount != nil {
		least = *k.ReplicaCount
	}
	if h := k.HpaSpec; h != nil {
		w.Autoscale = t.autoscaler(at+".hpaSpec", *h)
		if h.MinReplicas != nil {
			least = *h.MinReplicas
		}
	}
	if b := k.PodDisruptionBudget; b != nil {
		if b.Selector != nil {
			t.refuse(at+".podDisruptionBudget.selector", "is not supported", "leave it out; it is the component's own")
		}
		if m := b.MinAvailable; m != nil && (m.Type == intstr.Int && m.IntVal >= least || m.Type == intstr.String && m.StrVal == "100%") {
			t.warn(at+".podDisruptionBudget.minAvailable", fmt.Sprintf("%s of %d pods may not leave their node: draining that node waits for ever", m.String(), least), "ask for more pods, or for fewer available")
		}
	}
	return w
}

func (t *translation) autoscaler(at string, h HPASpec) *autoscalingv2.HorizontalPodAutoscalerSpec {
	out := &autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: h.MinReplicas, MaxReplicas: h.MaxReplicas, Behavior: h.Behavior}
	if h.MinReplicas != nil && *h.MinReplicas < 1 {
		t.refuse(at+".minReplicas", "must be 1 or more", "")
	}
	if h.MaxReplicas < 0 || h.MinReplicas != nil && h.MaxReplicas != 0 && h.MaxReplicas < *h.MinReplicas {
		t.refuse(at+".maxReplicas", fmt.Sprintf("%d is less than minReplicas", h.MaxReplicas), "")
	}
	for i, m := range h.Metrics {
		here := fmt.Sprintf("%s.metrics[%d]", at, i)
		if m.Type != "Resource" || m.Resource == nil {
			t.refuse(here, "is no resource metric", "use type: Resource with resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}")
			continue
		}
		target := autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: m.Resource.TargetAverageUtilization}
		if m.Resource.Target != nil {
			target = *m.Resource.Target
		} else if m.Resource.TargetAverageUtilization == nil {
			t.refuse(here+".resource.target", "is missing", "add target: {type: Utilization, averageUtilization: 80}")
		}
		out.Metrics = append(out.Metrics, autoscalingv2.MetricSpec{
			Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceName(m.Resource.Name), Target: target},
		})
	}
	return out
}
