package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3" // shown in dumps, decoded by name
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshproof/meshproof/mesh/xds"
)

// Secret is what a dump shows of a secret; keys never are.
type Secret struct {
	Name  string
	Chain []byte // PEM of a certificate chain, or
	Roots []byte // PEM of trust anchors
	At    *timestamppb.Timestamp
}

// Unbound is why a listener has no sockets.
type Unbound struct {
	Reason string
	At     time.Time // of the last attempt
}

// DumpOptions say what a dump holds.
type DumpOptions struct {
	Node      *corev3.Node
	Version   string
	Endpoints bool // with endpoints, which Envoy leaves out unless asked
	Secrets   []Secret
	Unbound   map[string]Unbound // listeners that have no sockets, by name
	// Resource, when not empty, is the one field of the parts to show, as Envoy's ?resource=.
	Resource string
}

// Dump renders Envoy's config_dump.
func (s *State) Dump(o DumpOptions) ([]byte, error) {
	s.mu.Lock()
	parts := []proto.Message{
		&adminv3.BootstrapConfigDump{Bootstrap: &bootstrapv3.Bootstrap{Node: o.Node}},
		s.dumpClusters(), s.dumpListeners(o.Unbound), s.dumpRoutes(), dumpSecrets(o.Secrets),
	}
	if o.Endpoints {
		parts = slices.Insert(parts, 2, proto.Message(s.dumpEndpoints()))
	}
	s.mu.Unlock()
	out := &adminv3.ConfigDump{}
	if o.Resource != "" {
		parts = pick(parts, o.Resource)
	}
	for _, p := range parts {
		a, err := anypb.New(p)
		if err != nil {
			return nil, fmt.Errorf("config dump: %w", err)
		}
		out.Configs = append(out.Configs, a)
	}
	b, err := protojson.MarshalOptions{Multiline: true, Indent: " ", UseProtoNames: true, Resolver: lenient{protoregistry.GlobalTypes}}.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("config dump: %w", err)
	}
	return b, nil
}

// lenient shows an extension that is not linked here by its type alone: a dump is for looking, and must not fail because of
// a part that the proxy has no use for.
type lenient struct{ *protoregistry.Types }

func (l lenient) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	t, err := l.Types.FindMessageByURL(url)
	if err != nil {
		return (&emptypb.Empty{}).ProtoReflect().Type(), nil
	}
	return t, nil
}

// pick returns the elements of the repeated field of that name, as Envoy does for ?resource=.
func pick(parts []proto.Message, field string) []proto.Message {
	var out []proto.Message
	for _, p := range parts {
		r := p.ProtoReflect()
		for i := range r.Descriptor().Fields().Len() {
			fd := r.Descriptor().Fields().Get(i)
			if string(fd.Name()) != field || !fd.IsList() || fd.Message() == nil {
				continue
			}
			l := r.Get(fd).List()
			for k := range l.Len() {
				out = append(out, l.Get(k).Message().Interface())
			}
		}
	}
	return out
}

func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		return nil // it came off the wire
	}
	return a
}

func (s *State) failure(typeURL, name string) *adminv3.UpdateFailureState {
	r, ok := s.rejected[typeURL+"/"+name]
	if !ok {
		return nil
	}
	return &adminv3.UpdateFailureState{Details: r.Reason, VersionInfo: r.Version, LastUpdateAttempt: timestamppb.New(r.At)}
}

func (s *State) dumpClusters() *adminv3.ClustersConfigDump {
	out := &adminv3.ClustersConfigDump{}
	for _, n := range slices.Sorted(maps.Keys(s.clusters)) {
		c := s.clusters[n]
		d := &adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: c.version, Cluster: packed(c.raw), LastUpdated: timestamppb.New(c.at), ErrorState: s.failure(xds.ClusterType, n)}
		if s.published.Clusters[n] == nil {
			out.DynamicWarmingClusters = append(out.DynamicWarmingClusters, d)
		} else {
			out.DynamicActiveClusters = append(out.DynamicActiveClusters, d)
		}
	}
	return out
}

func (s *State) dumpEndpoints() *adminv3.EndpointsConfigDump {
	out := &adminv3.EndpointsConfigDump{}
	for _, n := range slices.Sorted(maps.Keys(s.endpoints)) {
		if e := s.endpoints[n]; e.raw != nil {
			out.DynamicEndpointConfigs = append(out.DynamicEndpointConfigs, &adminv3.EndpointsConfigDump_DynamicEndpointConfig{
				VersionInfo: e.version, EndpointConfig: packed(e.raw), LastUpdated: timestamppb.New(e.at), ErrorState: s.failure(xds.EndpointType, n)})
		}
	}
	return out
}

func (s *State) dumpListeners(unbound map[string]Unbound) *adminv3.ListenersConfigDump {
	out := &adminv3.ListenersConfigDump{}
	for _, n := range slices.Sorted(maps.Keys(s.listeners)) {
		l := s.listeners[n]
		st := &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: l.version, Listener: packed(l.raw), LastUpdated: timestamppb.New(l.at)}
		d := &adminv3.ListenersConfigDump_DynamicListener{Name: n, ErrorState: s.failure(xds.ListenerType, n)}
		u, waits := unbound[n]
		if waits && d.ErrorState == nil {
			d.ErrorState = &adminv3.UpdateFailureState{Details: u.Reason, VersionInfo: l.version, LastUpdateAttempt: timestamppb.New(u.At)}
		}
		if s.published.Listeners[n] == l.value && !waits {
			d.ActiveState = st
		} else {
			d.WarmingState = st
		}
		out.DynamicListeners = append(out.DynamicListeners, d)
	}
	for k, r := range s.rejected {
		if n, ok := strings.CutPrefix(k, xds.ListenerType+"/"); ok && s.listeners[n] == nil {
			out.DynamicListeners = append(out.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{Name: n,
				ErrorState: &adminv3.UpdateFailureState{Details: r.Reason, VersionInfo: r.Version, LastUpdateAttempt: timestamppb.New(r.At)}})
		}
	}
	return out
}

func (s *State) dumpRoutes() *adminv3.RoutesConfigDump {
	out := &adminv3.RoutesConfigDump{}
	for _, n := range slices.Sorted(maps.Keys(s.routes)) {
		if r := s.routes[n]; r.raw != nil {
			out.DynamicRouteConfigs = append(out.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{
				VersionInfo: r.version, RouteConfig: packed(r.raw), LastUpdated: timestamppb.New(r.at), ErrorState: s.failure(xds.RouteType, n)})
		}
	}
	return out
}

func dumpSecrets(list []Secret) *adminv3.SecretsConfigDump {
	out := &adminv3.SecretsConfigDump{}
	for _, sec := range list {
		m := &tlsv3.Secret{Name: sec.Name}
		inline := func(b []byte) *corev3.DataSource {
			return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
		}
		if sec.Roots != nil {
			m.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(sec.Roots)}}
		} else {
			m.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(sec.Chain), PrivateKey: inline([]byte("[redacted]"))}}
		}
		out.DynamicActiveSecrets = append(out.DynamicActiveSecrets, &adminv3.SecretsConfigDump_DynamicSecret{Name: sec.Name, LastUpdated: sec.At, Secret: packed(m)})
	}
	return out
}

// Rejections lists what was refused and not replaced since, by type and name.
func (s *State) Rejections() []Rejection {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Rejection
	for _, k := range slices.Sorted(maps.Keys(s.rejected)) {
		out = append(out, s.rejected[k])
	}
	return out
}
