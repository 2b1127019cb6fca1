package decode

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Node builds the node that the proxy presents itself as. Values of metadata are what JSON can hold.
func Node(id, cluster string, metadata map[string]any) (*corev3.Node, error) {
	md, err := structpb.NewStruct(metadata)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{Id: id, Cluster: cluster, Metadata: md, UserAgentName: "meshproxy"}, nil
}
