package analyze

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

// there is what the cluster has that the files of testdata are for.
func there() []any {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "bookinfo", UID: types.UID(name), Generation: 1, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}
	}
	return []any{
		&corev1.Service{ObjectMeta: meta("ratings"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 9080}}}},
		&networking.DestinationRule{ObjectMeta: meta("ratings"), Spec: networkingv1alpha3.DestinationRule{Host: "ratings"}},
	}
}

func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, d := range Files(Input{Files: []File{{filepath.Base(file), data}}, There: there(), Namespace: "bookinfo", Now: now}) {
				b.WriteString(string(d.Problem.Severity) + " " + d.String() + "\n")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// What a file says is judged by what the cluster has: the same file is right where the service is there.
func TestFilesAgainstTheMesh(t *testing.T) {
	text := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: second}\nspec: {host: ratings}\n"
	in := Input{Files: []File{{"f.yaml", []byte(text)}}, Namespace: "bookinfo", Now: now}
	if d := Files(in); len(d) != 1 || !strings.Contains(d[0].String(), `f.yaml:4:14: spec.host: host "ratings" is no service of the mesh`) {
		t.Errorf("without the service: %v", d)
	}
	in.There = there()
	if d := Files(in); len(d) != 1 || !strings.Contains(d[0].String(), "f.yaml:4:14: spec.host: DestinationRule bookinfo/ratings is for the same host and older") {
		t.Errorf("beside another rule: %v", d)
	}
	in.Files[0].Data = []byte(strings.Replace(text, "second", "ratings", 1))
	if d := Files(in); len(d) != 0 {
		t.Errorf("in place of the other rule: %v", d)
	}
}

func TestMesh(t *testing.T) {
	if p := Mesh(there()); len(p) != 0 {
		t.Errorf("problems of a good mesh: %v", p)
	}
	if p := Mesh(there()[1:]); len(p) != 1 || p[0].Object.Name != "ratings" || p[0].Problem.Field != "spec.host" {
		t.Errorf("problems of a rule without its service: %v", p)
	}
}

func TestGatewayThatNoPodServes(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"istio": "ingressgateway"}}}
	text := `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  selector: {istio: ingresgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
`
	in := Input{Files: []File{{"f.yaml", []byte(text)}}, There: []any{pod}, Now: now}
	if d := Files(in); len(d) != 1 || d[0].String() != "f.yaml:5:13: spec.selector: no pod has these labels, so nothing serves the gateway; did you mean istio: ingressgateway?" {
		t.Errorf("misspelt: %v", d)
	}
	in.There = nil
	if d := Files(in); len(d) != 0 {
		t.Errorf("pods not known: %v", d)
	}
	in.There = []any{pod}
	in.Files[0].Data = []byte(strings.Replace(text, "ingresg", "ingressg", 1))
	if d := Files(in); len(d) != 0 {
		t.Errorf("served: %v", d)
	}
	gw := &networking.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "gw"}, Spec: networkingv1alpha3.Gateway{
		Selector: map[string]string{"istio": "other"},
		Servers:  []*networkingv1alpha3.Server{{Port: &networkingv1alpha3.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"}}},
	}}
	if p := Mesh([]any{pod, gw}); len(p) != 1 || p[0].Problem.Field != "spec.selector" {
		t.Errorf("of the mesh: %v", p)
	}
}

func TestNoYAML(t *testing.T) {
	d := Files(Input{Files: []File{{"f.yaml", []byte("a: b\n\tc: d\n")}}, Now: now})
	if len(d) != 1 || d[0].Line != 2 {
		t.Errorf("%v", d)
	}
}
