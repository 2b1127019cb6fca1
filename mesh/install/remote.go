package install

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/meshproof/meshproof/mesh/ca"
	"github.com/meshproof/meshproof/mesh/multicluster"
)

// Names of Istio's: samples/multicluster and manifests/charts/base of istio/istio.
const (
	EastWestName = "istio-eastwestgateway"
	networkLabel = "topology.istio.io/network"
	readerRole   = "istio-reader-clusterrole"
	remoteRole   = "istiod-remote-clusterrole"

	remoteComponent = "IstiodRemote"
)

// ExposeControlPlane leads 15012 and 15017 of an east-west gateway to the control plane, for remote clusters.
//
//go:embed expose-istiod.yaml
var ExposeControlPlane []byte

// ExposeServices makes every service of the mesh callable through an east-west gateway, by mutual TLS and SNI.
//
//go:embed expose-services.yaml
var ExposeServices []byte

// EastWest is the gateway by which other clusters reach a network's services and, where it is exposed, the control plane.
func EastWest(network string) Gateway {
	return Gateway{
		Name:   EastWestName,
		Labels: map[string]string{"istio": "eastwestgateway", "app": EastWestName, networkLabel: network},
		Env:    map[string]string{"ISTIO_META_ROUTER_MODE": "sni-dnat", "ISTIO_META_REQUESTED_NETWORK_VIEW": network},
		Service: corev1.ServiceSpec{
			Type:  corev1.ServiceTypeLoadBalancer,
			Ports: []corev1.ServicePort{port("status-port", 15021, 15021), port("tls", 15443, 15443), port("tls-istiod", 15012, 15012), port("tls-webhook", 15017, 15017)},
		},
	}
}

// rootNamespace is the mesh's own namespace, with what it says of its cluster.
func rootNamespace(o Options) *corev1.Namespace {
	ns := namespace(o.Namespace)
	if o.Network != "" {
		ns.Labels = map[string]string{networkLabel: o.Network}
	}
	if o.Profile == "remote" {
		// Its primary may write there what proxies and the API server trust.
		ns.Annotations = map[string]string{multicluster.ControlledAnnotation: "*"}
	}
	return ns
}

// controlledBy is what a root namespace says already of who looks after its cluster: people may have named a control plane.
func (c *client) controlledBy(ctx context.Context, namespace string) (string, error) {
	ns, err := c.core.Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return ns.Annotations[multicluster.ControlledAnnotation], nil
}

// remarkNetwork tells whoever gave the mesh's namespace another network than this installation has.
func (c *client) remarkNetwork(ctx context.Context, o Options) error {
	ns, err := c.core.Namespaces().Get(ctx, o.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", o.Namespace, err)
	}
	if was := ns.Labels[networkLabel]; was != "" && o.Network != "" && was != o.Network {
		o.Remark("network", fmt.Sprintf("namespace %s was labelled %s=%s; it is %s now, as the installation says", o.Namespace, networkLabel, was, o.Network))
	}
	return nil
}

// remote lists the objects of a cluster without a control plane: a Service that leads to the primary's, the injector, and rights
// for the primary.
func remote(o Options) []runtime.Object {
	role := meta(o, remoteRole+suffix(o.Revision)+"-"+o.Namespace, remoteComponent, false, "app", "istiod")
	service := meta(o, istiod(o), remoteComponent, true, "app", "istiod", "istio", "pilot")
	hook := injector(o)
	path := "/inject/cluster/" + strings.ReplaceAll(o.ClusterID, "/", "--slash--")
	if o.Network != "" {
		path += "/net/" + strings.ReplaceAll(o.Network, "/", "--slash--")
	}
	for i := range hook.Webhooks {
		hook.Webhooks[i].ClientConfig.Service.Path = &path
	}
	return append(reader(o),
		&rbacv1.ClusterRole{ObjectMeta: role, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch", "create", "update", "patch"}},
			{APIGroups: []string{admissionv1.GroupName}, Resources: []string{"mutatingwebhookconfigurations"}, Verbs: []string{"get", "list", "watch", "update", "patch"}},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: role, Subjects: readerSubject(o), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name}},
		&corev1.Service{ObjectMeta: service, Spec: corev1.ServiceSpec{
			Ports: []corev1.ServicePort{port("https-dns", 15012, 15012), port("https-webhook", 443, 15017)},
		}},
		remoteEndpoints(o),
		hook,
	)
}

// remoteEndpoints are where the Service of the control plane leads: the primary's east-west gateway.
func remoteEndpoints(o Options) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if ip := net.ParseIP(o.RemotePilotAddress); ip != nil && ip.To4() == nil {
		family = discoveryv1.AddressTypeIPv6
	}
	to := func(name string, number int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: new(corev1.ProtocolTCP)}
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: meta(o, istiod(o)+"-primary", remoteComponent, true,
			discoveryv1.LabelServiceName, istiod(o), discoveryv1.LabelManagedBy, owner),
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{o.RemotePilotAddress}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
		Ports:       []discoveryv1.EndpointPort{to("https-dns", 15012), to("https-webhook", 15017)},
	}
}

// Primary is the address of the control plane that serves a cluster with profile remote; empty for any other cluster.
func Primary(ctx context.Context, cfg *rest.Config) (string, error) {
	c, err := newClient(cfg)
	if err != nil {
		return "", err
	}
	return c.primary(ctx)
}

func (c *client) primary(ctx context.Context) (string, error) {
	list, err := c.dyn.Resource(endpointSliceResource).List(ctx, metav1.ListOptions{LabelSelector: componentLabel + "=" + remoteComponent + "," + ownerLabel + "=" + owner})
	if err != nil {
		return "", err
	}
	for _, u := range list.Items {
		s := &discoveryv1.EndpointSlice{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, s); err != nil {
			return "", err
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) > 0 {
				return e.Addresses[0], nil
			}
		}
	}
	return "", nil
}

// reader lists the account that the control planes of other clusters read this one with. It belongs to no revision.
func reader(o Options) []runtime.Object {
	read := []string{"get", "list", "watch"}
	m := func(name string, namespaced bool) metav1.ObjectMeta {
		out := metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "istio-reader", ownerLabel: owner}}
		if namespaced {
			out.Namespace = o.Namespace
		}
		return out
	}
	role := m(readerRole+"-"+o.Namespace, false)
	token := m(multicluster.ReaderToken, true)
	token.Annotations = map[string]string{corev1.ServiceAccountNameKey: multicluster.ReaderAccount}
	return []runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: m(multicluster.ReaderAccount, true)},
		&rbacv1.ClusterRole{ObjectMeta: role, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "services", "endpoints", "namespaces", "nodes"}, Verbs: read},
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: read},
			{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
			{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: role, Subjects: readerSubject(o), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name}},
		&corev1.Secret{ObjectMeta: token, Type: corev1.SecretTypeServiceAccountToken},
	}
}

func readerSubject(o Options) []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: "ServiceAccount", Name: multicluster.ReaderAccount, Namespace: o.Namespace}}
}

// RemoteSecret makes the Secret by which control planes of other clusters find this one, under the name o.ClusterID, and the
// account that it speaks for where that is missing. server is the URL of this cluster's API server as those control planes' pods
// reach it; empty means the address that the API server itself advertises.
func RemoteSecret(ctx context.Context, cfg *rest.Config, server string, opts Options) (*corev1.Secret, error) {
	o := opts.Default()
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.ensureNamespace(ctx, o.Namespace); err != nil {
		return nil, err
	}
	if err := c.applyAll(ctx, reader(o)); err != nil {
		return nil, fmt.Errorf("remote secret of %s: %w", o.ClusterID, err)
	}
	if server == "" {
		if server, err = c.apiServer(ctx); err != nil {
			return nil, fmt.Errorf("remote secret of %s: %w", o.ClusterID, err)
		}
	}
	var authority []byte
	var token string
	err = poll(ctx, func() (bool, error) {
		s, err := c.core.Secrets(o.Namespace).Get(ctx, multicluster.ReaderToken, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		authority, token = s.Data[corev1.ServiceAccountRootCAKey], string(s.Data[corev1.ServiceAccountTokenKey])
		return len(authority) > 0 && token != "", nil
	})
	if err != nil {
		return nil, fmt.Errorf("remote secret of %s: token in Secret %s/%s: %w", o.ClusterID, o.Namespace, multicluster.ReaderToken, err)
	}
	return multicluster.Secret(o.ClusterID, o.Namespace, server, authority, token)
}

// apiServer is the address that the API server advertises to its own cluster.
func (c *client) apiServer(ctx context.Context) (string, error) {
	list, err := c.dyn.Resource(endpointSliceResource).Namespace(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return "", fmt.Errorf("address of the API server: %w", err)
	}
	for _, u := range list.Items {
		s := &discoveryv1.EndpointSlice{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, s); err != nil {
			return "", fmt.Errorf("address of the API server: %w", err)
		}
		for _, e := range s.Endpoints {
			for _, p := range s.Ports {
				if len(e.Addresses) > 0 && p.Port != nil {
					return "https://" + net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))), nil
				}
			}
		}
	}
	return "", errors.New("the API server advertises no address (Service default/kubernetes has no endpoints); give one with --server")
}

// PlugCA gives a cluster the CA that its control plane is to sign with, before or after that is installed.
func PlugCA(ctx context.Context, cfg *rest.Config, namespace string, files ca.Files) error {
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	if err := c.ensureNamespace(ctx, namespace); err != nil {
		return err
	}
	return c.applyTyped(ctx, files.Secret(namespace))
}

// AddRemote gives a control plane the Secret of another cluster.
func AddRemote(ctx context.Context, cfg *rest.Config, secret *corev1.Secret) error {
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	if err := c.ensureNamespace(ctx, secret.Namespace); err != nil {
		return err
	}
	return c.applyTyped(ctx, secret)
}

// ensureNamespace makes a namespace unless it is there; what an installation says of it stays.
func (c *client) ensureNamespace(ctx context.Context, name string) error {
	_, err := c.core.Namespaces().Create(ctx, namespace(name), metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

// takenIn waits until the primary looks after the cluster, no longer than o has patience; it tells whether that was so. In Istio's
// newer guides the primary hears of a cluster after this.
func (c *client) takenIn(ctx context.Context, o Options) (bool, error) {
	if o.Patience == 0 || len(o.Gateways) > 0 {
		return true, c.looked(ctx, o)
	}
	patient, cancel := context.WithTimeout(ctx, o.Patience)
	defer cancel()
	err := c.looked(patient, o)
	if err != nil && patient.Err() != nil && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

// looked waits until the control plane of another cluster looks after this one.
func (c *client) looked(ctx context.Context, o Options) error {
	if err := c.until(ctx, webhookResource, "", webhookName(o), "trusted (caBundle set by the primary's control plane)", trusted); err != nil {
		return fmt.Errorf("%w\nno control plane has taken the cluster in: give its primary the remote secret of %s, and see that %s:15012 can be reached",
			err, o.ClusterID, o.RemotePilotAddress)
	}
	return c.until(ctx, configMapResource, o.Namespace, rootCertMap, "written by the primary's control plane", func(*unstructured.Unstructured) (bool, string) {
		return true, ""
	})
}
