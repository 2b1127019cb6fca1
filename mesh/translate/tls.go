package translate

import (
	"cmp"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
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
	mtlsTCPAccepts = []string{"istio-peer-exchange", "h2", "http/1.1"}
	peerALPNs      = []string{"istio-peer-exchange", "istio"}
	peerH2ALPNs    = []string{"istio-peer-exchange", "istio", "h2"}
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

// san matches one alternative name of a certificate: a URI where it is written as one, else a DNS name.
func san(name string) *tlsv3.SubjectAltNameMatcher {
	typ := tlsv3.SubjectAltNameMatcher_DNS
	if strings.Contains(name, "://") {
		typ = tlsv3.SubjectAltNameMatcher_URI
	}
	return &tlsv3.SubjectAltNameMatcher{SanType: typ, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}}}
}

func sans(names []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, n := range names {
		out = append(out, san(n))
	}
	return out
}

// applyTLS sets mutual TLS: automatic where nothing is said, by the endpoint's own tlsMode; else as the rule says.
func applyTLS(c *clusterv3.Cluster, tls *networking.ClientTLSSettings, sni string, http2 bool, ids []string) {
	switch {
	case tls == nil:
		if c.GetType() == clusterv3.Cluster_ORIGINAL_DST {
			return // no endpoints that could say what they take
		}
		c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
			{Name: "tlsMode-istio", Match: stringStruct("tlsMode", "istio"), TransportSocket: upstreamMTLS(sni, http2, ids)},
			{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: rawBuffer()},
		}
	case tls.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL:
		if len(tls.SubjectAltNames) > 0 {
			ids = tls.SubjectAltNames
		}
		c.TransportSocket = upstreamMTLS(cmp.Or(tls.Sni, sni), http2, ids)
	case tls.Mode == networking.ClientTLSSettings_SIMPLE, tls.Mode == networking.ClientTLSSettings_MUTUAL:
		c.TransportSocket = originate(tls, http2)
	}
}

// upstreamMTLS offers the proxy's own certificate and wants one of ids, or anybody of the mesh when there is none.
func upstreamMTLS(sni string, http2 bool, ids []string) *corev3.TransportSocket {
	alpn := peerALPNs
	if http2 {
		alpn = peerH2ALPNs
	}
	return upstreamTLS(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: commonTLS(alpn, &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans(ids)}), Sni: sni,
	})
}

// originate is TLS to a server that is not of the mesh, with certificates in files of the proxy's own.
func originate(tls *networking.ClientTLSSettings, http2 bool) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{TlsParams: tlsVersions()}
	if http2 {
		common.AlpnProtocols = []string{"h2"}
	}
	if tls.Mode == networking.ClientTLSSettings_MUTUAL {
		common.TlsCertificates = []*tlsv3.TlsCertificate{certificate(tls.ClientCertificate, tls.PrivateKey)}
	}
	if !tls.GetInsecureSkipVerify().GetValue() {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(tls.CaCertificates), MatchTypedSubjectAltNames: sans(tls.SubjectAltNames),
		}}
	}
	return upstreamTLS(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: tls.Sni})
}

func upstreamTLS(c *tlsv3.UpstreamTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: toAny(c)}}
}

func certificate(chain, key string) *tlsv3.TlsCertificate {
	return &tlsv3.TlsCertificate{CertificateChain: file(chain), PrivateKey: file(key)}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// meshPeer is a certificate of the trust domain.
func meshPeer(trustDomain string) *tlsv3.CertificateValidationContext {
	return &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
		SanType: tlsv3.SubjectAltNameMatcher_URI,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + trustDomain + "/"}},
	}}}
}

// downstreamMTLS shows the proxy's own certificate and wants one that is valid.
func downstreamMTLS(valid *tlsv3.CertificateValidationContext, alpn []string) *corev3.TransportSocket {
	return downstreamTLS(&tlsv3.DownstreamTlsContext{CommonTlsContext: commonTLS(alpn, valid), RequireClientCertificate: wrapperspb.Bool(true)})
}

func downstreamTLS(c *tlsv3.DownstreamTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: toAny(c)}}
}

func commonTLS(alpn []string, valid *tlsv3.CertificateValidationContext) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols:                  alpn,
		TlsParams:                      tlsVersions(),
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds(ownCertificate)},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         valid,
				ValidationContextSdsSecretConfig: sds(rootsOfTrust),
			},
		},
	}
}

func tlsVersions() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
}
