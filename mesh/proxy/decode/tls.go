package decode

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

const (
	rawBuffer  = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	upstream   = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
	downstream = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
)

// upstreamTLS reads a transport socket; nil is plaintext.
func upstreamTLS(ts *corev3.TransportSocket) (*conf.UpstreamTLS, error) {
	if ts == nil || ts.GetTypedConfig() == nil && ts.Name == "envoy.transport_sockets.raw_buffer" || typeName(ts.GetTypedConfig()) == rawBuffer {
		return nil, nil
	}
	if n := typeName(ts.GetTypedConfig()); n != upstream {
		return nil, fmt.Errorf("transport_socket %q: %s is not supported", ts.Name, n)
	}
	var c tlsv3.UpstreamTlsContext
	if err := open(ts.GetTypedConfig(), &c); err != nil {
		return nil, err
	}
	// max_session_keys: sessions are not resumed. allow_renegotiation stays off in crypto/tls.
	if err := only(&c, "common_tls_context", "sni", "max_session_keys"); err != nil {
		return nil, err
	}
	common, err := commonTLS(c.CommonTlsContext)
	if err != nil {
		return nil, err
	}
	common.ID = digest(&c)
	return &conf.UpstreamTLS{TLSCommon: common, SNI: c.Sni}, nil
}

func downstreamTLS(ts *corev3.TransportSocket) (*conf.DownstreamTLS, error) {
	if ts == nil || ts.GetTypedConfig() == nil && ts.Name == "envoy.transport_sockets.raw_buffer" || typeName(ts.GetTypedConfig()) == rawBuffer {
		return nil, nil
	}
	if n := typeName(ts.GetTypedConfig()); n != downstream {
		return nil, fmt.Errorf("transport_socket %q: %s is not supported", ts.Name, n)
	}
	var c tlsv3.DownstreamTlsContext
	if err := open(ts.GetTypedConfig(), &c); err != nil {
		return nil, err
	}
	// Stateless resumption is off in any case; prefer_client_ciphers has no meaning in crypto/tls.
	if err := only(&c, "common_tls_context", "require_client_certificate", "disable_stateless_session_resumption", "disable_stateful_session_resumption", "session_timeout", "prefer_client_ciphers"); err != nil {
		return nil, err
	}
	common, err := commonTLS(c.CommonTlsContext)
	if err != nil {
		return nil, err
	}
	if common.CertSecret == "" && common.CertPEM == nil && common.CertFile == "" {
		return nil, errors.New("downstream tls context: no certificate")
	}
	common.ID = digest(&c)
	return &conf.DownstreamTLS{TLSCommon: common, RequireClientCert: c.GetRequireClientCertificate().GetValue()}, nil
}

func digest(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "" // it was unmarshalled a moment ago
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

func commonTLS(c *tlsv3.CommonTlsContext) (out conf.TLSCommon, err error) {
	if c == nil {
		return out, nil
	}
	if err := only(c, "tls_params", "tls_certificates", "tls_certificate_sds_secret_configs", "validation_context", "validation_context_sds_secret_config", "combined_validation_context", "alpn_protocols"); err != nil {
		return out, fmt.Errorf("common_tls_context: %w", err)
	}
	out.ALPN = slices.Clone(c.AlpnProtocols)
	for _, p := range out.ALPN {
		if p == "" || len(p) > 255 {
			return out, fmt.Errorf("alpn_protocols: %q is no protocol name", p)
		}
	}
	if err := tlsParams(c.TlsParams, &out); err != nil {
		return out, fmt.Errorf("tls_params: %w", err)
	}
	if len(c.TlsCertificates)+len(c.TlsCertificateSdsSecretConfigs) > 1 {
		return out, errors.New("common_tls_context: only one certificate is supported")
	}
	for _, t := range c.TlsCertificates {
		if err := only(t, "certificate_chain", "private_key"); err != nil {
			return out, fmt.Errorf("tls_certificates: %w", err)
		}
		if out.CertPEM, out.CertFile, err = bytesOf(t.CertificateChain); err != nil {
			return out, err
		}
		if out.KeyPEM, out.KeyFile, err = bytesOf(t.PrivateKey); err != nil {
			return out, err
		}
	}
	for _, s := range c.TlsCertificateSdsSecretConfigs {
		if out.CertSecret, err = secretName(s); err != nil {
			return out, err
		}
	}
	switch v := c.ValidationContextType.(type) {
	case *tlsv3.CommonTlsContext_ValidationContext:
		err = validation(v.ValidationContext, &out)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		out.RootSecret, err = secretName(v.ValidationContextSdsSecretConfig)
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		if err = only(v.CombinedValidationContext, "default_validation_context", "validation_context_sds_secret_config"); err != nil {
			break
		}
		if err = validation(v.CombinedValidationContext.GetDefaultValidationContext(), &out); err == nil {
			out.RootSecret, err = secretName(v.CombinedValidationContext.GetValidationContextSdsSecretConfig())
		}
	}
	return out, err
}

// secretName takes any source: every name is resolved from the proxy's own certificate.
func secretName(s *tlsv3.SdsSecretConfig) (string, error) {
	switch s.GetName() {
	case "default", "ROOTCA":
		return s.Name, nil
	case "":
		return "", errors.New("sds secret: name is empty")
	}
	return "", fmt.Errorf("sds secret %q is not supported: only default and ROOTCA are", s.Name)
}

func validation(v *tlsv3.CertificateValidationContext, out *conf.TLSCommon) (err error) {
	if v == nil {
		return nil
	}
	if err := only(v, "trusted_ca", "match_typed_subject_alt_names", "match_subject_alt_names"); err != nil {
		return fmt.Errorf("validation_context: %w", err)
	}
	if out.RootPEM, out.RootFile, err = bytesOf(v.TrustedCa); err != nil {
		return err
	}
	for _, m := range v.GetMatchSubjectAltNames() { // Istio still emits the untyped form
		s, err := stringMatch(m)
		if err != nil {
			return fmt.Errorf("match_subject_alt_names: %w", err)
		}
		out.SANs = append(out.SANs, s)
	}
	for _, m := range v.GetMatchTypedSubjectAltNames() {
		s, err := stringMatch(m.GetMatcher())
		if err != nil {
			return fmt.Errorf("match_typed_subject_alt_names: %w", err)
		}
		out.SANs = append(out.SANs, s)
	}
	return nil
}

func tlsParams(p *tlsv3.TlsParameters, out *conf.TLSCommon) error {
	if p == nil {
		return nil
	}
	// ecdh_curves and signature_algorithms: crypto/tls chooses well by itself and has no knob that maps one to one.
	if err := only(p, "tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves"); err != nil {
		return err
	}
	versions := map[tlsv3.TlsParameters_TlsProtocol]uint16{tlsv3.TlsParameters_TLSv1_0: tls.VersionTLS10, tlsv3.TlsParameters_TLSv1_1: tls.VersionTLS11, tlsv3.TlsParameters_TLSv1_2: tls.VersionTLS12, tlsv3.TlsParameters_TLSv1_3: tls.VersionTLS13}
	out.MinVersion, out.MaxVersion = versions[p.TlsMinimumProtocolVersion], versions[p.TlsMaximumProtocolVersion]
	for _, name := range p.CipherSuites {
		id, ok := ciphers[name]
		if !ok {
			return fmt.Errorf("cipher suite %q is not supported", name)
		}
		out.Ciphers = append(out.Ciphers, id)
	}
	return nil
}

// ciphers by OpenSSL's names.
var ciphers = map[string]uint16{
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
}
