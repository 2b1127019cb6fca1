package operator

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"gopkg.in/yaml.v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/meshproof/meshproof/mesh/objects"
)

// walker checks the nodes of one document against Go types.
type walker struct {
	file   string
	root   *yaml.Node
	diags  []objects.Diagnostic
	failed bool
}

func (w *walker) report(n *yaml.Node, p objects.Problem) {
	w.diags = append(w.diags, objects.Diagnostic{File: w.file, Line: n.Line, Column: n.Column, Problem: p})
	w.failed = w.failed || p.Severity == objects.Error
}

func (w *walker) err(n *yaml.Node, field, message, fix string) {
	w.report(n, objects.Problem{Severity: objects.Error, Field: field, Message: message, Fix: fix})
}

var (
	unmarshaler = reflect.TypeFor[json.Unmarshaler]()
	rawMessage  = reflect.TypeFor[json.RawMessage]()
)

func typeOf(v any) reflect.Type { return reflect.TypeOf(v) }

// value checks one node: names and kinds of values, all the way down.
func (w *walker) value(n *yaml.Node, t reflect.Type, at string) {
	n = resolve(n)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Tag == "!!null" || t == rawMessage {
		return
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		if err := convert(n, reflect.New(t).Interface()); err != nil {
			w.err(n, at, fmt.Sprintf("%s is no %s", described(n), strings.ToLower(t.Name())), err.Error())
		}
		return
	}
	want := ""
	switch t.Kind() {
	case reflect.Struct:
		if n.Kind == yaml.MappingNode {
			w.fields(n, t, at)
			return
		}
		want = "a mapping"
	case reflect.Map:
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				w.value(n.Content[i+1], t.Elem(), at+"["+n.Content[i].Value+"]")
			}
			return
		}
		want = "a mapping"
	case reflect.Slice:
		if n.Kind == yaml.SequenceNode {
			for i, item := range n.Content {
				w.value(item, t.Elem(), at+"["+strconv.Itoa(i)+"]")
			}
			return
		}
		want = "a list"
	case reflect.String:
		if n.Tag != "!!str" {
			want = "a string"
		}
	case reflect.Bool:
		if n.Tag != "!!bool" {
			want = "true or false"
		}
	case reflect.Int32, reflect.Int64:
		if _, err := strconv.ParseInt(n.Value, 0, t.Bits()); n.Tag != "!!int" || err != nil {
			want = "a whole number of " + strconv.Itoa(t.Bits()) + " bits"
		}
	}
	if want == "" {
		return
	}
	fix := ""
	if want == "a string" && n.Kind == yaml.ScalarNode {
		fix = fmt.Sprintf("quote it: %q", n.Value)
	}
	w.err(n, at, fmt.Sprintf("is %s, want %s", described(n), want), fix)
}

// fields checks a mapping against a struct.
func (w *walker) fields(n *yaml.Node, t reflect.Type, at string) {
	known := map[string]reflect.StructField{}
	flatten(t, known)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := k.Value
		if at != "" {
			path = at + "." + k.Value
		}
		f, ok := known[k.Value]
		if !ok {
			w.unknown(k, t, path, known)
			continue
		}
		if seen[k.Value] {
			w.err(k, path, "is there twice", "keep one")
		}
		seen[k.Value] = true
		if note := f.Tag.Get("mesh"); note != "" && resolve(v).Tag != "!!null" {
			verb, why, _ := strings.Cut(note, ": ")
			if verb == "refused" {
				w.err(k, path, "is not supported", why)
				continue
			}
			w.report(k, objects.Problem{Severity: objects.Warning, Field: path, Message: "has no effect", Fix: why})
		}
		w.value(v, f.Type, path)
	}
}

// unknown says what is wrong with a field that is none of ours: Istio may have it, or something was misspelt.
func (w *walker) unknown(k *yaml.Node, t reflect.Type, path string, known map[string]reflect.StructField) {
	var names []string
	for name := range known {
		names = append(names, name)
	}
	var theirs protoreflect.MessageDescriptor
	switch t {
	case reflect.TypeFor[MeshConfig]():
		theirs = (&meshconfig.MeshConfig{}).ProtoReflect().Descriptor()
	case reflect.TypeFor[ProxyConfig]():
		theirs = (&meshconfig.ProxyConfig{}).ProtoReflect().Descriptor()
	case reflect.TypeFor[Values](), reflect.TypeFor[Global](), reflect.TypeFor[IstiodRemote](), reflect.TypeFor[GatewayValues]():
		w.err(k, path, "is not supported", "leave it out, or use spec.components; of the values only istiodRemote.injectionPath and global.meshID, network, multiCluster.clusterName, remotePilotAddress, istioNamespace, hub and tag are honoured")
		return
	}
	if theirs != nil {
		if theirs.Fields().ByJSONName(k.Value) != nil {
			w.err(k, path, "is not supported", "leave it out")
			return
		}
		for i := range theirs.Fields().Len() {
			names = append(names, theirs.Fields().Get(i).JSONName())
		}
	}
	fix := ""
	if n := objects.Nearest(k.Value, names); n != "" {
		fix = fmt.Sprintf("did you mean %q?", n)
	}
	w.err(k, path, fmt.Sprintf("unknown field %q", k.Value), fix)
}

// flatten lists the fields of a struct by their JSON names, those of embedded structs among them.
func flatten(t reflect.Type, out map[string]reflect.StructField) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			flatten(f.Type, out)
			continue
		}
		if f.IsExported() && name != "" && name != "-" {
			out[name] = f
		}
	}
}

// find returns the node that a field path names, or the nearest one above it.
func (w *walker) find(path string) *yaml.Node {
	n := w.root
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		var next *yaml.Node
		if n.Kind == yaml.SequenceNode {
			if i, err := strconv.Atoi(part); err == nil && i < len(n.Content) {
				next = resolve(n.Content[i])
			}
		} else {
			next = child(n, part)
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

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func described(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(n.Value)
}
