package objects

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Validate says what is wrong with a VirtualService, DestinationRule or Gateway by itself: what Istio's API does not allow
// and what this mesh does not support. The result is sorted by field and empty for a good object. Objects of other types
// are not judged.
func Validate(obj any) []Problem {
	v := &validator{}
	switch o := obj.(type) {
	case *networking.VirtualService:
		v.list = supportedVirtualService.unsupported(o.Spec.ProtoReflect(), "spec")
		v.virtualService(&o.Spec)
	case *networking.DestinationRule:
		v.list = supportedDestinationRule.unsupported(o.Spec.ProtoReflect(), "spec")
		v.destinationRule(&o.Spec)
	case *networking.Gateway:
		v.list = supportedGateway.unsupported(o.Spec.ProtoReflect(), "spec")
		v.gateway(&o.Spec)
	}
	return v.list
}

type validator struct{ list []Problem }

func (v *validator) err(field, message, fix string) {
	v.list = append(v.list, Problem{Severity: Error, Field: field, Message: message, Fix: fix})
}

func (v *validator) warn(field, message, fix string) {
	v.list = append(v.list, Problem{Severity: Warning, Field: field, Message: message, Fix: fix})
}

func (v *validator) virtualService(s *networkingv1alpha3.VirtualService) {
	if len(s.Hosts) == 0 {
		v.err("spec.hosts", "no host", "name the hosts that the rules are for")
	}
	for i, h := range s.Hosts {
		v.host(fmt.Sprintf("spec.hosts[%d]", i), h, true)
	}
	v.exportTo(s.ExportTo)
	if len(s.Http)+len(s.Tcp)+len(s.Tls) == 0 {
		v.err("spec", "no rule", "add http, tls or tcp rules")
	}
	for i, r := range s.Http {
		v.httpRoute(fmt.Sprintf("spec.http[%d]", i), r)
		if len(r.GetMatch()) == 0 && i < len(s.Http)-1 {
			v.warn(fmt.Sprintf("spec.http[%d]", i+1), fmt.Sprintf("never reached: http[%d] has no match and takes every request", i), "move the rule without match to the end")
		}
	}
	for i, r := range s.Tls {
		v.tlsRoute(fmt.Sprintf("spec.tls[%d]", i), r, s.Hosts)
	}
	for i, r := range s.Tcp {
		v.l4Routes(fmt.Sprintf("spec.tcp[%d].route", i), r.Route)
	}
}

func (v *validator) tlsRoute(at string, r *networkingv1alpha3.TLSRoute, hosts []string) {
	if len(r.Match) == 0 {
		v.err(at+".match", "no match", "name the SNI hosts that the rule is for")
	}
	for i, m := range r.Match {
		if len(m.SniHosts) == 0 {
			v.err(fmt.Sprintf("%s.match[%d].sniHosts", at, i), "no host", "name the SNI hosts that the rule is for")
		}
		for j, h := range m.SniHosts {
			field := fmt.Sprintf("%s.match[%d].sniHosts[%d]", at, i, j)
			v.host(field, h, true)
			if !slices.ContainsFunc(hosts, func(of string) bool { return within(h, of) }) {
				v.err(field, fmt.Sprintf("%q is none of the hosts of the VirtualService", h), "use one of spec.hosts, or a name that one of them covers")
			}
		}
	}
	v.l4Routes(at+".route", r.Route)
}

// within tells whether everything that host stands for is covered by of; both may start with a wildcard.
func within(host, of string) bool {
	suffix, wild := strings.CutPrefix(of, "*")
	if wild {
		return strings.HasSuffix(strings.TrimPrefix(host, "*"), suffix)
	}
	return host == of
}

func (v *validator) l4Routes(at string, routes []*networkingv1alpha3.RouteDestination) {
	if len(routes) == 0 {
		v.err(at, "no destination", "say where connections go")
	}
	weights := make([]int32, len(routes))
	for i, d := range routes {
		v.destination(fmt.Sprintf("%s[%d].destination", at, i), d.Destination)
		weights[i] = d.Weight
	}
	v.weights(at, weights)
}

func (v *validator) httpRoute(at string, r *networkingv1alpha3.HTTPRoute) {
	actions := 0
	for _, set := range []bool{len(r.Route) > 0, r.Redirect != nil, r.DirectResponse != nil, r.Delegate != nil} {
		if set {
			actions++
		}
	}
	switch {
	case actions == 0:
		v.err(at, "neither route, redirect nor directResponse", "say what to do with the request")
	case actions > 1:
		v.err(at, "more than one of route, redirect, directResponse and delegate", "keep one")
	}
	weights := make([]int32, len(r.Route))
	for j, d := range r.Route {
		weights[j] = d.Weight
	}
	v.weights(at+".route", weights)
	for j, d := range r.Route {
		v.destination(fmt.Sprintf("%s.route[%d].destination", at, j), d.Destination)
		v.headers(fmt.Sprintf("%s.route[%d].headers", at, j), d.Headers)
	}
	v.headers(at+".headers", r.Headers)
	for j, m := range r.Match {
		v.httpMatch(fmt.Sprintf("%s.match[%d]", at, j), m)
	}
	if d := r.Redirect; d != nil {
		switch d.RedirectCode {
		case 0, 301, 302, 303, 307, 308:
		default:
			v.err(at+".redirect.redirectCode", fmt.Sprintf("%d is not a redirect that a proxy gives", d.RedirectCode), "use 301, 302, 303, 307 or 308")
		}
		if d.Uri != "" && d.PrefixRewrite != "" {
			v.err(at+".redirect", "both uri and prefixRewrite", "keep one")
		}
		v.text(at+".redirect.uri", d.Uri, true)
		v.text(at+".redirect.prefixRewrite", d.PrefixRewrite, true)
		v.text(at+".redirect.authority", d.Authority, true)
		v.text(at+".redirect.scheme", d.Scheme, true)
	}
	if d := r.DirectResponse; d != nil {
		if d.Status < 200 || d.Status > 599 {
			v.err(at+".directResponse.status", fmt.Sprintf("%d is not a response status", d.Status), "use 200 to 599")
		}
		if n := max(len(d.GetBody().GetString_()), len(d.GetBody().GetBytes())); n > maxBody {
			v.err(at+".directResponse.body", fmt.Sprintf("a body of %d bytes is over %d", n, maxBody), "serve it from a service")
		}
	}
	if len(r.Route) == 0 && (r.Redirect != nil || r.DirectResponse != nil) {
		v.notForwarded(at, r)
	}
	if r.Fault != nil {
		v.fault(at+".fault", r.Fault)
	}
	v.duration(at+".timeout", r.Timeout)
	if t := r.Retries; t != nil {
		if t.Attempts < 0 {
			v.err(at+".retries.attempts", fmt.Sprintf("%d is negative", t.Attempts), "use 0 for no retries")
		}
		v.duration(at+".retries.perTryTimeout", t.PerTryTimeout)
		v.duration(at+".retries.backoff", t.Backoff)
		v.retryOn(at+".retries.retryOn", t.RetryOn)
	}
	if w := r.Rewrite; w != nil {
		if w.UriRegexRewrite != nil {
			v.substitution(at+".rewrite.uriRegexRewrite", w.UriRegexRewrite)
			if w.Uri != "" {
				v.err(at+".rewrite", "both uri and uriRegexRewrite", "keep one")
			}
		}
		v.text(at+".rewrite.uri", w.Uri, true)
		v.text(at+".rewrite.authority", w.Authority, true)
	}
}

// notForwarded says what a rule has that is for requests which go on to a destination, as this one's do not.
func (v *validator) notForwarded(at string, r *networkingv1alpha3.HTTPRoute) {
	if r.Rewrite != nil { // an error in Istio, too
		v.err(at+".rewrite", "rewrite beside redirect or directResponse", "say in the redirect where to, or keep one")
	}
	if r.Fault != nil { // as well
		v.err(at+".fault", "fault beside redirect or directResponse", "keep one")
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"timeout", r.Timeout != nil}, {"retries", r.Retries != nil}} {
		if f.set {
			v.warn(at+"."+f.name, "has no effect: the proxy answers by itself", "remove it")
		}
	}
}

// maxBody is how long a body may be that a proxy answers with by itself, as in Istio.
const maxBody = 1 << 20

func (v *validator) weights(at string, weights []int32) {
	total := uint64(0)
	for i, w := range weights {
		if w < 0 {
			v.err(fmt.Sprintf("%s[%d].weight", at, i), fmt.Sprintf("%d is negative", w), "use 0 or more")
			return
		}
		total += uint64(w)
	}
	if len(weights) > 1 && total == 0 {
		v.err(at, "no destination has a weight", "give at least one a weight above 0")
	}
	if total > math.MaxUint32 {
		v.err(at, fmt.Sprintf("the weights add up to %d", total), "use smaller ones, such as percentages")
	}
}

func (v *validator) httpMatch(at string, m *networkingv1alpha3.HTTPMatchRequest) {
	for _, s := range []struct {
		name string
		m    *networkingv1alpha3.StringMatch
	}{{"uri", m.Uri}, {"scheme", m.Scheme}, {"method", m.Method}, {"authority", m.Authority}} {
		if s.m != nil {
			if s.m.MatchType == nil {
				v.err(at+"."+s.name, "empty", "say exact, prefix or regex")
			}
			v.stringMatch(at+"."+s.name, s.m)
		}
	}
	for _, h := range []struct {
		name string
		m    map[string]*networkingv1alpha3.StringMatch
	}{{"headers", m.Headers}, {"withoutHeaders", m.WithoutHeaders}, {"queryParams", m.QueryParams}} {
		for _, k := range slices.Sorted(maps.Keys(h.m)) {
			s, field := h.m[k], fmt.Sprintf("%s.%s[%s]", at, h.name, k)
			if strings.HasPrefix(k, "@request.auth.claims") {
				v.err(field, "matching by JWT claims is not supported", "match by a header")
			}
			if k == "" {
				v.err(field, "no name", "say what to look at")
			}
			if s.GetRegex() != "*" {
				v.stringMatch(field, s)
			}
		}
	}
	if m.StatPrefix != "" {
		v.err(at+".statPrefix", "field statPrefix is not supported", "remove it")
	}
}

// retryWords are what a proxy understands in retryOn, beside status codes.
var retryWords = map[string]bool{
	"5xx": true, "gateway-error": true, "reset": true, "reset-before-request": true, "connect-failure": true, "envoy-ratelimited": true,
	"retriable-4xx": true, "refused-stream": true, "retriable-status-codes": true, "http3-post-connect-failure": true,
	"cancelled": true, "deadline-exceeded": true, "internal": true, "resource-exhausted": true, "unavailable": true,
}

func (v *validator) retryOn(field, value string) {
	for w := range strings.SplitSeq(value, ",") {
		w = strings.TrimSpace(w)
		if code, err := strconv.Atoi(w); err == nil && http.StatusText(code) != "" || w == "" || retryWords[w] {
			continue
		}
		if w == "retriable-headers" {
			v.err(field, "retriable-headers is not supported: no field says which headers", "name the status codes to retry on")
			continue
		}
		v.err(field, fmt.Sprintf("%q is not a condition to retry on", w), didYouMean(w, keys(retryWords)))
	}
}

func (v *validator) destination(at string, d *networkingv1alpha3.Destination) {
	if d.GetHost() == "" {
		v.err(at+".host", "no host", "name the service")
		return
	}
	v.host(at+".host", d.Host, false)
	if d.GetPort().GetNumber() > 65535 {
		v.err(at+".port.number", fmt.Sprintf("%d is not a port", d.Port.Number), "use 1 to 65535")
	}
}

func (v *validator) destinationRule(s *networkingv1alpha3.DestinationRule) {
	if s.Host == "" {
		v.err("spec.host", "no host", "name the service")
	} else {
		v.host("spec.host", s.Host, true)
	}
	v.exportTo(s.ExportTo)
	v.policy("spec.trafficPolicy", s.TrafficPolicy)
	seen := map[string]bool{}
	for i, sub := range s.Subsets {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		switch {
		case sub.Name == "":
			v.err(at+".name", "no name", "name the subset")
		case seen[sub.Name]:
			v.err(at+".name", fmt.Sprintf("subset %q is there twice", sub.Name), "give it another name")
		default:
			for _, msg := range validation.IsDNS1123Label(sub.Name) {
				v.err(at+".name", fmt.Sprintf("%q: %s", sub.Name, msg), "use lower-case letters, digits and dashes")
			}
		}
		seen[sub.Name] = true
		v.policy(at+".trafficPolicy", sub.TrafficPolicy)
	}
}

func (v *validator) host(field, h string, wildcard bool) {
	name, ok := strings.CutPrefix(h, "*")
	switch {
	case ok && !wildcard:
		v.err(field, fmt.Sprintf("%q: a wildcard is no destination", h), "name one service")
		return
	case ok && (name == "" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-")):
		name = strings.TrimLeft(name, ".-")
		if name == "" {
			return
		}
	}
	for _, msg := range validation.IsDNS1123Subdomain(strings.ToLower(name)) {
		v.err(field, fmt.Sprintf("%q is not a host name: %s", h, msg), "use a service's name or a DNS name")
	}
}

func (v *validator) exportTo(list []string) {
	for i, e := range list {
		if e != "*" && e != "." && e != "~" && len(validation.IsDNS1123Label(e)) > 0 {
			v.err(fmt.Sprintf("spec.exportTo[%d]", i), fmt.Sprintf("%q is not a namespace", e), `use ".", "*" or a namespace`)
		}
	}
}

func (v *validator) duration(field string, d *durationpb.Duration) {
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		v.err(field, "not a duration", "use one such as 2s")
	case d.AsDuration() < 0:
		v.err(field, fmt.Sprintf("%v is negative", d.AsDuration()), "use a duration such as 2s")
	}
}

// span is a duration that is above 0.
func (v *validator) span(field string, d *durationpb.Duration, what, example string) {
	if d != nil && (d.CheckValid() != nil || d.AsDuration() <= 0) {
		v.err(field, fmt.Sprintf("%v %s", d.AsDuration(), what), "use a duration such as "+example)
	}
}

func (v *validator) stringMatch(at string, m *networkingv1alpha3.StringMatch) {
	if r, ok := m.GetMatchType().(*networkingv1alpha3.StringMatch_Regex); ok {
		v.regex(at+".regex", r.Regex)
	}
}

// regex checks an expression that has to match from end to end.
func (v *validator) regex(field, r string) *regexp.Regexp {
	if r == "" {
		v.err(field, "empty", "use .* for everything")
		return nil
	}
	re, err := regexp.Compile(r)
	if err == nil {
		_, err = regexp.Compile("^(?:" + r + ")$")
	}
	if err != nil {
		v.err(field, fmt.Sprintf("%q is not a regular expression: %v", r, err), "use RE2 syntax")
		return nil
	}
	return re
}

// substitution checks what a match is replaced by: \0 to \9 stand for the match and its groups, \\ for a backslash.
func (v *validator) substitution(at string, r *networkingv1alpha3.RegexRewrite) {
	re := v.regex(at+".match", r.Match)
	field := at + ".rewrite"
	if re == nil || !v.text(field, r.Rewrite, true) {
		return
	}
	for i := 0; i < len(r.Rewrite); i++ {
		if r.Rewrite[i] != '\\' {
			continue
		}
		i++
		switch {
		case i == len(r.Rewrite) || r.Rewrite[i] != '\\' && (r.Rewrite[i] < '0' || r.Rewrite[i] > '9'):
			v.err(field, fmt.Sprintf("%q: a backslash before neither a digit nor another", r.Rewrite), `write \1 for the first group, \\ for a backslash`)
			return
		case r.Rewrite[i] != '\\' && int(r.Rewrite[i]-'0') > re.NumSubexp():
			v.err(field, fmt.Sprintf("%q names group %c, and the expression has %d", r.Rewrite, r.Rewrite[i], re.NumSubexp()), "put the part that you mean into parentheses in match")
			return
		}
	}
}
