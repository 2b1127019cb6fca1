package objects

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// What the translation honours of each kind, as paths of JSON names without indices. A path that ends in ".**" stands for
// everything under it. Any other field that is set is a problem: an object is in force as a whole or not at all.
var (
	supportedVirtualService = paths(
		"hosts", "gateways", "exportTo",
		"http.name", "http.match.**", "http.route.destination.**", "http.route.weight", "http.route.headers.**",
		"http.redirect.**", "http.directResponse.**", "http.rewrite.**", "http.timeout", "http.headers.**",
		"http.fault.delay.fixedDelay", "http.fault.delay.percentage.value", "http.fault.delay.percent",
		"http.fault.abort.httpStatus", "http.fault.abort.grpcStatus", "http.fault.abort.percentage.value",
		"http.retries.attempts", "http.retries.perTryTimeout", "http.retries.retryOn", "http.retries.retryIgnorePreviousHosts", "http.retries.backoff",
		"tcp.match.port", "tcp.match.sourceLabels", "tcp.match.sourceNamespace", "tcp.match.gateways", "tcp.route.destination.**", "tcp.route.weight",
		"tls.match.sniHosts", "tls.match.port", "tls.match.sourceLabels", "tls.match.sourceNamespace", "tls.match.gateways",
		"tls.route.destination.**", "tls.route.weight",
	)
	supportedDestinationRule = paths(append(append([]string{"host", "exportTo", "subsets.name", "subsets.labels"},
		policyPaths("trafficPolicy")...), policyPaths("subsets.trafficPolicy")...)...)
	supportedGateway = paths(
		"selector", "servers.port.number", "servers.port.protocol", "servers.port.name", "servers.hosts", "servers.name",
		"servers.tls.httpsRedirect", "servers.tls.mode", "servers.tls.serverCertificate", "servers.tls.privateKey", "servers.tls.caCertificates",
		"servers.tls.credentialName", "servers.tls.subjectAltNames", "servers.tls.minProtocolVersion", "servers.tls.maxProtocolVersion",
	)
)

func policyPaths(at string) []string {
	var out []string
	for _, p := range []string{at, at + ".portLevelSettings"} {
		for _, f := range []string{
			"loadBalancer.simple", "loadBalancer.consistentHash.**", "loadBalancer.localityLbSetting.**",
			"connectionPool.tcp.maxConnections", "connectionPool.tcp.connectTimeout", "connectionPool.tcp.tcpKeepalive.**",
			"connectionPool.tcp.idleTimeout",
			"connectionPool.http.http1MaxPendingRequests", "connectionPool.http.http2MaxRequests",
			"connectionPool.http.maxRequestsPerConnection", "connectionPool.http.maxRetries", "connectionPool.http.idleTimeout",
			"connectionPool.http.h2UpgradePolicy", "connectionPool.http.useClientProtocol", "connectionPool.http.maxConcurrentStreams",
			"outlierDetection.consecutiveErrors", "outlierDetection.splitExternalLocalOriginErrors",
			"outlierDetection.consecutiveLocalOriginFailures", "outlierDetection.consecutiveGatewayErrors",
			"outlierDetection.consecutive5xxErrors", "outlierDetection.interval", "outlierDetection.baseEjectionTime",
			"outlierDetection.maxEjectionPercent", "outlierDetection.minHealthPercent",
			"tls.mode", "tls.sni", "tls.subjectAltNames", "tls.clientCertificate", "tls.privateKey", "tls.caCertificates",
			"tls.insecureSkipVerify",
		} {
			out = append(out, p+"."+f)
		}
	}
	return append(out, at+".portLevelSettings.port.number")
}

// fieldSet is a tree of supported paths.
type fieldSet struct {
	all  bool
	next map[string]*fieldSet
}

func paths(list ...string) *fieldSet {
	root := &fieldSet{}
	for _, p := range list {
		at := root
		for part := range strings.SplitSeq(p, ".") {
			if part == "**" {
				at.all = true
				break
			}
			if at.next == nil {
				at.next = map[string]*fieldSet{}
			}
			if at.next[part] == nil {
				at.next[part] = &fieldSet{}
			}
			at = at.next[part]
		}
	}
	return root
}

// unsupported names every field that is set in m and not in the set, by its path under at.
func (s *fieldSet) unsupported(m protoreflect.Message, at string) []Problem {
	var out []Problem
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := at + "." + f.JSONName()
		sub := s.next[f.JSONName()]
		if sub == nil {
			out = append(out, Problem{
				Severity: Error, Field: path, Message: fmt.Sprintf("field %s is not supported", f.JSONName()), Fix: "remove it",
			})
			return true
		}
		if sub.all || len(sub.next) == 0 || f.Message() == nil || f.IsMap() {
			return true
		}
		if f.IsList() {
			for i := range v.List().Len() {
				out = append(out, sub.unsupported(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", path, i))...)
			}
			return true
		}
		out = append(out, sub.unsupported(v.Message(), path)...)
		return true
	})
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Field, b.Field) })
	return out
}
