package objects

import (
	"fmt"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// gatewayProtocols are what a server's port may speak; the value tells whether TLS settings belong to it.
var gatewayProtocols = map[string]bool{"HTTP": false, "HTTP2": false, "GRPC": false, "TCP": false, "HTTPS": true, "TLS": true}

func (v *validator) gateway(s *networkingv1alpha3.Gateway) {
	if len(s.Servers) == 0 {
		v.err("spec.servers", "no server", "add a port and hosts")
	}
	names := map[string]bool{}
	for i, srv := range s.Servers {
		at := fmt.Sprintf("spec.servers[%d]", i)
		p := srv.GetPort()
		if p.GetNumber() == 0 || p.GetNumber() > 65535 {
			v.err(at+".port.number", fmt.Sprintf("%d is not a port", p.GetNumber()), "use 1 to 65535")
		}
		protocol := strings.ToUpper(p.GetProtocol())
		secure, known := gatewayProtocols[protocol]
		switch {
		case protocol == "":
			v.err(at+".port.protocol", "no protocol", "say HTTP, HTTP2, GRPC, HTTPS, TLS or TCP")
		case !known:
			v.err(at+".port.protocol", fmt.Sprintf("protocol %s is not supported", p.Protocol), "use HTTP, HTTP2, GRPC, HTTPS, TLS or TCP")
		case secure && p.Name == "":
			v.err(at+".port.name", "no name", "name the port: the routes of an HTTPS or TLS server are named by it")
		case secure && names[p.Name]:
			v.err(at+".port.name", fmt.Sprintf("port %q is there twice", p.Name), "give it another name")
		}
		names[p.GetName()] = names[p.GetName()] || secure
		if known {
			v.serverTLS(at+".tls", srv.Tls, protocol, secure)
		}
		if len(srv.Hosts) == 0 {
			v.err(at+".hosts", "no host", `use "*" for all`)
		}
		for j, h := range srv.Hosts {
			if _, after, ok := strings.Cut(h, "/"); ok {
				h = after
			}
			v.host(fmt.Sprintf("%s.hosts[%d]", at, j), h, true)
		}
	}
}

func (v *validator) serverTLS(at string, tls *networkingv1alpha3.ServerTLSSettings, protocol string, secure bool) {
	if tls == nil {
		if secure {
			v.err(at, fmt.Sprintf("protocol %s without TLS settings", protocol), "say at least the mode")
		}
		return
	}
	if tls.CredentialName != "" {
		v.err(at+".credentialName", "certificates from Secrets are not supported", "mount the Secret into the gateway and name the files in serverCertificate and privateKey")
	}
	files := []struct {
		field, value string
		needed       bool
	}{
		{"serverCertificate", tls.ServerCertificate, true}, {"privateKey", tls.PrivateKey, true}, {"caCertificates", tls.CaCertificates, false},
	}
	switch {
	case !secure && (protocol == "TCP" || !tls.HttpsRedirect):
		v.err(at, fmt.Sprintf("protocol %s is in clear", protocol), "say HTTPS or TLS")
		return
	case !secure: // nothing but the redirect
	case tls.HttpsRedirect:
		v.err(at+".httpsRedirect", fmt.Sprintf("protocol %s is behind TLS already", protocol), "put it on a server in clear")
		return
	case tls.Mode == networkingv1alpha3.ServerTLSSettings_SIMPLE, tls.Mode == networkingv1alpha3.ServerTLSSettings_MUTUAL:
		files[2].needed = tls.Mode == networkingv1alpha3.ServerTLSSettings_MUTUAL
		if !files[2].needed {
			files[2].value = ""
		}
		for _, f := range files {
			if f.needed && f.value == "" && tls.CredentialName == "" {
				v.err(at+"."+f.field, fmt.Sprintf("mode %s needs it", tls.Mode), "name a file in the gateway's container")
			}
		}
		v.tlsVersions(at, tls)
		return
	case tls.Mode == networkingv1alpha3.ServerTLSSettings_PASSTHROUGH, tls.Mode == networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH,
		tls.Mode == networkingv1alpha3.ServerTLSSettings_ISTIO_MUTUAL:
	default:
		v.err(at+".mode", fmt.Sprintf("mode %s is not supported", tls.Mode), "use PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH or ISTIO_MUTUAL")
		return
	}
	for _, f := range files {
		if f.value != "" {
			v.err(at+"."+f.field, fmt.Sprintf("mode %s uses no files", tls.Mode), "remove it")
		}
	}
}

func (v *validator) tlsVersions(at string, tls *networkingv1alpha3.ServerTLSSettings) {
	low, high := tls.MinProtocolVersion, tls.MaxProtocolVersion
	if low != networkingv1alpha3.ServerTLSSettings_TLS_AUTO && high != networkingv1alpha3.ServerTLSSettings_TLS_AUTO && low > high {
		v.err(at+".minProtocolVersion", fmt.Sprintf("%s is above %s", low, high), "swap them")
	}
}
