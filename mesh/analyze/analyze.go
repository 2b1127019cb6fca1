// Package analyze says what is wrong with files of objects before they are applied, each by itself and against what else the mesh has.
package analyze

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
	networking "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/mesh/operator"
)

// Input is what is looked at.
type Input struct {
	Files []File
	There []any // what the mesh has: Services, Pods and traffic objects, as a model.Builder takes them
	// Namespace is that of objects of files that name none.
	Namespace string
	Now       time.Time // objects of files count as made now
}

// File is a YAML file.
type File struct {
	Name string
	Data []byte
}

// Files says what is wrong with the objects of the files, in their order. Objects of a file stand in for those of the same name that are
// there. It is pure.
func Files(in Input) []objects.Diagnostic {
	b := builder(in)
	for _, o := range in.There {
		b.Set(o)
	}
	at := map[model.Key]objects.Object{}
	var out []objects.Diagnostic
	for _, f := range in.Files {
		list, diags := objects.Decode(f.Name, f.Data)
		_, iops := operator.Decode(f.Name, f.Data)
		out = append(append(out, diags...), iops...)
		for _, o := range list {
			in.adopt(o.Object)
			at[model.Key{Kind: o.Kind, Namespace: o.Object.GetNamespace(), Name: o.Object.GetName()}] = o
			b.Set(o.Object)
		}
		services, diags := others(f)
		out = append(out, diags...)
		for _, s := range services {
			in.adopt(s)
			b.Set(s)
		}
	}
	for _, p := range append(b.Build().Problems, unselected(in.There, at)...) {
		o, ok := at[p.Object]
		if !ok || slices.Contains(objects.Validate(o.Object), p.Problem) { // decoding has said those
			continue
		}
		line, column := o.Place(p.Problem.Field)
		out = append(out, objects.Diagnostic{File: o.File, Line: line, Column: column, Problem: p.Problem})
	}
	order := map[string]int{}
	for i, f := range in.Files {
		order[f.Name] = i
	}
	slices.SortStableFunc(out, func(a, b objects.Diagnostic) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line))
	})
	// A file that is no YAML is so to every reader.
	return slices.CompactFunc(out, func(a, b objects.Diagnostic) bool { return a == b })
}

// Mesh says what is wrong with the objects that are there.
func Mesh(there []any) []model.ObjectProblem {
	b := builder(Input{})
	for _, o := range there {
		b.Set(o)
	}
	at := map[model.Key]objects.Object{}
	for _, o := range there {
		if g, ok := o.(*networking.Gateway); ok {
			at[model.Key{Kind: "Gateway", Namespace: g.Namespace, Name: g.Name}] = objects.Object{Object: g}
		}
	}
	return append(b.Build().Problems, unselected(there, at)...)
}

// unselected finds Gateways that no pod serves, where the pods are known. Labels that no pod has are most often misspelt.
func unselected(there []any, among map[model.Key]objects.Object) []model.ObjectProblem {
	var pods []map[string]string
	for _, o := range there {
		if p, ok := o.(*corev1.Pod); ok {
			pods = append(pods, p.Labels)
		}
	}
	var out []model.ObjectProblem
	for _, k := range slices.SortedFunc(maps.Keys(among), func(a, b model.Key) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}) {
		g, ok := among[k].Object.(*networking.Gateway)
		if !ok || len(pods) == 0 || slices.ContainsFunc(pods, func(labels map[string]string) bool { return model.Matches(g.Spec.Selector, labels) }) {
			continue
		}
		var fix string
		for _, name := range slices.Sorted(maps.Keys(g.Spec.Selector)) {
			var values []string
			for _, labels := range pods {
				values = append(values, labels[name])
			}
			if n := objects.Nearest(g.Spec.Selector[name], values); n != "" && n != g.Spec.Selector[name] {
				fix = fmt.Sprintf("did you mean %s: %s?", name, n)
			}
		}
		out = append(out, model.ObjectProblem{Object: k, Generation: g.Generation, InForce: "this", Problem: objects.Problem{
			Severity: objects.Warning, Field: "spec.selector", Message: "no pod has these labels, so nothing serves the gateway", Fix: fix,
		}})
	}
	return out
}

func builder(in Input) *model.Builder {
	m := model.Mesh{DomainSuffix: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}
	return model.NewBuilder(m, func() time.Time { return in.Now })
}

// adopt gives an object of a file what the API server would.
func (in Input) adopt(o metav1.Object) {
	if o.GetNamespace() == "" {
		o.SetNamespace(cmp.Or(in.Namespace, metav1.NamespaceDefault))
	}
	o.SetCreationTimestamp(metav1.NewTime(in.Now))
}

// others reads the Services of a file, and names objects that nothing here would obey.
func others(f File) ([]*corev1.Service, []objects.Diagnostic) {
	var services []*corev1.Service
	var diags []objects.Diagnostic
	dec := yaml.NewDecoder(bytes.NewReader(f.Data))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); err != nil {
			return services, diags // the end, or what objects.Decode has said
		}
		var head struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode || doc.Decode(&head) != nil {
			continue
		}
		group, _, _ := strings.Cut(head.APIVersion, "/")
		problem := objects.Problem{Severity: objects.Error, Field: "kind"}
		switch {
		case head.APIVersion == "v1" && head.Kind == "Service":
			s, err := service(&doc)
			if err == nil {
				services = append(services, s)
				continue
			}
			problem.Field, problem.Message = "(object)", err.Error()
		case head.APIVersion == "v1" && head.Kind == "List":
			problem.Message, problem.Fix = "a List is not looked into", "write its items as documents of their own"
		case group == objects.Group, group == "install.istio.io":
			continue
		case strings.HasSuffix(group, ".istio.io"), group == "gateway.networking.k8s.io":
			problem.Message, problem.Fix = fmt.Sprintf("kind %s of %s is not supported", head.Kind, group), "leave it out"
		default:
			continue
		}
		n := doc.Content[0]
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == problem.Field {
				n = n.Content[i+1]
				break
			}
		}
		diags = append(diags, objects.Diagnostic{File: f.Name, Line: n.Line, Column: n.Column, Problem: problem})
	}
}

func service(doc *yaml.Node) (*corev1.Service, error) {
	raw, err := yaml.Marshal(doc)
	if err != nil {
		return nil, err
	}
	s := &corev1.Service{}
	if err := sigsyaml.Unmarshal(raw, s); err != nil {
		return nil, err
	}
	if s.Name == "" {
		return nil, errors.New("a Service without a name")
	}
	return s, nil
}
