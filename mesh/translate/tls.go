package translate

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Secrets that the proxy resolves itself, from the certificate that it got from the control plane.
const (
	ownCertificate = "default"
	rootsOfTrust   = "ROOTCA"
)

const tlsSocket = "envoy.transport_sockets.tls"

// ALPN names, in the order in which Istio gives them.
var (
	mtlsHTTPALPNs  = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	mtlsTCPALPNs   = []string{"istio-peer-exchange", "istio"}
	mtlsALPNs      = []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}
	plaintextALPNs = []string{"http/1.1", "h2c"}
)

func sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		InitialFetchTimeout: durationpb.New(0),
		ResourceApiVersion:  corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "sds-grpc"},
			}}},
		}},
	}}
}

func sanMatcher(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

// upstreamMTLS offers the proxy's own certificate and wants one of ids, or anybody of the mesh when there is none.
func upstreamMTLS(sni string, http2 bool, ids []string) *corev3.TransportSocket {
	alpn := mtlsTCPALPNs
	if http2 {
		alpn = append(alpn[:len(alpn):len(alpn)], "h2")
	}
	valid := &tlsv3.CertificateValidationContext{}
	for _, id := range ids {
		valid.MatchTypedSubjectAltNames = append(valid.MatchTypedSubjectAltNames,
			sanMatcher(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id}}))
	}
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: commonTLS(alpn, valid), Sni: sni,
	})}}
}

// downstreamMTLS wants a certificate of the trust domain.
func downstreamMTLS(trustDomain string, alpn []string) *corev3.TransportSocket {
	valid := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{
		sanMatcher(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + trustDomain + "/"}}),
	}}
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.DownstreamTlsContext{
		CommonTlsContext: commonTLS(alpn, valid), RequireClientCertificate: wrapperspb.Bool(true),
	})}}
}

func commonTLS(alpn []string, valid *tlsv3.CertificateValidationContext) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols: alpn,
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds(ownCertificate)},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         valid,
				ValidationContextSdsSecretConfig: sds(rootsOfTrust),
			},
		},
	}
}
