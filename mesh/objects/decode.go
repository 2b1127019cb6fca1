package objects

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"gopkg.in/yaml.v3"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

// Group is the API group of the kinds that this package reads, and Versions the versions of it, all alike.
const Group = "networking.istio.io"

// Versions of Group.
var Versions = []string{"v1", "v1beta1", "v1alpha3"}

// Object is an object read from a file.
type Object struct {
	Kind string
	// Object is a *VirtualService, *DestinationRule or *Gateway of istio.io/client-go's networking/v1.
	Object metav1.Object
	File   string
	Line   int
	root   *yaml.Node
}

// Place is where a field of the object is in its file, or the nearest one above it.
func (o Object) Place(field string) (line, column int) {
	n := (&decoder{root: o.root}).find(field)
	return n.Line, n.Column
}

// Diagnostic is a problem with the place that it comes from.
type Diagnostic struct {
	File         string
	Line, Column int
	Problem      Problem
}

func (d Diagnostic) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s: %s", d.File, d.Line, d.Column, d.Problem.Field, d.Problem.Message)
	if d.Problem.Fix != "" {
		s += "; " + d.Problem.Fix
	}
	return s
}

// Decode reads the Istio objects of a YAML file, strictly, and says everything that is wrong with each, with line and
// column: unknown fields, wrong types, and what Validate finds. Documents of other API groups are left to others. An object
// with errors is not among the results.
func Decode(file string, data []byte) ([]Object, []Diagnostic) {
	var objects []Object
	var diags []Diagnostic
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return objects, diags
		}
		if err != nil {
			line := 0
			fmt.Sscanf(err.Error(), "yaml: line %d:", &line) //nolint:errcheck // without a line number the message stands alone
			return objects, append(diags, Diagnostic{file, line, 1, Problem{Severity: Error, Field: "(file)", Message: err.Error(), Fix: "mend the YAML"}})
		}
		if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
			continue
		}
		d := &decoder{file: file, root: doc.Content[0]}
		if o := d.object(); o != nil && !d.failed {
			objects = append(objects, *o)
		}
		diags = append(diags, d.diags...)
	}
}

type decoder struct {
	file   string
	root   *yaml.Node
	diags  []Diagnostic
	failed bool
}

func (d *decoder) report(n *yaml.Node, p Problem) {
	d.diags = append(d.diags, Diagnostic{d.file, n.Line, n.Column, p})
	d.failed = d.failed || p.Severity == Error
}

func (d *decoder) err(n *yaml.Node, field, message, fix string) {
	d.report(n, Problem{Severity: Error, Field: field, Message: message, Fix: fix})
}

func (d *decoder) object() *Object {
	apiVersion, kind := child(d.root, "apiVersion"), child(d.root, "kind")
	if apiVersion == nil || kind == nil {
		return nil
	}
	group, version, _ := strings.Cut(apiVersion.Value, "/")
	if group != Group {
		return nil
	}
	if !slices.Contains(Versions, version) {
		d.err(apiVersion, "apiVersion", fmt.Sprintf("%s has no version %q", Group, version), "use one of "+strings.Join(Versions, ", "))
		return nil
	}
	var obj metav1.Object
	var spec protoreflect.MessageDescriptor
	switch kind.Value {
	case "VirtualService":
		obj, spec = &networking.VirtualService{}, (&networkingv1alpha3.VirtualService{}).ProtoReflect().Descriptor()
	case "DestinationRule":
		obj, spec = &networking.DestinationRule{}, (&networkingv1alpha3.DestinationRule{}).ProtoReflect().Descriptor()
	case "Gateway":
		obj, spec = &networking.Gateway{}, (&networkingv1alpha3.Gateway{}).ProtoReflect().Descriptor()
	default:
		d.err(kind, "kind", fmt.Sprintf("kind %s is not supported", kind.Value), didYouMean(kind.Value, []string{"VirtualService", "DestinationRule", "Gateway"}))
		return nil
	}
	for i := 0; i+1 < len(d.root.Content); i += 2 {
		k := d.root.Content[i]
		if known := []string{"apiVersion", "kind", "metadata", "spec", "status"}; !slices.Contains(known, k.Value) {
			d.err(k, k.Value, fmt.Sprintf("unknown field %q", k.Value), didYouMean(k.Value, known))
		}
	}
	if n := child(d.root, "spec"); n != nil {
		d.message(n, spec, "spec", spec)
	}
	if d.failed {
		return nil
	}
	var tree any
	if err := d.root.Decode(&tree); err != nil {
		d.err(d.root, "(object)", err.Error(), "")
		return nil
	}
	raw, err := yaml.Marshal(tree)
	if err == nil {
		raw, err = sigsyaml.YAMLToJSON(raw)
	}
	if err == nil {
		err = json.Unmarshal(raw, obj)
	}
	if err != nil {
		d.err(d.root, "(object)", err.Error(), "")
		return nil
	}
	for _, p := range Validate(obj) {
		d.report(d.find(p.Field), p)
	}
	return &Object{Kind: kind.Value, Object: obj, File: d.file, Line: d.root.Line, root: d.root}
}

// message checks a mapping against a message of Istio's API: names and kinds of values.
func (d *decoder) message(n *yaml.Node, m protoreflect.MessageDescriptor, at string, top protoreflect.MessageDescriptor) {
	n = resolve(n)
	if done := d.wellKnown(n, m, at); done {
		return
	}
	if n.Kind != yaml.MappingNode {
		if n.Tag != "!!null" {
			d.err(n, at, fmt.Sprintf("is %s, want a mapping", kindOf(n)), "")
		}
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], resolve(n.Content[i+1])
		path := at + "." + k.Value
		f := m.Fields().ByJSONName(k.Value)
		if f == nil {
			f = m.Fields().ByName(protoreflect.Name(k.Value))
		}
		if f == nil {
			d.err(k, path, fmt.Sprintf("unknown field %q", k.Value), unknownFix(k.Value, m, top))
			continue
		}
		if seen[f.JSONName()] {
			d.err(k, path, "is there twice", "keep one")
		}
		seen[f.JSONName()] = true
		switch {
		case v.Tag == "!!null":
		case f.IsMap():
			if v.Kind != yaml.MappingNode {
				d.err(v, path, fmt.Sprintf("is %s, want a mapping", kindOf(v)), "")
				continue
			}
			for j := 0; j+1 < len(v.Content); j += 2 {
				d.value(v.Content[j+1], f.MapValue(), fmt.Sprintf("%s[%s]", path, v.Content[j].Value), top)
			}
		case f.IsList():
			if v.Kind != yaml.SequenceNode {
				d.err(v, path, fmt.Sprintf("is %s, want a list", kindOf(v)), fmt.Sprintf("write it as a list: - ... under %s", k.Value))
				continue
			}
			for j, item := range v.Content {
				d.value(item, f, fmt.Sprintf("%s[%d]", path, j), top)
			}
		default:
			d.value(v, f, path, top)
		}
	}
}

// value checks one value that is neither list nor map.
func (d *decoder) value(n *yaml.Node, f protoreflect.FieldDescriptor, at string, top protoreflect.MessageDescriptor) {
	n = resolve(n)
	if f.Message() != nil {
		d.message(n, f.Message(), at, top)
		return
	}
	want := ""
	switch f.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		if n.Tag != "!!str" {
			want = "a string"
		}
	case protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			want = "true or false"
		}
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		if n.Tag == "!!str" && values.ByName(protoreflect.Name(n.Value)) == nil {
			var all []string
			for i := range values.Len() {
				all = append(all, string(values.Get(i).Name()))
			}
			fix := didYouMean(strings.ToUpper(n.Value), all)
			if fix == "" {
				fix = "use one of " + strings.Join(all, ", ")
			}
			d.err(n, at, fmt.Sprintf("%q is none of its values", n.Value), fix)
		} else if n.Tag != "!!str" && n.Tag != "!!int" {
			want = "a name"
		}
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		if n.Tag != "!!int" && n.Tag != "!!float" {
			want = "a number"
		}
	default:
		if n.Tag != "!!int" {
			want = "a whole number"
		} else if strings.HasPrefix(n.Value, "-") && (f.Kind() == protoreflect.Uint32Kind || f.Kind() == protoreflect.Uint64Kind) {
			want = "0 or more"
		} else if f.Kind() == protoreflect.Uint32Kind || f.Kind() == protoreflect.Int32Kind {
			var x int32
			var u uint32
			if f.Kind() == protoreflect.Int32Kind && n.Decode(&x) != nil || f.Kind() == protoreflect.Uint32Kind && n.Decode(&u) != nil {
				want = "a number of 32 bits"
			}
		}
	}
	if want != "" {
		fix := ""
		if want == "a string" && n.Kind == yaml.ScalarNode {
			fix = fmt.Sprintf("quote it: %q", n.Value)
		}
		d.err(n, at, fmt.Sprintf("is %s, want %s", kindOf(n), want), fix)
	}
}

// wellKnown checks the messages of protobuf itself, which are written as scalars.
func (d *decoder) wellKnown(n *yaml.Node, m protoreflect.MessageDescriptor, at string) bool {
	switch m.FullName() {
	case "google.protobuf.Duration":
		if n.Kind != yaml.ScalarNode || !isDuration(n.Value) {
			d.err(n, at, fmt.Sprintf("%q is not a duration", n.Value), "write it in seconds with unit: 2s, 0.5s")
		}
	case "google.protobuf.BoolValue":
		if n.Tag != "!!bool" {
			d.err(n, at, fmt.Sprintf("is %s, want true or false", kindOf(n)), "")
		}
	case "google.protobuf.UInt32Value":
		var u uint32
		if n.Tag != "!!int" || n.Decode(&u) != nil {
			d.err(n, at, fmt.Sprintf("is %s, want a whole number, 0 or more", kindOf(n)), "")
		}
	case "google.protobuf.DoubleValue":
		if n.Tag != "!!int" && n.Tag != "!!float" {
			d.err(n, at, fmt.Sprintf("is %s, want a number", kindOf(n)), "")
		}
	default:
		return false
	}
	return true
}

// unknownFix says what was probably meant: a name much like it, or the place where a field of that name belongs.
func unknownFix(name string, m, top protoreflect.MessageDescriptor) string {
	var where []string
	search(top, "spec", name, map[protoreflect.FullName]bool{}, &where)
	var names []string
	for i := range m.Fields().Len() {
		names = append(names, m.Fields().Get(i).JSONName())
	}
	if n := Nearest(name, names); n != "" && (len(where) == 0 || distance(name, n) == 1 || strings.HasPrefix(n, name)) {
		return fmt.Sprintf("did you mean %q?", n)
	}
	if len(where) > 0 {
		slices.SortStableFunc(where, func(a, b string) int { return strings.Count(a, ".") - strings.Count(b, ".") })
		return "did you mean " + where[0] + "?"
	}
	return "known here: " + strings.Join(names, ", ")
}

func search(m protoreflect.MessageDescriptor, at, name string, seen map[protoreflect.FullName]bool, out *[]string) {
	if seen[m.FullName()] {
		return
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := at + "." + f.JSONName()
		if f.JSONName() == name {
			*out = append(*out, path)
		}
		if f.Message() != nil && !f.IsMap() {
			if f.IsList() {
				path += "[]"
			}
			search(f.Message(), path, name, seen, out)
		}
	}
}

// find returns the node that a field path names, or the nearest one above it.
func (d *decoder) find(path string) *yaml.Node {
	n := d.root
	for path != "" {
		var key string
		if strings.HasPrefix(path, "[") {
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return n
			}
			key, path = path[1:end], path[end+1:]
		} else {
			path = strings.TrimPrefix(path, ".")
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			key, path = path[:end], path[end:]
		}
		var next *yaml.Node
		if n.Kind == yaml.SequenceNode {
			i := -1
			fmt.Sscanf(key, "%d", &i) //nolint:errcheck // i stays -1
			if i >= 0 && i < len(n.Content) {
				next = resolve(n.Content[i])
			}
		} else {
			next = child(n, key)
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "empty"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

// isDuration accepts what the API server's JSON accepts, a number with unit s, and Go's units, which Istio's accept too.
func isDuration(s string) bool {
	var m metav1.Duration
	return json.Unmarshal([]byte(fmt.Sprintf("%q", s)), &m) == nil
}
