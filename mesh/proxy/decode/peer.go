package decode

import (
	"encoding/base64"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

// maxPeer bounds the metadata that a peer may send.
const maxPeer = 16 << 10

// EncodePeer writes a workload as Istio's x-envoy-peer-metadata: a Struct in base64.
func EncodePeer(w conf.Workload) ([]byte, error) {
	s, err := structpb.NewStruct(map[string]any{
		"NAME": w.Name, "WORKLOAD_NAME": w.Name, "NAMESPACE": w.Namespace, "CLUSTER_ID": w.Cluster,
		"LABELS": map[string]any{
			"app": w.App, "version": w.Version, "service.istio.io/canonical-name": w.Canonical, "service.istio.io/canonical-revision": w.CanonicalRevision,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("peer metadata: %w", err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("peer metadata: %w", err)
	}
	return []byte(base64.StdEncoding.EncodeToString(b)), nil
}

// Peer reads what EncodePeer, or an Istio proxy, wrote.
func Peer(text []byte) (*conf.Workload, error) {
	if len(text) > maxPeer {
		return nil, fmt.Errorf("peer metadata: %d bytes are too many", len(text))
	}
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return nil, fmt.Errorf("peer metadata: %w", err)
	}
	var s structpb.Struct
	if err := proto.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("peer metadata: %w", err)
	}
	f, l := stringsOf(s.Fields), stringsOf(s.Fields["LABELS"].GetStructValue().GetFields())
	return &conf.Workload{
		Name: f["WORKLOAD_NAME"], Namespace: f["NAMESPACE"], Cluster: f["CLUSTER_ID"], App: l["app"], Version: l["version"],
		Canonical: l["service.istio.io/canonical-name"], CanonicalRevision: l["service.istio.io/canonical-revision"],
	}, nil
}
