package meshtest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/proxy/decode"
)

// What translation emits, our own proxy takes: every resource of every golden file.
func TestGoldenTranslationsAreAccepted(t *testing.T) {
	kinds := map[string]func(*testing.T, []byte) error{
		"lds": func(t *testing.T, b []byte) error {
			_, err := decode.Listener(into(t, b, &listenerv3.Listener{}))
			return err
		},
		"rds": func(t *testing.T, b []byte) error {
			_, err := decode.Routes(into(t, b, &routev3.RouteConfiguration{}))
			return err
		},
		"cds": func(t *testing.T, b []byte) error {
			_, err := decode.Cluster(into(t, b, &clusterv3.Cluster{}))
			return err
		},
		"eds": func(t *testing.T, b []byte) error {
			_, err := decode.Endpoints(into(t, b, &endpointv3.ClusterLoadAssignment{}))
			return err
		},
	}
	seen := map[string]int{}
	files, err := filepath.Glob("../translate/testdata/*.?ds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parts := strings.Split(filepath.Base(file), ".")
		kind := parts[len(parts)-2]
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := kyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
			for {
				doc, err := r.Read()
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(bytes.TrimSpace(doc)) == 0 {
					continue
				}
				seen[kind]++
				if err := kinds[kind](t, doc); err != nil {
					t.Errorf("refused: %v\n%s", err, doc)
				}
			}
		})
	}
	for kind := range kinds {
		if seen[kind] == 0 {
			t.Errorf("no golden file has a resource of %s", kind)
		}
	}
}

func into[M proto.Message](t *testing.T, doc []byte, m M) M {
	t.Helper()
	j, err := yaml.YAMLToJSON(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(j, m); err != nil {
		t.Fatal(err)
	}
	return m
}
