// Package multicluster finds the other clusters of a mesh: Secrets in the control plane's namespace, each with the kubeconfig of a
// cluster, as istioctl makes them. It says which of them can be reached, and runs what has to be done for each.
package multicluster

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Names of istioctl create-remote-secret: pkg/kube/multicluster and istioctl/pkg/multicluster of istio/istio.
const (
	SecretLabel       = "istio/multiCluster"
	SecretPrefix      = "istio-remote-secret-"
	ClusterAnnotation = "networking.istio.io/cluster"
	// ReaderAccount is the service account of a remote cluster that its kubeconfig speaks for, ReaderToken the Secret with its token.
	ReaderAccount = "istio-reader-service-account"
	ReaderToken   = ReaderAccount + "-istio-remote-secret-token"
	// ControlledAnnotation of a remote cluster's root namespace lists the clusters whose control planes look after it: they write
	// the roots into its namespaces and into its injector's configuration. "*" is any.
	ControlledAnnotation = "topology.istio.io/controlPlaneClusters"
)

// Secret makes the Secret by which a control plane finds the cluster of that name: server is the URL of its API server as the
// control plane's pods reach it, ca the PEM that vouches for it, token a bearer token.
func Secret(cluster, namespace, server string, ca []byte, token string) (*corev1.Secret, error) {
	kubeconfig := api.NewConfig()
	kubeconfig.Clusters[cluster] = &api.Cluster{Server: server, CertificateAuthorityData: ca}
	kubeconfig.AuthInfos[cluster] = &api.AuthInfo{Token: token}
	kubeconfig.Contexts[cluster] = &api.Context{Cluster: cluster, AuthInfo: cluster}
	kubeconfig.CurrentContext = cluster
	data, err := clientcmd.Write(*kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig of cluster %s: %w", cluster, err)
	}
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: SecretPrefix + cluster, Namespace: namespace,
			Labels: map[string]string{SecretLabel: "true"}, Annotations: map[string]string{ClusterAnnotation: cluster},
		},
		StringData: map[string]string{cluster: string(data)},
	}, nil
}

// Timeouts of everything that goes to another cluster: the way there may be cut.
const (
	dialTimeout  = 3 * time.Second
	probeTimeout = 5 * time.Second
	probeEvery   = 2 * time.Second
)

// restConfig reads a kubeconfig of a Secret. Only what is in it may count: a kubeconfig that runs programs or reads files would
// let whoever writes Secrets do so in the control plane.
func restConfig(data []byte) (*rest.Config, error) {
	kubeconfig, err := clientcmd.Load(data)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	for name, u := range kubeconfig.AuthInfos {
		for _, bad := range []struct {
			used  bool
			field string
		}{
			{u.Exec != nil, "exec"}, {u.AuthProvider != nil, "auth-provider"}, {u.TokenFile != "", "tokenFile"},
			{u.ClientCertificate != "", "client-certificate"}, {u.ClientKey != "", "client-key"},
		} {
			if bad.used {
				return nil, fmt.Errorf("kubeconfig: users[%s].user.%s is refused: give a token or certificate data", name, bad.field)
			}
		}
	}
	for name, c := range kubeconfig.Clusters {
		if c.CertificateAuthority != "" {
			return nil, fmt.Errorf("kubeconfig: clusters[%s].cluster.certificate-authority is refused: give certificate-authority-data", name)
		}
		if c.InsecureSkipTLSVerify {
			return nil, fmt.Errorf("kubeconfig: clusters[%s].cluster.insecure-skip-tls-verify is refused: give certificate-authority-data", name)
		}
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if cfg.Host == "" {
		return nil, errors.New("kubeconfig: the cluster has no server")
	}
	return cfg, nil
}
