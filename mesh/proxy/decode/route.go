package decode

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// Routes decodes a route configuration.
func Routes(r *routev3.RouteConfiguration) (*conf.RouteTable, error) {
	out, err := routes(r)
	if err != nil {
		return nil, fmt.Errorf("routes %q: %w", r.GetName(), err)
	}
	return out, nil
}

func routes(r *routev3.RouteConfiguration) (*conf.RouteTable, error) {
	// validate_clusters: a missing cluster is an answer at run time, as where it is off.
	if err := only(r, "name", "virtual_hosts", "validate_clusters", "ignore_port_in_host_matching", "max_direct_response_body_size_bytes",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove",
		"most_specific_header_mutations_wins", "metadata"); err != nil {
		return nil, err
	}
	out := &conf.RouteTable{Name: r.GetName(), Exact: map[string]*conf.VirtualHost{}, IgnorePort: r.GetIgnorePortInHostMatching(), SpecificWins: r.GetMostSpecificHeaderMutationsWins()}
	d := &routeDecoder{maxBody: 4096, clusters: map[string]bool{}}
	if v := r.GetMaxDirectResponseBodySizeBytes(); v != nil {
		d.maxBody = int64(v.Value)
	}
	var err error
	if out.Headers, err = headerOps(r); err != nil {
		return nil, err
	}
	for _, v := range r.GetVirtualHosts() {
		vh, err := d.virtualHost(v)
		if err != nil {
			return nil, fmt.Errorf("virtual host %q: %w", v.GetName(), err)
		}
		out.Hosts = append(out.Hosts, vh)
		for _, dom := range vh.Domains {
			if err := addDomain(out, dom, vh); err != nil {
				return nil, fmt.Errorf("virtual host %q: %w", v.GetName(), err)
			}
		}
	}
	longest := func(a, b conf.Wildcard) int { return cmp.Compare(len(b.Text), len(a.Text)) }
	slices.SortStableFunc(out.Suffix, longest)
	slices.SortStableFunc(out.PrefixWild, longest)
	out.Clusters = slices.Sorted(maps.Keys(d.clusters))
	return out, nil
}

func addDomain(t *conf.RouteTable, dom string, vh *conf.VirtualHost) error {
	clash := fmt.Errorf("domain %q is in two virtual hosts", dom)
	wild := func(list []conf.Wildcard, text string) ([]conf.Wildcard, error) {
		for _, w := range list {
			if w.Text == text {
				return nil, clash
			}
		}
		return append(list, conf.Wildcard{Text: text, Host: vh}), nil
	}
	var err error
	switch {
	case dom == "*":
		if t.Any != nil {
			return clash
		}
		t.Any = vh
	case strings.HasPrefix(dom, "*"):
		t.Suffix, err = wild(t.Suffix, dom[1:])
	case strings.HasSuffix(dom, "*"):
		t.PrefixWild, err = wild(t.PrefixWild, dom[:len(dom)-1])
	case dom == "" || strings.Contains(dom, "*"):
		return fmt.Errorf("domain %q: only a leading or a closing * is supported", dom)
	default:
		if t.Exact[dom] != nil {
			return clash
		}
		t.Exact[dom] = vh
	}
	return err
}

type routeDecoder struct {
	maxBody  int64
	clusters map[string]bool
}

func (d *routeDecoder) virtualHost(v *routev3.VirtualHost) (*conf.VirtualHost, error) {
	if err := only(v, "name", "domains", "routes", "require_tls", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "include_request_attempt_count", "include_attempt_count_in_response", "retry_policy", "metadata"); err != nil {
		return nil, err
	}
	out := &conf.VirtualHost{Name: v.GetName(), Attempts: v.GetIncludeRequestAttemptCount(), AttemptsInResponse: v.GetIncludeAttemptCountInResponse()}
	if len(v.GetDomains()) == 0 {
		return nil, errors.New("no domain")
	}
	for _, dom := range v.Domains {
		out.Domains = append(out.Domains, strings.ToLower(dom))
	}
	switch v.RequireTls {
	case routev3.VirtualHost_NONE:
	case routev3.VirtualHost_EXTERNAL_ONLY:
		out.RequireTLS = conf.TLSExternal
	case routev3.VirtualHost_ALL:
		out.RequireTLS = conf.TLSAll
	default:
		return nil, fmt.Errorf("require_tls %d is unknown", v.RequireTls)
	}
	var err error
	if out.Headers, err = headerOps(v); err != nil {
		return nil, err
	}
	retry, err := retryPolicy(v.RetryPolicy)
	if err != nil {
		return nil, fmt.Errorf("retry_policy: %w", err)
	}
	for i, r := range v.Routes {
		rt, err := d.route(r)
		if err != nil {
			return nil, fmt.Errorf("route %d %q: %w", i, r.GetName(), err)
		}
		if rt.Forward != nil && rt.Forward.Retry == nil {
			rt.Forward.Retry = retry
		}
		out.Routes = append(out.Routes, rt)
	}
	return out, nil
}

func (d *routeDecoder) route(r *routev3.Route) (*conf.Route, error) {
	// Harmless: decorator and tracing (no tracer), metadata (for filters that are not built), stat_prefix.
	if err := only(r, "name", "match", "route", "redirect", "direct_response", "metadata", "decorator", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "stat_prefix", "tracing", "typed_per_filter_config"); err != nil {
		return nil, err
	}
	out := &conf.Route{Name: r.GetName()}
	var err error
	if out.Fault, err = routeFilters(r.GetTypedPerFilterConfig()); err != nil {
		return nil, fmt.Errorf("typed_per_filter_config: %w", err)
	}
	if out.Match, err = routeMatch(r.GetMatch()); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	if out.Headers, err = headerOps(r); err != nil {
		return nil, err
	}
	switch a := r.GetAction().(type) {
	case *routev3.Route_Route:
		if out.Forward, err = d.forward(a.Route); err != nil {
			return nil, fmt.Errorf("route: %w", err)
		}
	case *routev3.Route_Redirect:
		if out.Redirect, err = redirect(a.Redirect); err != nil {
			return nil, fmt.Errorf("redirect: %w", err)
		}
	case *routev3.Route_DirectResponse:
		if err := only(a.DirectResponse, "status", "body"); err != nil {
			return nil, fmt.Errorf("direct_response: %w", err)
		}
		b, file, err := bytesOf(a.DirectResponse.GetBody())
		if err != nil || file != "" {
			return nil, errors.New("direct_response: only inline bodies are supported")
		}
		if int64(len(b)) > d.maxBody {
			return nil, fmt.Errorf("direct_response: body of %d bytes is over the limit of %d", len(b), d.maxBody)
		}
		code := a.DirectResponse.GetStatus()
		if code < 200 || code > 599 {
			return nil, fmt.Errorf("direct_response: status %d is out of range", code)
		}
		out.Direct = &conf.Direct{Code: int(code), Body: b}
	default:
		return nil, errors.New("no action that is supported")
	}
	return out, nil
}

func routeMatch(m *routev3.RouteMatch) (out conf.RouteMatch, err error) {
	if m == nil {
		return out, errors.New("missing")
	}
	if err := only(m, "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "runtime_fraction", "headers", "query_parameters", "grpc"); err != nil {
		return out, err
	}
	out.IgnoreCase = m.CaseSensitive != nil && !m.CaseSensitive.Value
	out.Fraction = conf.Always
	out.GRPC = m.Grpc != nil
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Path, out.Value = conf.PathPrefix, []byte(p.Prefix)
		if p.Prefix == "" || p.Prefix == "/" {
			out.Path = conf.PathAny
			out.Value = []byte(p.Prefix)
		}
	case *routev3.RouteMatch_Path:
		out.Path, out.Value = conf.PathExact, []byte(p.Path)
	case *routev3.RouteMatch_SafeRegex:
		out.Path = conf.PathRegex
		if out.Regex, err = fullRegex(p.SafeRegex); err != nil {
			return out, err
		}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if strings.HasSuffix(p.PathSeparatedPrefix, "/") {
			return out, fmt.Errorf("path_separated_prefix %q must not end in a slash", p.PathSeparatedPrefix)
		}
		out.Path, out.Value = conf.PathSeparatedPrefix, []byte(p.PathSeparatedPrefix)
	default:
		return out, errors.New("no path specifier that is supported")
	}
	if f := m.RuntimeFraction; f != nil {
		out.Fraction = fraction(f.GetDefaultValue())
	}
	for _, h := range m.Headers {
		hm, err := headerMatch(h)
		if err != nil {
			return out, fmt.Errorf("header %q: %w", h.GetName(), err)
		}
		out.Headers = append(out.Headers, hm)
	}
	for _, q := range m.QueryParameters {
		qm := conf.QueryMatch{Name: q.GetName()}
		switch s := q.GetQueryParameterMatchSpecifier().(type) {
		case nil:
			qm.Present = true
		case *routev3.QueryParameterMatcher_PresentMatch:
			if !s.PresentMatch {
				return out, fmt.Errorf("query parameter %q: present_match false is not supported", q.Name)
			}
			qm.Present = true
		case *routev3.QueryParameterMatcher_StringMatch:
			if qm.Match, err = stringMatch(s.StringMatch); err != nil {
				return out, fmt.Errorf("query parameter %q: %w", q.Name, err)
			}
		}
		out.Query = append(out.Query, qm)
	}
	return out, nil
}

func headerMatch(h *routev3.HeaderMatcher) (out conf.HeaderMatch, err error) {
	out = conf.HeaderMatch{Name: lower(h.GetName()), Invert: h.GetInvertMatch(), MissingIsEmpty: h.GetTreatMissingHeaderAsEmpty()}
	if len(out.Name) == 0 {
		return out, errors.New("name is empty")
	}
	switch s := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		out.Kind, out.Present = conf.HeaderPresent, true
	case *routev3.HeaderMatcher_PresentMatch:
		out.Kind, out.Present = conf.HeaderPresent, s.PresentMatch
	case *routev3.HeaderMatcher_RangeMatch:
		out.Kind, out.From, out.To = conf.HeaderRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_StringMatch:
		out.Match, err = stringMatch(s.StringMatch)
	case *routev3.HeaderMatcher_ExactMatch: // older control planes
		out.Match = conf.StringMatch{Kind: conf.Exact, Value: s.ExactMatch}
	case *routev3.HeaderMatcher_PrefixMatch: // older control planes
		out.Match = conf.StringMatch{Kind: conf.Prefix, Value: s.PrefixMatch}
	case *routev3.HeaderMatcher_SuffixMatch: // older control planes
		out.Match = conf.StringMatch{Kind: conf.Suffix, Value: s.SuffixMatch}
	case *routev3.HeaderMatcher_SafeRegexMatch: // older control planes
		out.Match.Kind = conf.Regex
		out.Match.Regex, err = fullRegex(s.SafeRegexMatch)
	default:
		err = errors.New("match is not supported")
	}
	return out, err
}

// durations reads how long a stream may live, with gRPC's own limit.
func durations(a *routev3.RouteAction, out *conf.Forward) (err error) {
	if s := a.MaxStreamDuration; s != nil {
		if err := only(s, "max_stream_duration", "grpc_timeout_header_max"); err != nil {
			return fmt.Errorf("max_stream_duration: %w", err)
		}
		if out.MaxDuration, err = duration(s.MaxStreamDuration, 0); err != nil {
			return fmt.Errorf("max_stream_duration: %w", err)
		}
		if out.MaxDuration == out.Timeout {
			out.MaxDuration = 0 // the timeout does it
		}
		out.GRPCTimeout = s.GrpcTimeoutHeaderMax != nil
		if out.GRPCMax, err = duration(s.GrpcTimeoutHeaderMax, 0); err != nil {
			return fmt.Errorf("grpc_timeout_header_max: %w", err)
		}
	}
	if a.MaxGrpcTimeout != nil && !out.GRPCTimeout { // the older name
		out.GRPCTimeout = true
		if out.GRPCMax, err = duration(a.MaxGrpcTimeout, 0); err != nil {
			return fmt.Errorf("max_grpc_timeout: %w", err)
		}
	}
	return nil
}

func (d *routeDecoder) forward(a *routev3.RouteAction) (*conf.Forward, error) {
	// priority only chooses circuit breakers.
	if err := only(a, "cluster", "cluster_header", "weighted_clusters", "cluster_not_found_response_code", "prefix_rewrite", "regex_rewrite",
		"host_rewrite_literal", "auto_host_rewrite", "host_rewrite_header", "host_rewrite_path_regex", "append_x_forwarded_host", "timeout",
		"idle_timeout", "retry_policy", "priority", "max_stream_duration", "max_grpc_timeout", "upgrade_configs", "hash_policy"); err != nil {
		return nil, err
	}
	out := &conf.Forward{AppendXFHost: a.AppendXForwardedHost}
	if err := d.targets(a, out); err != nil {
		return nil, err
	}
	switch a.ClusterNotFoundResponseCode {
	case routev3.RouteAction_NOT_FOUND:
		out.NotFoundCode = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		out.NotFoundCode = 500
	default:
		out.NotFoundCode = 503
	}
	var err error
	if a.PrefixRewrite != "" {
		out.PrefixRewrite = []byte(a.PrefixRewrite)
	}
	if out.RegexRewrite, err = regexRewrite(a.RegexRewrite); err != nil {
		return nil, fmt.Errorf("regex_rewrite: %w", err)
	}
	switch h := a.GetHostRewriteSpecifier().(type) {
	case *routev3.RouteAction_HostRewriteLiteral:
		out.HostRewrite = []byte(h.HostRewriteLiteral)
	case *routev3.RouteAction_AutoHostRewrite:
		out.AutoHost = h.AutoHostRewrite.GetValue()
	case *routev3.RouteAction_HostRewriteHeader:
		out.HostHeader = lower(h.HostRewriteHeader)
	case *routev3.RouteAction_HostRewritePathRegex:
		if out.HostPathRegex, err = regexRewrite(h.HostRewritePathRegex); err != nil {
			return nil, fmt.Errorf("host_rewrite_path_regex: %w", err)
		}
	}
	if out.Timeout, err = duration(a.Timeout, 15*time.Second); err != nil {
		return nil, fmt.Errorf("timeout: %w", err)
	}
	if out.IdleTimeout, err = duration(a.IdleTimeout, 0); err != nil {
		return nil, fmt.Errorf("idle_timeout: %w", err)
	}
	if err := durations(a, out); err != nil { // after the timeout
		return nil, err
	}
	if out.Retry, err = retryPolicy(a.RetryPolicy); err != nil {
		return nil, fmt.Errorf("retry_policy: %w", err)
	}
	if out.Hash, err = hashPolicies(a.HashPolicy); err != nil {
		return nil, fmt.Errorf("hash_policy: %w", err)
	}
	for _, u := range a.UpgradeConfigs {
		if out.Upgrades == nil {
			out.Upgrades = map[string]bool{}
		}
		out.Upgrades[strings.ToLower(u.GetUpgradeType())] = u.Enabled == nil || u.Enabled.Value
	}
	return out, nil
}

func (d *routeDecoder) targets(a *routev3.RouteAction, out *conf.Forward) error {
	switch c := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		if c.Cluster == "" {
			return errors.New("cluster is empty")
		}
		out.Clusters, out.TotalWeight = []conf.WeightedCluster{{Name: c.Cluster, Weight: 1}}, 1
	case *routev3.RouteAction_ClusterHeader:
		out.ClusterHeader = lower(c.ClusterHeader)
		if len(out.ClusterHeader) == 0 {
			return errors.New("cluster_header is empty")
		}
	case *routev3.RouteAction_WeightedClusters:
		if err := only(c.WeightedClusters, "clusters", "total_weight", "use_hash_policy"); err != nil {
			return fmt.Errorf("weighted_clusters: %w", err)
		}
		out.HashSplit = c.WeightedClusters.GetUseHashPolicy().GetValue()
		for _, w := range c.WeightedClusters.GetClusters() {
			if err := only(w, "name", "weight", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove", "host_rewrite_literal"); err != nil {
				return fmt.Errorf("weighted_clusters %q: %w", w.GetName(), err)
			}
			h, err := headerOps(w)
			if err != nil {
				return fmt.Errorf("weighted_clusters %q: %w", w.GetName(), err)
			}
			cw := conf.WeightedCluster{Name: w.GetName(), Weight: w.GetWeight().GetValue(), Headers: h}
			if s := w.GetHostRewriteLiteral(); s != "" {
				cw.HostRewrite = []byte(s)
			}
			if cw.Name == "" {
				return errors.New("weighted_clusters: name is empty")
			}
			if err := addWeight(&out.Clusters, &out.TotalWeight, cw); err != nil {
				return err
			}
		}
		if out.TotalWeight == 0 {
			return errors.New("weighted_clusters: the weights add up to 0")
		}
	default:
		return errors.New("no cluster specifier that is supported")
	}
	for _, c := range out.Clusters {
		d.clusters[c.Name] = true
	}
	return nil
}

func retryPolicy(p *routev3.RetryPolicy) (*conf.Retry, error) {
	if p == nil {
		return nil, nil
	}
	if err := only(p, "retry_on", "num_retries", "per_try_timeout", "retry_host_predicate", "host_selection_retry_max_attempts", "retriable_status_codes", "retry_back_off", "retry_priority"); err != nil {
		return nil, err
	}
	out := &conf.Retry{Num: 1, HostAttempts: 1}
	on, unknown := conf.ParseRetryOn(p.RetryOn)
	if len(unknown) > 0 {
		return nil, fmt.Errorf("retry_on: %s is not supported", strings.Join(unknown, ", "))
	}
	if on&conf.RetryHeaders != 0 {
		return nil, errors.New("retry_on: retriable-headers is not supported")
	}
	out.On = on
	if p.NumRetries != nil {
		out.Num = int(min(p.NumRetries.Value, 1000))
	}
	var err error
	if out.PerTry, err = duration(p.PerTryTimeout, 0); err != nil {
		return nil, fmt.Errorf("per_try_timeout: %w", err)
	}
	for _, h := range p.RetryHostPredicate {
		if h.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			return nil, fmt.Errorf("retry_host_predicate %q is not supported", h.GetName())
		}
		out.PreviousHosts = true
	}
	if p.HostSelectionRetryMaxAttempts > 0 {
		out.HostAttempts = int(min(p.HostSelectionRetryMaxAttempts, 1000))
	}
	if p.RetryPriority != nil {
		return nil, errors.New("retry_priority is not supported")
	}
	for _, c := range p.RetriableStatusCodes {
		out.Codes = append(out.Codes, int(c))
	}
	if b := p.RetryBackOff; b != nil {
		if out.BackoffBase, err = duration(b.BaseInterval, 0); err != nil {
			return nil, fmt.Errorf("retry_back_off: %w", err)
		}
		if out.BackoffMax, err = duration(b.MaxInterval, 0); err != nil {
			return nil, fmt.Errorf("retry_back_off: %w", err)
		}
	}
	return out, nil
}

func redirect(a *routev3.RedirectAction) (*conf.Redirect, error) {
	if err := only(a, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect", "prefix_rewrite", "regex_rewrite", "response_code", "strip_query"); err != nil {
		return nil, err
	}
	out := &conf.Redirect{Scheme: a.GetSchemeRedirect(), HTTPS: a.GetHttpsRedirect(), Port: a.GetPortRedirect(), StripQuery: a.GetStripQuery()}
	if a.GetHostRedirect() != "" {
		out.Host = []byte(a.HostRedirect)
	}
	var err error
	switch p := a.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		out.Path = []byte(p.PathRedirect)
	case *routev3.RedirectAction_PrefixRewrite:
		out.Prefix = []byte(p.PrefixRewrite)
	case *routev3.RedirectAction_RegexRewrite:
		if out.Regex, err = regexRewrite(p.RegexRewrite); err != nil {
			return nil, err
		}
	}
	codes := map[routev3.RedirectAction_RedirectResponseCode]int{routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302,
		routev3.RedirectAction_SEE_OTHER: 303, routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308}
	if out.Code = codes[a.GetResponseCode()]; out.Code == 0 {
		return nil, fmt.Errorf("response_code %d is unknown", a.GetResponseCode())
	}
	return out, nil
}

// headerHolder is any message with the four lists of header changes.
type headerHolder interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func headerOps(m headerHolder) (out conf.HeaderOps, err error) {
	if out.Add, err = headerAdds(m.GetRequestHeadersToAdd()); err != nil {
		return out, fmt.Errorf("request_headers_to_add: %w", err)
	}
	if out.RespAdd, err = headerAdds(m.GetResponseHeadersToAdd()); err != nil {
		return out, fmt.Errorf("response_headers_to_add: %w", err)
	}
	for _, n := range m.GetRequestHeadersToRemove() {
		if n = strings.ToLower(n); n == "host" || strings.HasPrefix(n, ":") {
			return out, fmt.Errorf("request_headers_to_remove: %q cannot be removed", n)
		}
		out.Remove = append(out.Remove, []byte(n))
	}
	for _, n := range m.GetResponseHeadersToRemove() {
		out.RespRemove = append(out.RespRemove, lower(n))
	}
	return out, nil
}

func headerAdds(list []*corev3.HeaderValueOption) ([]conf.HeaderOp, error) {
	var out []conf.HeaderOp
	for _, o := range list {
		if err := only(o, "header", "append", "append_action", "keep_empty_value"); err != nil {
			return nil, err
		}
		op := conf.HeaderOp{Name: lower(o.GetHeader().GetKey()), KeepEmpty: o.GetKeepEmptyValue()}
		if len(op.Name) == 0 || !headerText(string(op.Name), true) {
			return nil, fmt.Errorf("%q is no header name", o.GetHeader().GetKey())
		}
		value := o.GetHeader().GetValue()
		if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if !headerText(value, false) {
			return nil, fmt.Errorf("header %q: the value holds a control character", op.Name)
		}
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			op.Mode = conf.AddIfAbsent
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			op.Mode = conf.Overwrite
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			op.Mode = conf.OverwriteIfExists
		default:
			return nil, fmt.Errorf("header %q: append_action %d is unknown", op.Name, o.GetAppendAction())
		}
		if a := o.GetAppend(); a != nil && !a.Value { // older control planes
			op.Mode = conf.Overwrite
		}
		f, err := conf.ParseFormat(value)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", op.Name, err)
		}
		switch {
		case len(f.Parts) == 0:
			op.Value = []byte{}
		case len(f.Parts) == 1 && f.Parts[0].Command == "":
			op.Value = f.Parts[0].Literal
		default:
			op.Format = f
		}
		out = append(out, op)
	}
	return out, nil
}

// headerText keeps line ends and other control characters out of messages.
func headerText(s string, name bool) bool {
	for i, c := range []byte(s) {
		if c < ' ' && (c != '\t' || name) || c == 0x7f || name && (c == ' ' || c == ':' && i > 0) {
			return false
		}
	}
	return true
}
