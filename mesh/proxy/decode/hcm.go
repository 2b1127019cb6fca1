package decode

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func manager(h *hcmv3.HttpConnectionManager) (*conf.HTTP, error) {
	// Harmless: tracing (no tracer is built; spans are never started), request_id_extension (its type is checked below), via is informative.
	if err := only(h, "codec_type", "stat_prefix", "rds", "route_config", "http_filters", "common_http_protocol_options", "http_protocol_options",
		"http2_protocol_options", "server_name", "server_header_transformation", "max_request_headers_kb", "stream_idle_timeout", "request_timeout",
		"request_headers_timeout", "drain_timeout", "delayed_close_timeout", "access_log", "use_remote_address", "xff_num_trusted_hops",
		"skip_xff_append", "generate_request_id", "preserve_external_request_id", "always_set_request_id_in_response", "forward_client_cert_details",
		"set_current_client_cert_details", "proxy_100_continue", "upgrade_configs", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action",
		"request_id_extension", "strip_matching_host_port", "strip_any_host_port", "tracing", "internal_address_config", "add_user_agent",
		"represent_ipv4_remote_address_as_ipv4_mapped_ipv6", "append_x_forwarded_port"); err != nil {
		return nil, err
	}
	if h.AddUserAgent.GetValue() || h.AppendXForwardedPort || h.Proxy_100Continue {
		return nil, fmt.Errorf("add_user_agent, append_x_forwarded_port and proxy_100_continue are not supported")
	}
	if c := h.InternalAddressConfig; c != nil {
		// Istio's default is private addresses, ours too.
		if err := only(c, "unix_sockets", "cidr_ranges"); err != nil {
			return nil, fmt.Errorf("internal_address_config: %w", err)
		}
	}
	out := &conf.HTTP{
		StatPrefix: h.StatPrefix, ServerName: []byte(h.ServerName), UseRemote: h.UseRemoteAddress.GetValue(), SkipXFF: h.SkipXffAppend,
		TrustedHops: int(min(h.XffNumTrustedHops, 100)), GenerateRequestID: h.GenerateRequestId == nil || h.GenerateRequestId.Value,
		PreserveRequestID: h.PreserveExternalRequestId, ReturnRequestID: h.AlwaysSetRequestIdInResponse, NormalizePath: h.NormalizePath.GetValue(),
		MergeSlashes: h.MergeSlashes, MaxHeaderBytes: 60 << 10, MaxHeaders: 100,
	}
	if len(out.ServerName) == 0 {
		out.ServerName = []byte("envoy")
	}
	switch h.CodecType {
	case hcmv3.HttpConnectionManager_AUTO:
	case hcmv3.HttpConnectionManager_HTTP1:
		out.Codec = conf.CodecHTTP1
	case hcmv3.HttpConnectionManager_HTTP2:
		out.Codec = conf.CodecHTTP2
	default:
		return nil, fmt.Errorf("codec_type %s is not supported", h.CodecType)
	}
	if err := http2Options(h.Http2ProtocolOptions, &out.HTTP2); err != nil {
		return nil, err
	}
	if err := managerModes(h, out); err != nil {
		return nil, err
	}
	if err := managerTimes(h, out); err != nil {
		return nil, err
	}
	if err := managerProtocol(h, out); err != nil {
		return nil, err
	}
	for _, u := range h.UpgradeConfigs {
		if err := only(u, "upgrade_type", "enabled"); err != nil {
			return nil, fmt.Errorf("upgrade_configs: %w", err)
		}
		if strings.EqualFold(u.UpgradeType, "CONNECT") {
			return nil, fmt.Errorf("upgrade_configs: CONNECT is not supported")
		}
		if u.Enabled == nil || u.Enabled.Value {
			out.Upgrades = append(out.Upgrades, strings.ToLower(u.UpgradeType))
		}
	}
	var err error
	switch r := h.RouteSpecifier.(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		if out.RouteName = r.Rds.GetRouteConfigName(); out.RouteName == "" {
			return nil, fmt.Errorf("rds: route_config_name is empty")
		}
	case *hcmv3.HttpConnectionManager_RouteConfig:
		if out.Routes, err = Routes(r.RouteConfig); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("no route specifier")
	}
	if out.AccessLog, err = accessLogs(h.AccessLog); err != nil {
		return nil, err
	}
	out.Faults = slices.ContainsFunc(h.HttpFilters, func(f *hcmv3.HttpFilter) bool { return f.GetName() == conf.FaultFilter })
	return out, httpFilters(h.HttpFilters)
}

func managerModes(h *hcmv3.HttpConnectionManager, out *conf.HTTP) error {
	switch h.ServerHeaderTransformation {
	case hcmv3.HttpConnectionManager_OVERWRITE:
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		out.ServerMode = conf.ServerAppendIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		out.ServerMode = conf.ServerPassThrough
	default:
		return fmt.Errorf("server_header_transformation %d is unknown", h.ServerHeaderTransformation)
	}
	switch h.ForwardClientCertDetails {
	case hcmv3.HttpConnectionManager_SANITIZE:
	case hcmv3.HttpConnectionManager_FORWARD_ONLY:
		out.XFCC = conf.XFCCForwardOnly
	case hcmv3.HttpConnectionManager_APPEND_FORWARD:
		out.XFCC = conf.XFCCAppendForward
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		out.XFCC = conf.XFCCSanitizeSet
	case hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		out.XFCC = conf.XFCCAlwaysForwardOnly
	default:
		return fmt.Errorf("forward_client_cert_details %d is unknown", h.ForwardClientCertDetails)
	}
	if d := h.SetCurrentClientCertDetails; d != nil {
		if err := only(d, "subject", "cert", "chain", "dns", "uri"); err != nil {
			return fmt.Errorf("set_current_client_cert_details: %w", err)
		}
		out.XFCCFields = conf.XFCCFields{Subject: d.Subject.GetValue(), Cert: d.Cert, Chain: d.Chain, DNS: d.Dns, URI: d.Uri}
	}
	switch h.PathWithEscapedSlashesAction {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		out.EscapedSlashes = conf.SlashesReject
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		out.EscapedSlashes = conf.SlashesRedirect
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		out.EscapedSlashes = conf.SlashesForward
	default:
		return fmt.Errorf("path_with_escaped_slashes_action %d is unknown", h.PathWithEscapedSlashesAction)
	}
	switch {
	case h.GetStripAnyHostPort():
		out.StripHostPort = conf.HostPortStripAny
	case h.StripMatchingHostPort:
		out.StripHostPort = conf.HostPortStripMatching
	}
	if n := typeName(h.RequestIdExtension.GetTypedConfig()); n != "" && n != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
		return fmt.Errorf("request_id_extension %q is not supported", n)
	}
	return nil
}

func managerTimes(h *hcmv3.HttpConnectionManager, out *conf.HTTP) (err error) {
	if out.StreamIdleTimeout, err = duration(h.StreamIdleTimeout, 5*time.Minute); err != nil {
		return fmt.Errorf("stream_idle_timeout: %w", err)
	}
	if out.RequestTimeout, err = duration(h.RequestTimeout, 0); err != nil {
		return fmt.Errorf("request_timeout: %w", err)
	}
	if out.HeadersTimeout, err = duration(h.RequestHeadersTimeout, 0); err != nil {
		return fmt.Errorf("request_headers_timeout: %w", err)
	}
	if out.DelayedClose, err = duration(h.DelayedCloseTimeout, time.Second); err != nil {
		return fmt.Errorf("delayed_close_timeout: %w", err)
	}
	if out.RequestTimeout != 0 {
		return fmt.Errorf("request_timeout is not supported")
	}
	return nil
}

func managerProtocol(h *hcmv3.HttpConnectionManager, out *conf.HTTP) (err error) {
	if kb := h.MaxRequestHeadersKb.GetValue(); kb > 0 {
		if kb > 8192 {
			return fmt.Errorf("max_request_headers_kb %d is over 8192", kb)
		}
		out.MaxHeaderBytes = int(kb) << 10
	}
	out.IdleTimeout = time.Hour
	if o := h.CommonHttpProtocolOptions; o != nil {
		if err := only(o, "idle_timeout", "max_connection_duration", "max_headers_count", "headers_with_underscores_action"); err != nil {
			return fmt.Errorf("common_http_protocol_options: %w", err)
		}
		if out.IdleTimeout, err = duration(o.IdleTimeout, time.Hour); err != nil {
			return fmt.Errorf("idle_timeout: %w", err)
		}
		if out.MaxConnDuration, err = duration(o.MaxConnectionDuration, 0); err != nil {
			return fmt.Errorf("max_connection_duration: %w", err)
		}
		if n := o.MaxHeadersCount.GetValue(); n > 0 {
			out.MaxHeaders = int(min(n, math.MaxInt16))
		}
		switch o.HeadersWithUnderscoresAction {
		case corev3.HttpProtocolOptions_REJECT_REQUEST:
			out.UnderscoreHeaders = conf.UnderscoreReject
		case corev3.HttpProtocolOptions_DROP_HEADER:
			out.UnderscoreHeaders = conf.UnderscoreDrop
		}
	}
	if o := h.HttpProtocolOptions; o != nil {
		// allow_absolute_url is on in any case, as is Envoy's default; enable_trailers is too.
		if err := only(o, "allow_absolute_url", "accept_http_10", "default_host_for_http_10", "enable_trailers"); err != nil {
			return fmt.Errorf("http_protocol_options: %w", err)
		}
		out.HTTP10 = o.AcceptHttp_10
		if o.DefaultHostForHttp_10 != "" {
			out.DefaultHost = []byte(o.DefaultHostForHttp_10)
		}
	}
	return nil
}

// httpFilters takes the chain: the router at its end, and filters that do nothing without a configuration on the route. Routes may
// have one for the fault filter and are refused for any other.
func httpFilters(fs []*hcmv3.HttpFilter) error {
	for i, f := range fs {
		n := typeName(f.GetTypedConfig())
		last := i == len(fs)-1
		if err := httpFilter(f.GetTypedConfig(), n, last); err != nil {
			if f.GetIsOptional() {
				continue
			}
			return fmt.Errorf("http filter %q: %w", f.GetName(), err)
		}
	}
	if len(fs) == 0 {
		return fmt.Errorf("http_filters is empty: the router must end it")
	}
	return nil
}

func httpFilter(a *anypb.Any, n string, last bool) error {
	if isRouter := n == "envoy.extensions.filters.http.router.v3.Router"; isRouter != last {
		return fmt.Errorf("the router must be the last filter and the only one of its kind")
	}
	switch n {
	case "envoy.extensions.filters.http.router.v3.Router":
		var r routerv3.Router
		if err := open(a, &r); err != nil {
			return err
		}
		// dynamic_stats and start_child_span steer statistics and tracing.
		return only(&r, "dynamic_stats", "start_child_span")
	case "envoy.extensions.filters.http.fault.v3.HTTPFault":
		var f faultv3.HTTPFault
		if err := open(a, &f); err != nil {
			return err
		}
		return only(&f)
	case "envoy.extensions.filters.http.cors.v3.Cors":
		var c corsv3.Cors
		if err := open(a, &c); err != nil {
			return err
		}
		return only(&c)
	case "io.istio.http.peer_metadata.Config", // always on
		"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",  // counters of gRPC only
		"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", // what it does is done for every mesh context
		"stats.PluginConfig": // Istio's metrics are always on
		return nil
	}
	return fmt.Errorf("%q is not supported", n)
}

func accessLogs(list []*accesslogv3.AccessLog) ([]conf.AccessLog, error) {
	var out []conf.AccessLog
	for _, l := range list {
		a, err := accessLog(l)
		if err != nil {
			return nil, fmt.Errorf("access_log %q: %w", l.GetName(), err)
		}
		out = append(out, a)
	}
	return out, nil
}

const defaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

func accessLog(l *accesslogv3.AccessLog) (out conf.AccessLog, err error) {
	if err := only(l, "name", "typed_config"); err != nil {
		return out, err
	}
	var format *corev3.SubstitutionFormatString
	switch n := typeName(l.GetTypedConfig()); n {
	case "envoy.extensions.access_loggers.file.v3.FileAccessLog":
		var f filelogv3.FileAccessLog
		if err := open(l.GetTypedConfig(), &f); err != nil {
			return out, err
		}
		if err := only(&f, "path", "log_format"); err != nil {
			return out, err
		}
		out.Path, format = f.Path, f.GetLogFormat()
	case "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":
		var f streamlogv3.StdoutAccessLog
		if err := open(l.GetTypedConfig(), &f); err != nil {
			return out, err
		}
		out.Path, format = "/dev/stdout", f.GetLogFormat()
	default:
		return out, fmt.Errorf("%q is not supported", n)
	}
	if out.Path == "" {
		return out, fmt.Errorf("path is empty")
	}
	text := defaultFormat
	if format != nil {
		if err := only(format, "text_format", "text_format_source", "json_format", "omit_empty_values", "content_type"); err != nil {
			return out, fmt.Errorf("log_format: %w", err)
		}
		if js := format.GetJsonFormat(); js != nil {
			return out, jsonFormat(js, &out)
		}
		text = format.GetTextFormat() // older control planes
		if src := format.GetTextFormatSource(); src != nil {
			b, file, err := bytesOf(src)
			if err != nil || file != "" {
				return out, fmt.Errorf("log_format: only inline text is supported")
			}
			text = string(b)
		}
	}
	f, err := conf.ParseFormat(text)
	if err != nil {
		return out, err
	}
	out.Format = f
	return out, nil
}

func jsonFormat(js *structpb.Struct, out *conf.AccessLog) error {
	for k, v := range js.GetFields() {
		s, ok := v.GetKind().(*structpb.Value_StringValue)
		if !ok {
			return fmt.Errorf("json_format: %q: only strings are supported", k)
		}
		f, err := conf.ParseFormat(s.StringValue)
		if err != nil {
			return err
		}
		out.JSON = append(out.JSON, conf.JSONField{Key: k, Format: f})
	}
	conf.SortJSON(out.JSON)
	return nil
}
