package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meshproof/meshproof/mesh/model"
)

// httpRoutes turns the rules of a VirtualService that hold for gateway ("mesh" or namespace/name) and port into routes, in
// their order. A rule with several matches becomes as many routes; after a rule that takes everything nothing follows.
func (o *outbound) httpRoutes(vs *model.VirtualService, gateway string, port uint32, isTLS bool) []*routev3.Route {
	var out []*routev3.Route
	for _, r := range vs.Spec.Spec.Http {
		if len(r.Match) == 0 {
			out = append(out, o.httpRoute(vs, r, nil, port, isTLS))
			return out
		}
		for _, m := range r.Match {
			if m.Port != 0 && m.Port != port || !o.sourceMatches(vs, m.SourceLabels, m.SourceNamespace, m.Gateways, gateway) {
				continue
			}
			route := o.httpRoute(vs, r, m, port, isTLS)
			out = append(out, route)
			if catchesAll(route.Match) {
				return out
			}
		}
	}
	return out
}

func catchesAll(m *routev3.RouteMatch) bool {
	return m.GetPrefix() == "/" && len(m.Headers) == 0 && len(m.QueryParameters) == 0
}

func (o *outbound) sourceMatches(vs *model.VirtualService, labels map[string]string, namespace string, gateways []string, gateway string) bool {
	if len(gateways) > 0 && !slices.ContainsFunc(gateways, func(g string) bool {
		return model.ResolveGateway(g, vs.Key.Namespace) == gateway
	}) {
		return false
	}
	if gateway != "mesh" {
		return true // labels and namespaces of sources are those of sidecars
	}
	if namespace != "" && namespace != o.scope.namespace {
		return false
	}
	return len(labels) == 0 || model.Matches(labels, o.labels)
}

func (o *outbound) httpRoute(vs *model.VirtualService, r *networking.HTTPRoute, m *networking.HTTPMatchRequest, port uint32, isTLS bool) *routev3.Route {
	out := &routev3.Route{Name: r.Name, Match: routeMatch(m)}
	if m.GetName() != "" {
		out.Name += "." + m.Name
	}
	h := headersOf(r.Headers)
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = h.requestAdd, h.requestRemove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = h.responseAdd, h.responseRemove
	if f := fault(r.Fault); f != nil {
		out.TypedPerFilterConfig = map[string]*anypb.Any{faultFilterName: toAny(f)}
	}
	switch {
	case r.Redirect != nil:
		out.Action = redirect(r.Redirect, port, isTLS)
	case r.DirectResponse != nil:
		out.Action = directResponse(r.DirectResponse)
	default:
		o.forward(out, vs, r, h.authority, port)
	}
	return out
}

// forward sets where requests go, and how: rewrite, timeout, retries, weights.
func (o *outbound) forward(out *routev3.Route, vs *model.VirtualService, r *networking.HTTPRoute, authority string, port uint32) {
	a := &routev3.RouteAction{
		Timeout:     durationpb.New(0),
		RetryPolicy: retries(r.Retries),
	}
	if r.Timeout != nil {
		a.Timeout = r.Timeout
	}
	if a.Timeout.AsDuration() == 0 {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)}
	} else {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: a.Timeout, GrpcTimeoutHeaderMax: a.Timeout}
	}
	out.Action = &routev3.Route_Route{Route: a}
	if w := r.Rewrite; w != nil {
		switch {
		case w.GetUriRegexRewrite() != nil:
			a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
				Pattern:      &matcherv3.RegexMatcher{Regex: w.UriRegexRewrite.Match},
				Substitution: w.UriRegexRewrite.Rewrite,
			}
		case w.Uri != "":
			a.PrefixRewrite = w.Uri
		}
		authority = cmp.Or(w.Authority, authority)
	}
	if len(r.Route) == 1 {
		d := r.Route[0]
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: o.destination(vs, d.Destination, port)}
		addHash(a, o.hashOfDestination(vs, d.Destination, port))
		h := headersOf(d.Headers)
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, h.requestAdd...)
		out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, h.requestRemove...)
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, h.responseAdd...)
		out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, h.responseRemove...)
		authority = cmp.Or(authority, h.authority)
	} else {
		w := &routev3.WeightedCluster{}
		for _, d := range r.Route {
			if d.Weight == 0 {
				continue
			}
			addHash(a, o.hashOfDestination(vs, d.Destination, port))
			h := headersOf(d.Headers)
			cw := &routev3.WeightedCluster_ClusterWeight{
				Name:                    o.destination(vs, d.Destination, port),
				Weight:                  wrapperspb.UInt32(uint32(d.Weight)),
				RequestHeadersToAdd:     h.requestAdd,
				RequestHeadersToRemove:  h.requestRemove,
				ResponseHeadersToAdd:    h.responseAdd,
				ResponseHeadersToRemove: h.responseRemove,
			}
			if h.authority != "" {
				cw.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: h.authority}
			}
			w.Clusters = append(w.Clusters, cw)
		}
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	}
	if authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	first := r.Route[0].Destination
	out.Decorator = &routev3.Decorator{Operation: fmt.Sprintf("%s:%d/*", o.s.Mesh.Resolve(first.Host, vs.Key.Namespace), o.destinationPort(vs, first, port))}
}

// destination is the cluster that a destination means. A host that is no service of ours becomes BlackHoleCluster, as in
// Istio, so that the request fails and does not wander.
func (o *outbound) destination(vs *model.VirtualService, d *networking.Destination, port uint32) string {
	host := o.s.Mesh.Resolve(d.Host, vs.Key.Namespace)
	if o.service(host) == nil {
		return blackHole
	}
	return clusterName(o.destinationPort(vs, d, port), d.Subset, host)
}

// destinationPort is the port named, else the service's only one, else the one that the request came in for.
func (o *outbound) destinationPort(vs *model.VirtualService, d *networking.Destination, port uint32) uint32 {
	if n := d.GetPort().GetNumber(); n != 0 {
		return n
	}
	if svc := o.service(o.s.Mesh.Resolve(d.Host, vs.Key.Namespace)); svc != nil && len(svc.Ports) == 1 {
		return svc.Ports[0].Number
	}
	return port
}

func (o *outbound) hashOfDestination(vs *model.VirtualService, d *networking.Destination, port uint32) *networking.LoadBalancerSettings_ConsistentHashLB {
	return o.hashOf(o.s.Mesh.Resolve(d.Host, vs.Key.Namespace), d.Subset, o.destinationPort(vs, d, port))
}

func routeMatch(m *networking.HTTPMatchRequest) *routev3.RouteMatch {
	out := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if m == nil {
		return out
	}
	switch u := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: u.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: u.Regex}}
	}
	out.CaseSensitive = wrapperspb.Bool(!m.IgnoreUriCase)
	for name, s := range m.Headers {
		out.Headers = append(out.Headers, headerMatch(name, s))
	}
	for name, s := range m.WithoutHeaders {
		h := headerMatch(name, s)
		h.InvertMatch = true
		h.TreatMissingHeaderAsEmpty = !isPresence(s)
		out.Headers = append(out.Headers, h)
	}
	// A header may be both wanted and unwanted, so the name alone is no order.
	slices.SortFunc(out.Headers, func(a, b *routev3.HeaderMatcher) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(strconv.FormatBool(a.InvertMatch), strconv.FormatBool(b.InvertMatch)))
	})
	for _, p := range []struct {
		name string
		m    *networking.StringMatch
	}{{":method", m.Method}, {":authority", m.Authority}, {":scheme", m.Scheme}} {
		if p.m != nil {
			out.Headers = append(out.Headers, headerMatch(p.name, p.m))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.QueryParams)) {
		s := m.QueryParams[name]
		q := &routev3.QueryParameterMatcher{Name: name}
		if isPresence(s) {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		} else {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: stringMatch(s)}
		}
		out.QueryParameters = append(out.QueryParameters, q)
	}
	return out
}

// isPresence tells whether a match asks only that the thing be there. The regular expression "*", which is none, means that too.
func isPresence(s *networking.StringMatch) bool {
	return s.GetMatchType() == nil || s.GetRegex() == "*"
}

func headerMatch(name string, s *networking.StringMatch) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name}
	if isPresence(s) {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	} else {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatch(s)}
	}
	return h
}

func stringMatch(s *networking.StringMatch) *matcherv3.StringMatcher {
	switch m := s.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Prefix}}
	case *networking.StringMatch_Regex:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.Regex}}}
	default:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s.GetExact()}}
	}
}

// headerOps are header operations as Envoy has them. Setting the host header is a rewrite of the authority.
type headerOps struct {
	requestAdd, responseAdd       []*corev3.HeaderValueOption
	requestRemove, responseRemove []string
	authority                     string
}

func headersOf(h *networking.Headers) headerOps {
	var out headerOps
	req, resp := h.GetRequest(), h.GetResponse()
	add := func(m map[string]string, action corev3.HeaderValueOption_HeaderAppendAction, request bool) []*corev3.HeaderValueOption {
		var l []*corev3.HeaderValueOption
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if low := strings.ToLower(k); request && (low == "host" || low == ":authority") {
				out.authority = m[k]
				continue
			}
			l = append(l, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: m[k]}, AppendAction: action})
		}
		return l
	}
	const set, appended = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
	added := add(req.GetAdd(), appended, true)
	out.requestAdd = append(add(req.GetSet(), set, true), added...)
	out.responseAdd = append(add(resp.GetSet(), set, false), add(resp.GetAdd(), appended, false)...)
	out.requestRemove, out.responseRemove = slices.Clone(req.GetRemove()), slices.Clone(resp.GetRemove())
	return out
}

func defaultRetries() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		NumRetries:                    wrapperspb.UInt32(2),
		RetryOn:                       "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
		HostSelectionRetryMaxAttempts: 5,
		RetryHostPredicate:            previousHosts(),
	}
}

func previousHosts() []*routev3.RetryPolicy_RetryHostPredicate {
	return []*routev3.RetryPolicy_RetryHostPredicate{{
		Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
			TypedConfig: toAny(&previoushostsv3.PreviousHostsPredicate{}),
		},
	}}
}

// retries is the default policy with what a rule changes; attempts 0 means none.
func retries(r *networking.HTTPRetry) *routev3.RetryPolicy {
	out := defaultRetries()
	if r == nil {
		return out
	}
	if r.Attempts <= 0 {
		return nil
	}
	out.NumRetries = wrapperspb.UInt32(uint32(r.Attempts))
	if r.RetryOn != "" {
		var names []string
		for p := range strings.SplitSeq(r.RetryOn, ",") {
			p = strings.TrimSpace(p)
			if code, err := strconv.Atoi(p); err == nil && http.StatusText(code) != "" {
				out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(code))
			} else if p != "" {
				names = append(names, p)
			}
		}
		if len(out.RetriableStatusCodes) > 0 && !slices.Contains(names, "retriable-status-codes") {
			names = append(names, "retriable-status-codes")
		}
		out.RetryOn = strings.Join(names, ",")
	}
	out.PerTryTimeout = r.PerTryTimeout
	if r.RetryIgnorePreviousHosts != nil && !r.RetryIgnorePreviousHosts.Value {
		out.RetryHostPredicate = nil
	}
	if r.Backoff != nil {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: r.Backoff}
	}
	return out
}

func redirect(r *networking.HTTPRedirect, port uint32, isTLS bool) *routev3.Route_Redirect {
	a := &routev3.RedirectAction{HostRedirect: r.Authority}
	if r.PrefixRewrite != "" {
		a.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.PrefixRewrite}
	} else if r.Uri != "" {
		a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Uri}
	}
	scheme := "http"
	if isTLS {
		scheme = "https"
	}
	if r.Scheme != "" {
		scheme = r.Scheme
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch p := r.RedirectPort.(type) {
	case *networking.HTTPRedirect_Port:
		a.PortRedirect = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			a.PortRedirect = port
		}
	}
	if a.PortRedirect == 80 && scheme == "http" || a.PortRedirect == 443 && scheme == "https" {
		a.PortRedirect = 0
	}
	switch r.RedirectCode {
	case 302:
		a.ResponseCode = routev3.RedirectAction_FOUND
	case 303:
		a.ResponseCode = routev3.RedirectAction_SEE_OTHER
	case 307:
		a.ResponseCode = routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		a.ResponseCode = routev3.RedirectAction_PERMANENT_REDIRECT
	default: // 301 or nothing said; validation refuses the rest
		a.ResponseCode = routev3.RedirectAction_MOVED_PERMANENTLY
	}
	return &routev3.Route_Redirect{Redirect: a}
}

func directResponse(d *networking.HTTPDirectResponse) *routev3.Route_DirectResponse {
	a := &routev3.DirectResponseAction{Status: d.Status}
	switch b := d.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		a.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: b.String_}}
	case *networking.HTTPBody_Bytes:
		a.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b.Bytes}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: a}
}
