package model

import (
	"cmp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func convertPod(o *corev1.Pod) *Pod {
	p := &Pod{
		Name: o.Name, Namespace: o.Namespace, IP: o.Status.PodIP, Labels: o.Labels,
		ServiceAccount: cmp.Or(o.Spec.ServiceAccountName, "default"), Node: o.Spec.NodeName,
		TLSMode: o.Labels["security.istio.io/tlsMode"] == "istio", Ports: map[string]uint32{},
	}
	p.Workload = WorkloadName(o)
	for _, c := range o.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				p.Ports[port.Name] = uint32(port.ContainerPort)
			}
		}
	}
	return p
}

// WorkloadName is the name of what made the pod: its Deployment, or whatever controls it, or the pod itself.
func WorkloadName(o *corev1.Pod) string {
	ref := metav1.GetControllerOf(o)
	if ref == nil {
		return cmp.Or(o.Name, strings.TrimSuffix(o.GenerateName, "-"))
	}
	if hash := o.Labels["pod-template-hash"]; ref.Kind == "ReplicaSet" && hash != "" {
		return strings.TrimSuffix(ref.Name, "-"+hash)
	}
	return ref.Name
}

func convertService(m Mesh, o *corev1.Service) *Service {
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	s := &Service{Name: o.Name, Namespace: o.Namespace, Hostname: m.Hostname(o.Name, o.Namespace), Labels: o.Labels, Selector: o.Spec.Selector}
	for _, ip := range o.Spec.ClusterIPs {
		if ip != "" && ip != corev1.ClusterIPNone {
			s.VIPs = append(s.VIPs, ip)
		}
	}
	if len(s.VIPs) == 0 && o.Spec.ClusterIP != "" && o.Spec.ClusterIP != corev1.ClusterIPNone {
		s.VIPs = []string{o.Spec.ClusterIP}
	}
	s.Headless = len(s.VIPs) == 0
	if e := o.Annotations["networking.istio.io/exportTo"]; e != "" {
		for x := range strings.SplitSeq(e, ",") {
			s.ExportTo = append(s.ExportTo, strings.TrimSpace(x))
		}
	}
	for _, p := range o.Spec.Ports {
		target := p.TargetPort.String()
		if target == "" || target == "0" {
			target = strconv.Itoa(int(p.Port))
		}
		s.Ports = append(s.Ports, Port{Name: p.Name, Number: uint32(p.Port), TargetPort: target, Protocol: portProtocol(p)})
	}
	return s
}

// portProtocol is Istio's rule: UDP is UDP, then appProtocol, then the port's name up to its first dash.
func portProtocol(p corev1.ServicePort) Protocol {
	if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
		return UDP
	}
	name := p.Name
	if p.AppProtocol != nil {
		switch strings.ToLower(*p.AppProtocol) {
		case "kubernetes.io/h2c":
			return HTTP2
		case "kubernetes.io/ws":
			return HTTP
		case "kubernetes.io/wss":
			return HTTPS
		}
		name = strings.ToLower(*p.AppProtocol)
	}
	prefix, _, _ := strings.Cut(strings.ToLower(name), "-")
	switch prefix {
	case "http":
		return HTTP
	case "http2":
		return HTTP2
	case "grpc":
		return GRPC
	case "https":
		return HTTPS
	case "tls":
		return TLS
	case "tcp", "mongo", "mysql", "redis":
		return TCP
	}
	switch p.Port {
	case 25, 3306, 6379, 27017: // well known protocols in which the server speaks first
		return TCP
	}
	return Auto
}
