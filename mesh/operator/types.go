// Package operator reads IstioOperator objects, of files and of the API server, and carries them out: a pure translation to
// what mesh/install takes, and the operator that runs in a cluster.
package operator

import (
	"encoding/json"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The fields are those of operator/v1alpha1/operator.proto of istio.io/api 1.23. A tag mesh:"refused: FIX" marks one that
// exists there and is an error here; mesh:"ignored: WHY" marks one that changes nothing here, which is said.

// IstioOperator is an object of install.istio.io/v1alpha1.
type IstioOperator struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Spec       Spec              `json:"spec"`
	Status     json.RawMessage   `json:"status,omitempty"`
}

// Spec is what an IstioOperator asks for.
type Spec struct {
	Profile         string                     `json:"profile,omitempty"`
	Revision        string                     `json:"revision,omitempty"`
	Hub             string                     `json:"hub,omitempty"` // registry prefix of meshd and meshproxy
	Tag             string                     `json:"tag,omitempty"`
	Namespace       string                     `json:"namespace,omitempty"` // of the control plane
	MeshConfig      MeshConfig                 `json:"meshConfig,omitzero"`
	Components      Components                 `json:"components,omitzero"`
	Values          Values                     `json:"values,omitzero"`
	AddonComponents map[string]json.RawMessage `json:"addonComponents,omitempty" mesh:"ignored: add-ons are not part of the mesh; install them from their own manifests"`

	InstallPackagePath   string          `json:"installPackagePath,omitempty" mesh:"refused: leave it out; the manifests come with meshproof"`
	ResourceSuffix       string          `json:"resourceSuffix,omitempty" mesh:"refused: use spec.revision"`
	CompatibilityVersion string          `json:"compatibilityVersion,omitempty" mesh:"refused: leave it out; there is one behaviour"`
	UnvalidatedValues    json.RawMessage `json:"unvalidatedValues,omitempty" mesh:"refused: leave it out; every setting is checked"`
}

// MeshConfig is what is honoured of istio.mesh.v1alpha1.MeshConfig.
type MeshConfig struct {
	AccessLogFile         *string         `json:"accessLogFile,omitempty"`
	AccessLogEncoding     string          `json:"accessLogEncoding,omitempty"`
	TrustDomain           string          `json:"trustDomain,omitempty"`
	RootNamespace         string          `json:"rootNamespace,omitempty"`
	EnableAutoMtls        *bool           `json:"enableAutoMtls,omitempty"`
	EnablePrometheusMerge *bool           `json:"enablePrometheusMerge,omitempty"`
	OutboundTrafficPolicy *OutboundPolicy `json:"outboundTrafficPolicy,omitempty"`
	DefaultConfig         ProxyConfig     `json:"defaultConfig,omitzero"`
	EnableTracing         *bool           `json:"enableTracing,omitempty" mesh:"ignored: proxies pass trace headers on and send no spans"`
}

// OutboundPolicy says what becomes of requests to hosts that the mesh does not know.
type OutboundPolicy struct {
	Mode string `json:"mode,omitempty"`
}

// ProxyConfig is what is honoured of istio.mesh.v1alpha1.ProxyConfig.
type ProxyConfig struct {
	DiscoveryAddress                string            `json:"discoveryAddress,omitempty"`
	MeshID                          string            `json:"meshId,omitempty"`
	Tracing                         json.RawMessage   `json:"tracing,omitempty" mesh:"ignored: proxies pass trace headers on and send no spans"`
	HoldApplicationUntilProxyStarts *bool             `json:"holdApplicationUntilProxyStarts,omitempty" mesh:"ignored: sidecars are native, so applications always start after their proxy"`
	ProxyMetadata                   map[string]string `json:"proxyMetadata,omitempty" mesh:"ignored: proxies read ISTIO_META_* of their own environment alone"`
	Concurrency                     *int32            `json:"concurrency,omitempty" mesh:"ignored: a proxy uses the processors that its limits give it"`
}

// Components are the parts of the mesh.
type Components struct {
	Base            Base      `json:"base,omitzero"`
	Pilot           Component `json:"pilot,omitzero"`
	IngressGateways []Gateway `json:"ingressGateways,omitempty"`
	EgressGateways  []Gateway `json:"egressGateways,omitempty"`
	CNI             Absent    `json:"cni,omitzero"`
	Ztunnel         Absent    `json:"ztunnel,omitzero"`
	IstiodRemote    Absent    `json:"istiodRemote,omitzero"`
}

// Base are the custom resource definitions.
type Base struct {
	Enabled *bool `json:"enabled,omitempty"`
}

// Absent is a component that this mesh does not have.
type Absent struct {
	Enabled   *bool           `json:"enabled,omitempty"`
	Namespace string          `json:"namespace,omitempty"`
	K8s       json.RawMessage `json:"k8s,omitempty"`
}

// Component is the control plane.
type Component struct {
	Enabled   *bool  `json:"enabled,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	K8s       K8s    `json:"k8s,omitzero"`
}

// Gateway is a gateway.
type Gateway struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Enabled   *bool             `json:"enabled,omitempty"`
	Label     map[string]string `json:"label,omitempty"`
	K8s       K8s               `json:"k8s,omitzero"`
}

// K8s is how a component's pods run.
type K8s struct {
	Affinity            *corev1.Affinity                  `json:"affinity,omitempty"`
	Env                 []corev1.EnvVar                   `json:"env,omitempty"`
	HpaSpec             *HPASpec                          `json:"hpaSpec,omitempty"`
	ImagePullPolicy     string                            `json:"imagePullPolicy,omitempty"`
	NodeSelector        map[string]string                 `json:"nodeSelector,omitempty"`
	PodDisruptionBudget *policyv1.PodDisruptionBudgetSpec `json:"podDisruptionBudget,omitempty"`
	PodAnnotations      map[string]string                 `json:"podAnnotations,omitempty"`
	PriorityClassName   string                            `json:"priorityClassName,omitempty"`
	ReplicaCount        *int32                            `json:"replicaCount,omitempty"`
	Resources           *corev1.ResourceRequirements      `json:"resources,omitempty"`
	Service             *corev1.ServiceSpec               `json:"service,omitempty"`
	ServiceAnnotations  map[string]string                 `json:"serviceAnnotations,omitempty"`
	Tolerations         []corev1.Toleration               `json:"tolerations,omitempty"`

	Overlays        json.RawMessage `json:"overlays,omitempty" mesh:"refused: use the fields beside it; objects are not patched behind them"`
	ReadinessProbe  json.RawMessage `json:"readinessProbe,omitempty" mesh:"refused: leave it out; the component knows when it is ready"`
	Strategy        json.RawMessage `json:"strategy,omitempty" mesh:"refused: leave it out; gateways roll without taking a serving pod away"`
	SecurityContext json.RawMessage `json:"securityContext,omitempty" mesh:"refused: leave it out; components run without rights as user 1337"`
	Volumes         json.RawMessage `json:"volumes,omitempty" mesh:"refused: leave it out"`
	VolumeMounts    json.RawMessage `json:"volumeMounts,omitempty" mesh:"refused: leave it out"`
}

// HPASpec is an autoscaler, in the words of autoscaling/v2 and of v2beta1, which older files have.
type HPASpec struct {
	ScaleTargetRef json.RawMessage                                `json:"scaleTargetRef,omitempty" mesh:"ignored: it is the component's own Deployment"`
	MinReplicas    *int32                                         `json:"minReplicas,omitempty"`
	MaxReplicas    int32                                          `json:"maxReplicas,omitempty"`
	Metrics        []Metric                                       `json:"metrics,omitempty"`
	Behavior       *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
}

// Metric is a metric that an autoscaler goes by.
type Metric struct {
	Type     string          `json:"type"`
	Resource *ResourceMetric `json:"resource,omitempty"`
	Pods     json.RawMessage `json:"pods,omitempty" mesh:"refused: use type Resource"`
	Object   json.RawMessage `json:"object,omitempty" mesh:"refused: use type Resource"`
	External json.RawMessage `json:"external,omitempty" mesh:"refused: use type Resource"`
}

// ResourceMetric is use of cpu or memory.
type ResourceMetric struct {
	Name                     string                      `json:"name"`
	Target                   *autoscalingv2.MetricTarget `json:"target,omitempty"`
	TargetAverageUtilization *int32                      `json:"targetAverageUtilization,omitempty"` // v2beta1
}

// Values are what is honoured of the charts' values.
type Values struct {
	Global       Global                   `json:"global,omitzero"`
	IstiodRemote IstiodRemote             `json:"istiodRemote,omitzero"`
	Gateways     map[string]GatewayValues `json:"gateways,omitempty"`
}

// IstiodRemote are values of a cluster without a control plane of its own.
type IstiodRemote struct {
	// InjectionPath names cluster and network where global does not, as in Istio's guides: /inject/cluster/NAME/net/NETWORK.
	InjectionPath string `json:"injectionPath,omitempty"`
}

// GatewayValues are values of one gateway, by its name.
type GatewayValues struct {
	InjectionTemplate string `json:"injectionTemplate,omitempty" mesh:"ignored: a gateway's pods are made whole, not injected"`
}

// Global are values of all charts.
type Global struct {
	MeshID             string       `json:"meshID,omitempty"`
	Network            string       `json:"network,omitempty"`
	MultiCluster       MultiCluster `json:"multiCluster,omitzero"`
	RemotePilotAddress string       `json:"remotePilotAddress,omitempty"`
	IstioNamespace     string       `json:"istioNamespace,omitempty"`
	Hub                string       `json:"hub,omitempty"`
	Tag                string       `json:"tag,omitempty"`
	ExternalIstiod     *bool        `json:"externalIstiod,omitempty" mesh:"ignored: a control plane serves other clusters wherever it is exposed to them"`
}

// MultiCluster names the cluster in its mesh.
type MultiCluster struct {
	ClusterName string `json:"clusterName,omitempty"`
	Enabled     *bool  `json:"enabled,omitempty" mesh:"ignored: remote clusters are those whose secrets are there"`
}
