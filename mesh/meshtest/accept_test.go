package meshtest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/mesh/proxy/decode"
	"github.com/meshproof/meshproof/mesh/translate"
)

// FuzzValidObjectsAreAccepted: what validation lets pass, translation turns into configuration that our own proxy takes. The input is a
// list of choices, from which objects are made; what validation names in them is removed until it names nothing.
func FuzzValidObjectsAreAccepted(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b := make([]byte, 100+r.IntN(900))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		objs := (&chooser{choices}).objects()
		if err := accepted(objs); err != nil {
			text := ""
			for _, o := range objs {
				y, _ := yaml.Marshal(o)
				text += "---\n" + string(y)
			}
			t.Errorf("%v\n%s", err, text)
		}
	})
}

// objects are some that validation lets pass.
func (c *chooser) objects() []any {
	var objs []any
	for i := range 1 + c.n(6) {
		meta := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("o", i), Generation: 1, CreationTimestamp: metav1.Unix(int64(i), 0)}
		switch c.n(3) {
		case 0:
			o := &networking.VirtualService{ObjectMeta: meta}
			o.Spec.Gateways = [][]string{nil, {"mesh"}, {"o0", "o1", "o2", "mesh"}}[c.n(3)]
			if c.fill(o.Spec.ProtoReflect(), 0); mend(o, o.Spec.ProtoReflect()) {
				objs = append(objs, o)
			}
		case 1:
			o := &networking.DestinationRule{ObjectMeta: meta}
			if c.fill(o.Spec.ProtoReflect(), 0); mend(o, o.Spec.ProtoReflect()) {
				objs = append(objs, o)
			}
		case 2:
			o := &networking.Gateway{ObjectMeta: meta}
			c.fill(o.Spec.ProtoReflect(), 0)
			o.Spec.Selector = nil // every gateway's
			if mend(o, o.Spec.ProtoReflect()) {
				objs = append(objs, o)
			}
		}
	}
	return objs
}

// accepted translates objects for a sidecar and for a gateway, and gives everything to the proxy.
func accepted(objs []any) error {
	m := model.Mesh{TrustDomain: "cluster.local", DomainSuffix: "cluster.local", ClusterID: clusterID, MeshID: "cluster.local", RootNamespace: "istio-system"}
	b := model.NewBuilder(m, func() time.Time { return time.Unix(0, 0) })
	for i, name := range []string{"reviews", "ratings", "ingress"} {
		b.Set(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprint("10.96.0.", i+1), Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{
				{Name: "http", Port: 80}, {Name: "tcp", Port: 90}, {Name: "tls", Port: 443}, {Name: "auto", Port: 9080}, {Name: "grpc", Port: 8080},
			}},
		})
	}
	for _, o := range objs {
		b.Set(o)
	}
	s := b.Build()
	for _, p := range s.Problems {
		if p.Problem.Severity == objects.Error {
			return fmt.Errorf("%v", p)
		}
	}
	var errs []error
	for _, v := range []model.ProxyView{
		{Type: model.Sidecar, ID: "p.default", Namespace: "default", Pod: "p", IP: "10.0.0.1", Labels: map[string]string{"app": "reviews"}},
		{Type: model.Router, ID: "g.default", Namespace: "default", Pod: "g", IP: "10.0.0.2", Labels: map[string]string{"app": "ingress"}},
	} {
		set, err := translate.Translate(s, s.View(v))
		if err != nil {
			return fmt.Errorf("translate: %w", err)
		}
		for _, x := range set.Clusters {
			_, err := decode.Cluster(x)
			errs = append(errs, err)
		}
		for _, x := range set.Endpoints {
			_, err := decode.Endpoints(x)
			errs = append(errs, err)
		}
		for _, x := range set.Listeners {
			_, err := decode.Listener(x)
			errs = append(errs, err)
		}
		for _, x := range set.Routes {
			_, err := decode.Routes(x)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// chooser makes choices out of bytes; when there are no more it always takes the first.
type chooser struct{ b []byte }

func (c *chooser) n(n int) int {
	if len(c.b) == 0 {
		return 0
	}
	x := int(c.b[0]) % n
	c.b = c.b[1:]
	return x
}

// words are values of texts, by the JSON names of fields; "" is any field. Most are wrong somewhere.
var words = map[string][]string{
	"": {
		"", "a", "A", "x-a", "X-A", "x a", "x:a", ":authority", ":path", "host", "Host", "100%", "%%", "%REQ(x-a)%", "%REQ(", "%START_TIME%", "a\nb", "a\tb", "\x7f", "é", "*",
		"**", "(", "a(b)c", "^a$", "[", "/", "/a", "/a/", "\\1", "\\9", "\\", "$1", "a=b", "a;b", "\"", " ", "80", "-1", "content-length", "transfer-encoding", "connection", ";", ",", "1e9",
	},
	"hosts":    {"reviews", "ratings.default.svc.cluster.local", "a.example.com", "A.example.com", "*.example.com", "*", "*.Example.COM", "other", "*.local", "default/a.example.com", "*/*", "./b.example.com", "10.96.0.1", "a.example.com."},
	"host":     {"reviews", "ratings", "Reviews", "other.example.com", "*.local", "ratings.default.svc.cluster.local"},
	"sniHosts": {"a.example.com", "A.example.com", "*.example.com", "reviews", "*"},
	"gateways": {"mesh", "o0", "o1", "default/o2"},
	"retryOn":  {"5xx", "503", "503abc", "retriable-headers", "retriable-4xx,502", "reset, connect-failure", "5xx,,", "600", "99", "+503", "0503", "http3-post-connect-failure", "envoy-ratelimited", "reset-before-request", "unavailable"},
	"protocol": {"HTTP", "HTTPS", "TLS", "TCP", "http", "GRPC", "HTTP2"},
	"name":     {"", "a", "b", "v1", "http", "https-1", "x_y", "A"},
	"subset":   {"", "v1", "a", "b"},
	"scheme":   {"", "http", "https", "HTTPS", "ftp", "a b"},
	"exportTo": {"*", ".", "default"},
	"sni":      {"a.example.com", "*", "a b", "outbound_.80_._.reviews"},
	"from":     {"*", "us", "us/a", "us/a/*", ""},
}

var numbers = []int64{0, 1, 80, 443, 90, 9080, 8080, 100, 50, 2, 3, 200, 301, 503, 99, 600, 65535, 65536, 1021, 65537, -1, math.MaxInt32, math.MaxUint32}

var spans = []*durationpb.Duration{
	{}, {Seconds: 1}, {Seconds: 15}, {Nanos: 1}, {Nanos: 500000}, {Seconds: -1}, {Nanos: -1}, {Seconds: 100 * 365 * 86400}, {Seconds: 315576000000}, {Seconds: math.MaxInt64}, {Seconds: 1, Nanos: -5}, {Nanos: math.MaxInt32},
}

func (c *chooser) text(field string) string {
	list := words[field]
	if list == nil || c.n(5) == 1 {
		list = words[""]
	}
	return list[c.n(len(list))]
}

// fill sets some of the fields of a message.
func (c *chooser) fill(m protoreflect.Message, depth int) {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		proto.Merge(d, spans[c.n(len(spans))])
		return
	}
	if depth > 6 {
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if m.Has(fd) || c.n(3) == 0 && depth > 0 || fd.ContainingOneof() != nil && m.WhichOneof(fd.ContainingOneof()) != nil {
			continue
		}
		switch {
		case fd.IsMap():
			mp := m.Mutable(fd).Map()
			for range c.n(3) {
				k := protoreflect.ValueOfString(c.text("")).MapKey()
				if fd.MapValue().Message() != nil {
					v := mp.NewValue()
					c.fill(v.Message(), depth+1)
					mp.Set(k, v)
				} else {
					mp.Set(k, c.scalar(fd.MapValue(), fd.JSONName()))
				}
			}
		case fd.IsList():
			l := m.Mutable(fd).List()
			for range 1 + c.n(2) {
				if fd.Message() != nil {
					v := l.NewElement()
					c.fill(v.Message(), depth+1)
					l.Append(v)
				} else {
					l.Append(c.scalar(fd, fd.JSONName()))
				}
			}
		case fd.Message() != nil:
			c.fill(m.Mutable(fd).Message(), depth+1)
		default:
			m.Set(fd, c.scalar(fd, fd.JSONName()))
		}
	}
}

func (c *chooser) scalar(fd protoreflect.FieldDescriptor, name string) protoreflect.Value {
	n := numbers[c.n(len(numbers))]
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 1)
	case protoreflect.EnumKind:
		v := fd.Enum().Values()
		return protoreflect.ValueOfEnum(v.Get(c.n(v.Len())).Number())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(c.text(name)))
	}
	return protoreflect.ValueOfString(c.text(name))
}

// mend removes what validation refuses, and tells whether it refuses nothing in the end.
func mend(obj any, spec protoreflect.Message) bool {
	for range 100 {
		refused := false
		for _, p := range objects.Validate(obj) {
			if p.Severity == objects.Error {
				refused = true
				if !removeAt(spec, p.Field) {
					return false
				}
				break // places in lists have moved
			}
		}
		if !refused {
			return true
		}
	}
	return false
}

// A step is a name, then an index or a key if there is one. Keys may hold dots and brackets.
var step = regexp.MustCompile(`^\.?([A-Za-z0-9_]+)(?:\[(\d+)\])?`)

// removeAt clears the innermost thing on the path that is set.
func removeAt(m protoreflect.Message, path string) bool {
	rest, ok := strings.CutPrefix(path, "spec.")
	if !ok {
		return false
	}
	remove := func() {}
	found := false
	for rest != "" {
		at := step.FindStringSubmatch(rest)
		if at == nil {
			break
		}
		fd := m.Descriptor().Fields().ByJSONName(at[1])
		if fd == nil || !m.Has(fd) {
			break
		}
		rest = rest[len(at[0]):]
		parent := m
		remove, found = func() { parent.Clear(fd) }, true
		if fd.IsMap() || at[2] == "" && fd.IsList() || fd.Message() == nil && !fd.IsList() {
			break
		}
		if fd.IsList() {
			i, _ := strconv.Atoi(at[2])
			l := m.Mutable(fd).List()
			remove = func() {
				for j := i; j+1 < l.Len(); j++ {
					l.Set(j, l.Get(j+1))
				}
				l.Truncate(l.Len() - 1)
			}
			if fd.Message() == nil {
				break
			}
			m = l.Get(i).Message()
			continue
		}
		m = m.Mutable(fd).Message()
	}
	remove()
	return found
}

// TestOddObjectsAreAccepted: objects that are valid, and once were translated into what no proxy takes.
func TestOddObjectsAreAccepted(t *testing.T) {
	for name, text := range map[string]string{
		"hosts that differ in case only": `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*/*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec: {hosts: [a.example.com, A.example.com], gateways: [g, mesh], http: [{route: [{destination: {host: Reviews}}]}]}
`,
		"a redirect to HTTPS that names a mode": `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"], tls: {httpsRedirect: true, mode: SIMPLE}}]}
`,
		"a header with a percent sign": `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec: {hosts: [reviews], http: [{headers: {request: {set: {x-a: "100%%", x-b: "%REQ(x-c?x-d):5%%PROTOCOL%"}}}, route: [{destination: {host: reviews}}]}]}
`,
	} {
		list, diags := objects.Decode(name, []byte(text))
		var objs []any
		for _, o := range list {
			objs = append(objs, o.Object)
		}
		if len(diags) > 0 || len(objs) == 0 {
			t.Errorf("%s: %v", name, diags)
		}
		if err := accepted(objs); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestValidFilesAreAccepted does the same with the files of objects that decoding accepts.
func TestValidFilesAreAccepted(t *testing.T) {
	files, err := filepath.Glob("../objects/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		list, _ := objects.Decode(file, data)
		var objs []any
		for _, o := range list {
			objs = append(objs, o.Object)
		}
		if err := accepted(objs); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
