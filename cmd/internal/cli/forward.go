package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/meshproof/meshproof/clusters"
)

func (a *app) forwardCommand() *cobra.Command {
	var labName, cluster string
	c := &cobra.Command{
		Use:   "forward TARGET...",
		Short: "Give 127.0.0.1 ports for the API server, the gateway or any Service",
		Long: `Forward listens on free ports of 127.0.0.1 and carries connections into the lab until it is
interrupted. A target is

  api                       the API server
  gateway                   the ingress gateway, its port 80
  SERVICE.NAMESPACE         a Service, its first port
  SERVICE.NAMESPACE:PORT    a Service, that port
  NODE:PORT                 a node, as for a Service of type NodePort; by name or address`,
		Example: "  meshproof forward gateway\n  meshproof forward api productpage.bookinfo:9080\n  meshproof forward east-1:31080 east-2:31080",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("%s: give a target: api, gateway, SERVICE.NAMESPACE[:PORT] or NODE:PORT", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: words("api", "gateway"),
		RunE: func(cmd *cobra.Command, args []string) error {
			targets := make([]forwardTarget, len(args))
			for i, arg := range args {
				var err error
				if targets[i], err = parseTarget(arg); err != nil {
					return err
				}
			}
			l, err := a.open(cmd.Context(), labName)
			if err != nil {
				return err
			}
			cl, err := pickCluster(l, cluster)
			if err != nil {
				return err
			}
			return a.forward(cmd.Context(), cl, targets)
		},
	}
	c.Flags().StringVar(&labName, "lab", "", "lab to forward into; the only one that is up if not given")
	c.Flags().StringVar(&cluster, "in", "", "cluster of the lab; its first if not given")
	_ = c.RegisterFlagCompletionFunc("lab", a.completeLabs)
	return c
}

func pickCluster(l clusters.Lab, name string) (clusters.Cluster, error) {
	var names []string
	for _, c := range l.Clusters() {
		if name == "" || c.Name() == name {
			return c, nil
		}
		names = append(names, c.Name())
	}
	return nil, usage("lab %q has no cluster %q; there are %s", l.Name(), name, strings.Join(names, ", "))
}

type forwardTarget struct {
	text               string
	service, namespace string // empty: the API server
	node               string // name or address, in place of a Service
	port               int32  // 0: the first
}

func parseTarget(text string) (forwardTarget, error) {
	switch text {
	case "api":
		return forwardTarget{text: text}, nil
	case "gateway":
		return forwardTarget{text: text, service: "istio-ingressgateway", namespace: "istio-system", port: 80}, nil
	}
	host, port, hasPort := strings.Cut(text, ":")
	t := forwardTarget{text: text}
	service, namespace, ok := strings.Cut(host, ".")
	namespace, _, _ = strings.Cut(namespace, ".") // SERVICE.NAMESPACE.svc.cluster.local means the same
	switch {
	case hasPort && host != "" && (!ok || net.ParseIP(host) != nil):
		t.node = host
	case !ok || service == "" || namespace == "":
		return t, usage("%q is not a target; write api, gateway, SERVICE.NAMESPACE[:PORT], as in productpage.bookinfo:9080, or NODE:PORT", text)
	default:
		t.service, t.namespace = service, namespace
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, usage("%q: port %q is not a number from 1 to 65535", text, port)
		}
		t.port = int32(n)
	}
	return t, nil
}

func (a *app) forward(ctx context.Context, cl clusters.Cluster, targets []forwardTarget) error {
	var open []io.Closer
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for _, t := range targets {
		addr, err := address(ctx, cl, t)
		if t.text == "gateway" && apierrors.IsNotFound(err) {
			return failed(fmt.Errorf("gateway: there is no Service %s/%s; install a mesh with: meshproof mesh install", t.namespace, t.service))
		}
		if err != nil {
			return failed(fmt.Errorf("%s: %w", t.text, err))
		}
		local, stop, err := cl.Forward(ctx, addr)
		if err != nil {
			return failed(fmt.Errorf("%s: %w", t.text, err))
		}
		open = append(open, stop)
		scheme := "http"
		if t.text == "api" {
			scheme = "https"
		}
		fmt.Fprintf(a.Out, "%-40s %s://%s\n", t.text, scheme, local)
	}
	fmt.Fprintln(a.Err, "until interrupted (Ctrl-C)")
	<-ctx.Done()
	return nil
}

// address is where a target answers, as the lab's network reaches it: a node port where there is one, else a pod.
func address(ctx context.Context, cl clusters.Cluster, t forwardTarget) (string, error) {
	cfg, err := cl.RESTConfig()
	if err != nil {
		return "", err
	}
	ips := cl.NodeIPs()
	if len(ips) == 0 {
		return "", errors.New("the cluster has no node address")
	}
	if t.text == "api" {
		u, err := url.Parse(cfg.Host)
		if err != nil {
			return "", fmt.Errorf("API server %q: %w", cfg.Host, err)
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		return net.JoinHostPort(ips[0], port), nil
	}
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return "", err
	}
	if t.node != "" {
		ip, err := nodeAddress(ctx, k, t.node)
		return net.JoinHostPort(ip, strconv.Itoa(int(t.port))), err
	}
	s, err := k.CoreV1().Services(t.namespace).Get(ctx, t.service, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	i := 0
	for i < len(s.Spec.Ports) && t.port != 0 && s.Spec.Ports[i].Port != t.port {
		i++
	}
	if i >= len(s.Spec.Ports) {
		return "", fmt.Errorf("the Service has no port %d; it has %s", t.port, portList(s.Spec.Ports))
	}
	p := s.Spec.Ports[i]
	if p.NodePort != 0 {
		return net.JoinHostPort(ips[0], strconv.Itoa(int(p.NodePort))), nil
	}
	return endpoint(ctx, k, s, p)
}

// nodeAddress is the address of the node of that name or address.
func nodeAddress(ctx context.Context, k kubernetes.Interface, node string) (string, error) {
	nodes, err := k.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	var names []string
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && (n.Name == node || a.Address == node) {
				return a.Address, nil
			}
		}
		names = append(names, n.Name)
	}
	return "", fmt.Errorf("there is no node %s; there are %s", node, strings.Join(names, ", "))
}

func portList(ports []corev1.ServicePort) string {
	var out []string
	for _, p := range ports {
		out = append(out, strconv.Itoa(int(p.Port)))
	}
	return strings.Join(out, ", ")
}

// endpoint is the address of a ready pod behind a Service's port.
func endpoint(ctx context.Context, k kubernetes.Interface, s *corev1.Service, p corev1.ServicePort) (string, error) {
	slices, err := k.DiscoveryV1().EndpointSlices(s.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + s.Name})
	if err != nil {
		return "", err
	}
	for _, slice := range slices.Items {
		for _, port := range slice.Ports {
			if port.Port == nil || port.Name == nil || *port.Name != p.Name {
				continue
			}
			for _, e := range slice.Endpoints {
				if len(e.Addresses) > 0 && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*port.Port))), nil
				}
			}
		}
	}
	return "", errors.New("no pod of the Service is ready")
}
