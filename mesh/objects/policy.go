package objects

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

func (v *validator) policy(at string, p *networkingv1alpha3.TrafficPolicy) {
	if p == nil {
		return
	}
	v.settings(at, p.LoadBalancer, p.ConnectionPool, p.OutlierDetection, p.Tls)
	seen := map[uint32]bool{}
	for i, pl := range p.PortLevelSettings {
		pat := fmt.Sprintf("%s.portLevelSettings[%d]", at, i)
		n := pl.GetPort().GetNumber()
		switch {
		case n == 0:
			v.err(pat+".port.number", "no port", "name the service's port")
		case seen[n]:
			v.err(pat+".port.number", fmt.Sprintf("port %d is there twice", n), "keep one")
		}
		seen[n] = true
		v.settings(pat, pl.LoadBalancer, pl.ConnectionPool, pl.OutlierDetection, pl.Tls)
	}
}

func (v *validator) settings(at string, lb *networkingv1alpha3.LoadBalancerSettings, cp *networkingv1alpha3.ConnectionPoolSettings,
	od *networkingv1alpha3.OutlierDetection, tls *networkingv1alpha3.ClientTLSSettings,
) {
	// the old name is what this warns about
	if lb.GetSimple() == networkingv1alpha3.LoadBalancerSettings_LEAST_CONN {
		v.warn(at+".loadBalancer.simple", "LEAST_CONN is the old name of LEAST_REQUEST", "say LEAST_REQUEST")
	}
	v.consistentHash(at+".loadBalancer.consistentHash", lb.GetConsistentHash())
	v.locality(at+".loadBalancer.localityLbSetting", lb.GetLocalityLbSetting(), od)
	v.pool(at+".connectionPool", cp)
	v.outliers(at+".outlierDetection", od)
	v.clientTLS(at+".tls", tls)
}

// Bounds of Envoy's tables.
const (
	maxRing   = 8388608
	maxMaglev = 5000011
)

func (v *validator) consistentHash(at string, h *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB) {
	if h == nil {
		return
	}
	switch k := h.HashKey.(type) {
	case nil:
		v.err(at, "nothing to hash by", "say httpCookie, httpHeaderName, useSourceIp or httpQueryParameterName")
	case *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		v.cookie(at+".httpCookie", k.HttpCookie)
	case *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		v.headerName(at+".httpHeaderName", k.HttpHeaderName)
	case *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		if k.HttpQueryParameterName == "" {
			v.err(at+".httpQueryParameterName", "no name", "name the parameter")
		}
	case *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if !k.UseSourceIp {
			v.err(at+".useSourceIp", "false leaves nothing to hash by", "say true")
		}
	}
	old := h.MinimumRingSize // the old place is what this warns about
	if old > 0 {
		v.warn(at+".minimumRingSize", "minimumRingSize has moved", fmt.Sprintf("say ringHash: {minimumRingSize: %d}", old))
		if h.HashAlgorithm != nil {
			v.err(at+".minimumRingSize", "minimumRingSize beside ringHash or maglev", "keep one")
		}
	}
	if n := max(old, h.GetRingHash().GetMinimumRingSize()); n > maxRing {
		v.err(at, fmt.Sprintf("a ring of %d is over %d", n, maxRing), "use a smaller one")
	}
	if m := h.GetMaglev(); m != nil && (m.TableSize == 0 || m.TableSize > maxMaglev || !big.NewInt(int64(m.TableSize)).ProbablyPrime(0)) {
		v.err(at+".maglev.tableSize", fmt.Sprintf("%d is no prime number up to %d", m.TableSize, maxMaglev), "use a prime number, such as 65537")
	}
}

func (v *validator) cookie(at string, c *networkingv1alpha3.LoadBalancerSettings_ConsistentHashLB_HTTPCookie) {
	switch {
	case c.GetName() == "":
		v.err(at+".name", "no name", "name the cookie")
	case !token.MatchString(c.Name):
		v.err(at+".name", fmt.Sprintf("%q is no name of a cookie", c.Name), "use letters, digits and dashes")
	}
	v.cookieText(at+".path", c.GetPath())
	v.duration(at+".ttl", c.GetTtl())
	seen := map[string]bool{}
	for i, a := range c.GetAttributes() {
		switch n := strings.ToLower(a.GetName()); {
		case n == "":
			v.err(fmt.Sprintf("%s.attributes[%d].name", at, i), "no name", "name the attribute")
		case seen[n]:
			v.err(fmt.Sprintf("%s.attributes[%d].name", at, i), fmt.Sprintf("attribute %s is there twice", a.Name), "keep one")
		case !token.MatchString(n):
			v.err(fmt.Sprintf("%s.attributes[%d].name", at, i), fmt.Sprintf("%q is no name of an attribute", a.Name), "use one such as SameSite")
		default:
			seen[n] = true
		}
		v.cookieText(fmt.Sprintf("%s.attributes[%d].value", at, i), a.GetValue())
	}
}

func (v *validator) cookieText(field, s string) {
	if v.text(field, s, false) && strings.Contains(s, ";") {
		v.err(field, fmt.Sprintf("%q holds a semicolon, which ends it", s), "say each attribute by itself")
	}
}

func (v *validator) locality(at string, s *networkingv1alpha3.LocalityLoadBalancerSetting, od *networkingv1alpha3.OutlierDetection) {
	if s == nil || s.Enabled != nil && !s.Enabled.Value {
		return
	}
	fails := len(s.Failover)+len(s.FailoverPriority) > 0
	if len(s.Distribute) > 0 && fails {
		v.err(at, "distribute beside failover", "keep one")
	}
	if fails && od == nil {
		v.warn(at, "failover without outlierDetection: nothing tells a proxy that it has to", "add outlierDetection beside loadBalancer")
	}
	for i, d := range s.Distribute {
		dat := fmt.Sprintf("%s.distribute[%d]", at, i)
		if d.From == "" {
			v.err(dat+".from", "no locality", `say region/zone, or "*"`)
		}
		total := uint64(0)
		for _, to := range slices.Sorted(maps.Keys(d.To)) {
			if d.To[to] == 0 { // as in Istio: what is not named gets nothing
				v.err(fmt.Sprintf("%s.to[%s]", dat, to), "a weight of 0", "leave the locality out: it gets nothing then")
			}
			total += uint64(d.To[to])
		}
		if total != 100 {
			v.err(dat+".to", fmt.Sprintf("the weights add up to %d", total), "make it 100")
		}
	}
	for i, f := range s.Failover {
		fat := fmt.Sprintf("%s.failover[%d]", at, i)
		switch {
		case f.From == "" || f.To == "":
			v.err(fat, "from or to is missing", "name two regions")
		case f.From == f.To:
			v.err(fat, fmt.Sprintf("fails over from %s to itself", f.From), "name another region in to")
		case strings.ContainsAny(f.From+f.To, "/*"):
			v.err(fat, "failover is between regions", "leave zones out")
		}
	}
	for i, p := range s.FailoverPriority {
		name, _, _ := strings.Cut(p, "=")
		switch name {
		case "":
			v.err(fmt.Sprintf("%s.failoverPriority[%d]", at, i), "no label", "name a label")
		case "kubernetes.io/hostname":
			v.err(fmt.Sprintf("%s.failoverPriority[%d]", at, i), "failover by node is not supported", "use topology.istio.io/subzone")
		}
	}
}

func (v *validator) pool(at string, cp *networkingv1alpha3.ConnectionPoolSettings) {
	tcp, http := cp.GetTcp(), cp.GetHttp()
	for _, n := range []struct {
		field string
		value int32
	}{
		{"tcp.maxConnections", tcp.GetMaxConnections()}, {"http.http1MaxPendingRequests", http.GetHttp1MaxPendingRequests()},
		{"http.http2MaxRequests", http.GetHttp2MaxRequests()}, {"http.maxRequestsPerConnection", http.GetMaxRequestsPerConnection()},
		{"http.maxRetries", http.GetMaxRetries()}, {"http.maxConcurrentStreams", http.GetMaxConcurrentStreams()},
	} {
		if n.value < 0 {
			v.err(at+"."+n.field, fmt.Sprintf("%d is negative", n.value), "use 0 for no limit")
		}
	}
	v.span(at+".tcp.connectTimeout", tcp.GetConnectTimeout(), "is no time to connect in", "1s")
	v.duration(at+".tcp.idleTimeout", tcp.GetIdleTimeout())
	v.duration(at+".http.idleTimeout", http.GetIdleTimeout())
	v.duration(at+".tcp.tcpKeepalive.time", tcp.GetTcpKeepalive().GetTime())
	v.duration(at+".tcp.tcpKeepalive.interval", tcp.GetTcpKeepalive().GetInterval())
	if http.GetUseClientProtocol() && http.GetH2UpgradePolicy() == networkingv1alpha3.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		v.err(at+".http.useClientProtocol", "useClientProtocol beside h2UpgradePolicy UPGRADE", "keep one")
	}
}

// capped is the largest number of hosts of which Envoy's default of 10 % ejects none.
const capped = 9

func (v *validator) outliers(at string, o *networkingv1alpha3.OutlierDetection) {
	if o == nil {
		return
	}
	if n := o.ConsecutiveErrors; n != 0 { // the old name is what this warns about
		switch {
		case n < 0:
			v.err(at+".consecutiveErrors", fmt.Sprintf("%d is negative", n), "use 1 or more")
		case o.ConsecutiveGatewayErrors != nil:
			v.err(at+".consecutiveErrors", "the old name of consecutiveGatewayErrors beside it", "keep consecutiveGatewayErrors")
		default:
			v.warn(at+".consecutiveErrors", "consecutiveErrors is an old name: it counts the statuses 502, 503 and 504 in a row, and no other 5xx",
				fmt.Sprintf("say consecutiveGatewayErrors: %d, or consecutive5xxErrors to count every 5xx", n))
		}
	}
	for _, p := range []struct {
		field string
		value int32
	}{{"maxEjectionPercent", o.MaxEjectionPercent}, {"minHealthPercent", o.MinHealthPercent}} {
		if p.value < 0 || p.value > 100 {
			v.err(at+"."+p.field, fmt.Sprintf("%d is not a percentage", p.value), "use 0 to 100")
		}
	}
	if o.MaxEjectionPercent == 0 {
		v.warn(at+".maxEjectionPercent", fmt.Sprintf("not set: the default of 10 %% never ejects one of %d hosts or fewer", capped), "say how many percent of the hosts may be ejected at a time")
	}
	if n := o.ConsecutiveLocalOriginFailures.GetValue(); n > 0 && !o.SplitExternalLocalOriginErrors {
		v.err(at+".consecutiveLocalOriginFailures", "counts only with splitExternalLocalOriginErrors", "set splitExternalLocalOriginErrors: true")
	}
	v.span(at+".interval", o.Interval, "is no interval", "10s")
	v.span(at+".baseEjectionTime", o.BaseEjectionTime, "ejects for no time", "30s")
}

func (v *validator) clientTLS(at string, tls *networkingv1alpha3.ClientTLSSettings) {
	if tls == nil {
		return
	}
	files := []struct {
		field, value string
		needed       bool
	}{
		{"clientCertificate", tls.ClientCertificate, false}, {"privateKey", tls.PrivateKey, false}, {"caCertificates", tls.CaCertificates, false},
	}
	switch tls.Mode {
	case networkingv1alpha3.ClientTLSSettings_DISABLE, networkingv1alpha3.ClientTLSSettings_ISTIO_MUTUAL:
		for _, f := range files {
			if f.value != "" {
				v.err(at+"."+f.field, fmt.Sprintf("mode %s uses no files", tls.Mode), "remove it")
			}
		}
		return
	case networkingv1alpha3.ClientTLSSettings_SIMPLE, networkingv1alpha3.ClientTLSSettings_MUTUAL:
	default:
		v.err(at+".mode", fmt.Sprintf("mode %s is not supported", tls.Mode), "use DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL")
		return
	}
	files[0].needed = tls.Mode == networkingv1alpha3.ClientTLSSettings_MUTUAL
	files[1].needed = files[0].needed
	files[2].needed = !tls.GetInsecureSkipVerify().GetValue()
	for _, f := range files {
		if f.needed && f.value == "" {
			v.err(at+"."+f.field, fmt.Sprintf("mode %s needs it", tls.Mode), "name a file in the proxy's container")
		}
	}
	if files[2].value != "" && !files[2].needed {
		v.err(at+".caCertificates", "not used with insecureSkipVerify", "keep one")
	}
	if tls.Sni == "" {
		v.err(at+".sni", fmt.Sprintf("mode %s needs the server's name: it is not taken from the request", tls.Mode), "name the server")
	}
}
