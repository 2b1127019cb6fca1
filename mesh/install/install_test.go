package install

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestManifests(t *testing.T) {
	for name, o := range map[string]Options{
		"default":  {Tag: "0.1.0"},
		"revision": {Tag: "0.2.0", Revision: "1-20-1", Namespace: "mesh-system", ClusterID: "east", TrustDomain: "east.example"},
		"shaped":   shaped(),
		"remote": {
			Tag: "0.1.0", Profile: "remote", ClusterID: "remote", MeshID: "mesh1", Network: "network2", RemotePilotAddress: "10.64.0.1",
			Gateways: []Gateway{EastWest("network2")},
		},
		"minimal": {Tag: "0.1.0", Profile: "minimal", AccessLogFile: new("")},
	} {
		t.Run(name, func(t *testing.T) {
			o = o.Default()
			if err := o.validate(); err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, obj := range slices.Concat([]runtime.Object{rootNamespace(o)}, controlPlane(o), gateways(o)) {
				u, err := toUnstructured(obj)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := kinds[u.GetKind()]; !ok {
					t.Errorf("kind %s cannot be applied", u.GetKind())
				}
				text, err := yaml.Marshal(u.Object)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString("---\n" + string(text))
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// shaped has every setting of a component.
func shaped() Options {
	w := Workload{
		Resources:    new(resources("100m", "128Mi", "256Mi")),
		Env:          []corev1.EnvVar{{Name: "POD_NAME", Value: "replaced"}, {Name: "EXTRA", Value: "added"}},
		NodeSelector: map[string]string{"role": "mesh"},
		Tolerations:  []corev1.Toleration{{Key: "mesh", Operator: corev1.TolerationOpExists}},
		Annotations:  map[string]string{"note": "pilot"},
		Autoscale:    &autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: new(int32(2)), MaxReplicas: 10},
		Disruption:   &policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(1))},
	}
	return Options{
		Tag: "0.3.0", Revision: "1-9-1", Owner: Owner{Namespace: "istio-system", Name: "controlplane"}, Network: "network1", MeshID: "mesh1", Pilot: w,
		Gateways: []Gateway{
			{Name: "team-gateway", Namespace: "team", Labels: map[string]string{"istio": "team"}, Env: map[string]string{"ISTIO_META_ROUTER_MODE": "sni-dnat"}, Service: corev1.ServiceSpec{
				Type: corev1.ServiceTypeNodePort, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
				Ports: []corev1.ServicePort{{Name: "http2", Port: 80, NodePort: 31080}, {Name: "tls", Port: 15443}},
			}, Workload: Workload{Replicas: new(int32(3))}},
			{Egress: true},
		},
	}
}

func TestAutoscalerHasRoomForItsMinimum(t *testing.T) {
	o := Options{Tag: "0.1.0", Pilot: Workload{Autoscale: &autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: new(int32(7))}}}.Default()
	for _, obj := range controlPlane(o) {
		if h, ok := obj.(*autoscalingv2.HorizontalPodAutoscaler); ok {
			if *h.Spec.MinReplicas != 7 || h.Spec.MaxReplicas != 7 || h.Spec.ScaleTargetRef.Name != "istiod" {
				t.Errorf("autoscaler %+v", h.Spec)
			}
			return
		}
	}
	t.Error("no autoscaler")
}

func TestProfiles(t *testing.T) {
	for _, c := range []struct {
		profile  string
		control  bool
		gateways []string
	}{
		{"default", true, []string{"istio-ingressgateway"}},
		{"preview", true, []string{"istio-ingressgateway"}},
		{"demo", true, []string{"istio-ingressgateway", "istio-egressgateway"}},
		{"minimal", true, nil},
		{"empty", false, nil},
		{"remote", false, nil},
	} {
		o := Options{Tag: "0.1.0", Profile: c.profile, RemotePilotAddress: "10.64.0.1"}.Default()
		if err := o.validate(); err != nil {
			t.Errorf("%s: %v", c.profile, err)
		}
		var names []string
		for _, g := range o.Gateways {
			names = append(names, g.Name)
		}
		got := slices.ContainsFunc(controlPlane(o), func(obj runtime.Object) bool {
			d, ok := obj.(*appsv1.Deployment)
			return ok && d.Name == "istiod"
		})
		if got != c.control || !slices.Equal(names, c.gateways) {
			t.Errorf("%s: control plane %v, gateways %v; want %v, %v", c.profile, got, names, c.control, c.gateways)
		}
	}
}

// TestInherit: what somebody installs without saying which cluster it is keeps being that cluster.
func TestInherit(t *testing.T) {
	there := Options{Tag: "x", ClusterID: "control", MeshID: "mesh1", Network: "network1", TrustDomain: "example.org"}.Default()
	var istiod *appsv1.Deployment
	for _, obj := range controlPlane(there) {
		if d, ok := obj.(*appsv1.Deployment); ok {
			istiod = d
		}
	}
	got := Options{Tag: "y"}.inherit(istiod).Default()
	if got.ClusterID != "control" || got.MeshID != "mesh1" || got.Network != "network1" || got.TrustDomain != "example.org" {
		t.Errorf("%+v", got)
	}
	if got := (Options{ClusterID: "other", Network: "network2"}).inherit(istiod); got.ClusterID != "other" || got.Network != "network2" || got.MeshID != "mesh1" {
		t.Errorf("what was asked for is gone: %+v", got)
	}
}

func TestBelongs(t *testing.T) {
	for name, c := range map[string]struct {
		object string
		want   string
	}{
		"label":          {`{kind: Service, metadata: {name: x, labels: {istio.io/rev: 1-20-1}}}`, "label istio.io/rev"},
		"name":           {`{kind: ConfigMap, metadata: {name: istio-1-20-1}}`, "name"},
		"cluster role":   {`{kind: ClusterRole, metadata: {name: istiod-clusterrole-1-20-1-istio-system}}`, "name"},
		"webhook":        {`{kind: ValidatingWebhookConfiguration, metadata: {name: v}, webhooks: [{clientConfig: {service: {name: istiod-1-20-1}}}]}`, "leads to Service istiod-1-20-1"},
		"binding":        {`{kind: RoleBinding, metadata: {name: b}, subjects: [{kind: ServiceAccount, name: istiod-1-20-1}]}`, "gives rights to ServiceAccount istiod-1-20-1"},
		"operator":       {`{kind: IstioOperator, metadata: {name: cp}, spec: {revision: 1-20-1}}`, "spec.revision"},
		"history":        {`{kind: ReplicaSet, metadata: {name: istio-ingressgateway-5d, labels: {istio.io/rev: 1-20-1}, ownerReferences: [{kind: Deployment, name: istio-ingressgateway, controller: true}]}, spec: {replicas: 0}}`, ""},
		"replicas left":  {`{kind: ReplicaSet, metadata: {name: istio-ingressgateway-5d, labels: {istio.io/rev: 1-20-1}, ownerReferences: [{kind: Deployment, name: istio-ingressgateway, controller: true}]}, spec: {replicas: 1}}`, "label istio.io/rev"},
		"other revision": {`{kind: Service, metadata: {name: istiod-1-23-2, labels: {istio.io/rev: 1-23-2}}}`, ""},
		"shared":         {`{kind: ConfigMap, metadata: {name: istio-ca-root-cert}}`, ""},
	} {
		var u unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(c.object), &u.Object); err != nil {
			t.Fatal(err)
		}
		if n, ok, _ := unstructured.NestedFloat64(u.Object, "spec", "replicas"); ok {
			_ = unstructured.SetNestedField(u.Object, int64(n), "spec", "replicas")
		}
		if got := belongs(u, u.GetKind(), "1-20-1"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestDefinitionsDecode(t *testing.T) {
	list, err := definitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range list {
		if u.GetName() == "istiooperators.install.istio.io" {
			return
		}
	}
	t.Error("IstioOperator is not among them")
}

func TestOptionsNameTheField(t *testing.T) {
	err := Options{Revision: "1.20.1", Profile: "remote"}.Default().validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"tag:", `revision: "1.20.1" is not a DNS label`, `remotePilotAddress: "" is not an IP address`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestByName(t *testing.T) {
	for _, d := range Drivers() {
		if got, err := ByName(d.Name()); err != nil || got != d {
			t.Errorf("%s: %v, %v", d.Name(), got, err)
		}
	}
	if _, err := ByName("istoi"); err == nil || !strings.Contains(err.Error(), "bundled") {
		t.Errorf("unknown mesh: %v does not list what there is", err)
	}
}
