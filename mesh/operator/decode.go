package operator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/meshproof/meshproof/mesh/install"
	"github.com/meshproof/meshproof/mesh/objects"
)

// APIVersion and Kind are those of the objects that this package reads.
const (
	APIVersion = "install.istio.io/v1alpha1"
	Kind       = "IstioOperator"
)

// Plan is an IstioOperator object that can be carried out.
type Plan struct {
	Object  IstioOperator
	Line    int             // where it begins in its file
	Options install.Options // without Tag where the object names none
}

// Decode reads the IstioOperator objects of a YAML file, strictly, and says everything that is wrong with each, by line and
// field: unknown fields, wrong types, and what this mesh does not do. Warnings name what changes nothing. An object with errors
// is not among the results; documents of other kinds are left to others.
func Decode(file string, data []byte) ([]Plan, []objects.Diagnostic) {
	var plans []Plan
	var diags []objects.Diagnostic
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return plans, diags
		}
		if err != nil {
			line := 0
			fmt.Sscanf(err.Error(), "yaml: line %d:", &line) //nolint:errcheck // without a line number the message stands alone
			return plans, append(diags, objects.Diagnostic{File: file, Line: line, Column: 1, Problem: objects.Problem{
				Severity: objects.Error, Field: "(file)", Message: err.Error(), Fix: "mend the YAML",
			}})
		}
		if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
			continue
		}
		root := doc.Content[0]
		group, _, _ := strings.Cut(scalar(root, "apiVersion"), "/")
		if group != "install.istio.io" && scalar(root, "kind") != Kind {
			continue
		}
		w := &walker{file: file, root: root}
		if p := w.plan(); p != nil && !w.failed {
			plans = append(plans, *p)
		}
		slices.SortStableFunc(w.diags, func(a, b objects.Diagnostic) int { return cmp.Compare(a.Line, b.Line) })
		diags = append(diags, w.diags...)
	}
}

// FromObject reads an object as the API server has it. The problems name fields; there are no lines.
func FromObject(object map[string]any) (Plan, []objects.Problem) {
	raw, err := sigsyaml.Marshal(object)
	if err != nil {
		return Plan{}, []objects.Problem{{Severity: objects.Error, Field: "(object)", Message: err.Error()}}
	}
	plans, diags := Decode("", raw)
	var problems []objects.Problem
	for _, d := range diags {
		problems = append(problems, d.Problem)
	}
	if len(plans) == 0 {
		return Plan{}, problems
	}
	return plans[0], problems
}

func scalar(n *yaml.Node, key string) string {
	if v := child(n, key); v != nil {
		return v.Value
	}
	return ""
}

// plan checks the document and translates it; nil if that cannot be done.
func (w *walker) plan() *Plan {
	if v := child(w.root, "apiVersion"); v == nil || v.Value != APIVersion {
		w.err(or(v, w.root), "apiVersion", fmt.Sprintf("is %q", scalar(w.root, "apiVersion")), "use "+APIVersion)
		return nil
	}
	if v := child(w.root, "kind"); v == nil || v.Value != Kind {
		w.err(or(v, w.root), "kind", fmt.Sprintf("kind %s is not in this API group", scalar(w.root, "kind")), "use "+Kind)
		return nil
	}
	p := &Plan{Line: w.root.Line}
	w.value(w.root, typeOf(p.Object), "")
	if w.failed {
		return nil
	}
	if err := convert(w.root, &p.Object); err != nil {
		w.err(w.root, "(object)", err.Error(), "")
		return nil
	}
	var problems []objects.Problem
	p.Options, problems = translate(p.Object)
	for _, x := range problems {
		w.report(w.find(x.Field), x)
	}
	return p
}

// convert decodes a node by way of JSON, as the API server would.
func convert(n *yaml.Node, out any) error {
	var tree any
	if err := n.Decode(&tree); err != nil {
		return err
	}
	raw, err := yaml.Marshal(tree)
	if err != nil {
		return err
	}
	if raw, err = sigsyaml.YAMLToJSON(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

func or(n, otherwise *yaml.Node) *yaml.Node {
	if n == nil {
		return otherwise
	}
	return n
}
