package objects

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

func (v *validator) headers(at string, h *networkingv1alpha3.Headers) {
	for _, o := range []struct {
		field   string
		ops     *networkingv1alpha3.Headers_HeaderOperations
		request bool
	}{{"request", h.GetRequest(), true}, {"response", h.GetResponse(), false}} {
		for _, m := range []struct {
			field string
			of    map[string]string
		}{{"set", o.ops.GetSet()}, {"add", o.ops.GetAdd()}} {
			for _, k := range slices.Sorted(maps.Keys(m.of)) {
				field := fmt.Sprintf("%s.%s.%s[%s]", at, o.field, m.field, k)
				if o.request && isAuthority(k) {
					v.text(field, m.of[k], true)
					continue
				}
				v.headerName(field, k)
				v.headerValue(field, m.of[k])
			}
		}
		for i, k := range o.ops.GetRemove() {
			field := fmt.Sprintf("%s.%s.remove[%d]", at, o.field, i)
			if o.request && isAuthority(k) {
				v.err(field, fmt.Sprintf("a request cannot be without %q", k), "remove it")
				continue
			}
			v.headerName(field, k)
		}
	}
}

// isAuthority tells whether a header is the one that names the server: setting it is a rewrite of the authority, as in Istio.
func isAuthority(name string) bool {
	return strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority")
}

// A token of RFC 9110, section 5.6.2: what names of headers and of cookies are made of.
var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (v *validator) headerName(field, name string) {
	switch {
	case name == "":
		v.err(field, "no name", "name the header")
	case strings.HasPrefix(name, ":"):
		v.err(field, fmt.Sprintf("%q is no header but a part of the request itself", name), "name a header, such as x-user")
	case !token.MatchString(name):
		v.err(field, fmt.Sprintf("%q is no name of a header", name), "use letters, digits and dashes")
	}
}

// valueCommands are what a proxy puts into header values, between percent signs; true takes an argument. They are Envoy's.
var valueCommands = map[string]bool{
	"START_TIME": true, "REQ": true, "RESP": true, "TRAILER": true, "PROTOCOL": false, "RESPONSE_CODE": false, "RESPONSE_FLAGS": false,
	"RESPONSE_CODE_DETAILS": false, "CONNECTION_TERMINATION_DETAILS": false, "UPSTREAM_TRANSPORT_FAILURE_REASON": false,
	"BYTES_RECEIVED": false, "BYTES_SENT": false, "DURATION": false, "UPSTREAM_HOST": false, "UPSTREAM_CLUSTER": false,
	"UPSTREAM_CLUSTER_RAW": false, "UPSTREAM_LOCAL_ADDRESS": false, "DOWNSTREAM_LOCAL_ADDRESS": false, "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": false,
	"DOWNSTREAM_LOCAL_PORT": false, "DOWNSTREAM_REMOTE_ADDRESS": false, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": false,
	"DOWNSTREAM_REMOTE_PORT": false, "DOWNSTREAM_PEER_URI_SAN": false, "DOWNSTREAM_LOCAL_URI_SAN": false, "REQUESTED_SERVER_NAME": false,
	"ROUTE_NAME": false, "HOSTNAME": false, "RESPONSE_DURATION": false,
}

// valueCommand is a percent sign that stands for itself, or a command with its argument and its longest length.
var valueCommand = regexp.MustCompile(`^%(?:%|([A-Z0-9_]*)(\([^)]*\))?(?::[0-9]{1,9})?%)`)

// headerValue checks a value as Envoy reads it: percent signs are commands, or come in pairs
// (docs/root/configuration/http/http_conn_man/headers.rst, custom request/response headers).
func (v *validator) headerValue(field, value string) {
	if !v.text(field, value, false) {
		return
	}
	for rest := value; ; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			return
		}
		rest = rest[i:]
		m := valueCommand.FindStringSubmatch(rest)
		if m == nil {
			v.err(field, fmt.Sprintf("%q holds a percent sign that begins no command", value), "write %% for a percent sign")
			return
		}
		if m[0] != "%%" {
			takes, known := valueCommands[m[1]]
			if !known {
				v.err(field, fmt.Sprintf("%q holds %s, which is not supported", value, m[0]), "write %% for a percent sign"+orDidYouMean(m[1], keys(valueCommands)))
				return
			}
			if m[2] != "" && !takes {
				v.err(field, fmt.Sprintf("%q: %s takes no argument", value, m[1]), fmt.Sprintf("write %%%s%%", m[1]))
				return
			}
		}
		rest = rest[len(m[0]):]
	}
}

// text checks what becomes part of a message's head, where control characters would begin another line. A word holds no spaces
// either. It tells whether all is well.
func (v *validator) text(field, s string, word bool) bool {
	for _, c := range []byte(s) {
		if c < ' ' && (c != '\t' || word) || c == 0x7f || c == ' ' && word {
			v.err(field, fmt.Sprintf("%q holds a character that cannot be there", s), "remove spaces and line ends")
			return false
		}
	}
	return true
}

func orDidYouMean(word string, all []string) string {
	if s := Nearest(word, all); s != "" {
		return fmt.Sprintf(", or did you mean %%%s%%?", s)
	}
	return ""
}
