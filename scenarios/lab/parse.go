package lab

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/meshproof/meshproof/clusters"
)

// maxFile bounds what Parse reads: far above any real lab, far below what could hurt.
const maxFile = 1 << 20

// Parse decodes, defaults and validates one Lab file. file is the name that errors carry. The error is FileErrors, complete.
func Parse(file string, data []byte) (*Lab, error) {
	d := &decoder{file: file}
	l := d.lab(data)
	if len(d.problems) > 0 {
		slices.SortStableFunc(d.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
		})
		return nil, d.problems
	}
	return l, nil
}

type decoder struct {
	file     string
	problems FileErrors
	later    []func(*Lab) // checks of names that may be defined further down
}

func (d *decoder) bad(n *yaml.Node, field, format string, args ...any) {
	line, col := 1, 1
	if n != nil && n.Line > 0 {
		line, col = n.Line, n.Column
	}
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Col: col, Field: field, Text: fmt.Sprintf(format, args...)})
}

func (d *decoder) lab(data []byte) *Lab {
	if len(data) > maxFile {
		d.bad(nil, "", "is %d bytes long; a lab file has at most %d", len(data), maxFile)
		return nil
	}
	root := d.document(data)
	if root == nil {
		return nil
	}
	// Defaults; a field that the file has replaces its own.
	l := &Lab{
		Provider: "local",
		Profile:  Quick,
		Networks: []string{clusters.DefaultNetwork},
		Clusters: []Cluster{{Name: "east", Nodes: 1}},
		Mesh:     Mesh{Driver: "bundled", Revision: "default"},
		Apps:     []string{"bookinfo", "hello"},
	}
	seen := d.mapping(root, "", map[string]func(*yaml.Node, string){
		"apiVersion": func(n *yaml.Node, at string) { l.APIVersion = d.oneOf(n, at, []string{APIVersion}) },
		"kind":       func(n *yaml.Node, at string) { l.Kind = d.oneOf(n, at, []string{Kind}) },
		"name":       func(n *yaml.Node, at string) { l.Name = d.label(n, at) },
		"provider":   func(n *yaml.Node, at string) { l.Provider = d.oneOf(n, at, Providers()) },
		"profile":    func(n *yaml.Node, at string) { l.Profile = Profile(d.oneOf(n, at, Profiles())) },
		"networks":   func(n *yaml.Node, at string) { l.Networks = d.networks(n, at) },
		"clusters":   func(n *yaml.Node, at string) { l.Clusters = d.clusters(n, at) },
		"mesh":       func(n *yaml.Node, at string) { d.mesh(n, at, &l.Mesh) },
		"apps":       func(n *yaml.Node, at string) { l.Apps = d.apps(n, at) },
	})
	d.resolve(l)
	for _, required := range []struct{ field, fix string }{
		{"apiVersion", "apiVersion: " + APIVersion},
		{"kind", "kind: " + Kind},
		{"name", "name: one (any DNS label)"},
	} {
		if !seen[required.field] {
			d.bad(root, required.field, "is missing; add %q", required.fix)
		}
	}
	return l
}

// document returns the one mapping of the file, or nil after noting why there is none.
func (d *decoder) document(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			d.bad(nil, "", "is empty; start with \"apiVersion: %s\" and \"kind: %s\"", APIVersion, Kind)
			return nil
		}
		d.syntax(err)
		return nil
	}
	var next yaml.Node
	switch err := dec.Decode(&next); {
	case err == nil:
		d.bad(&next, "", "a second document; a lab file has one")
	case !errors.Is(err, io.EOF):
		d.syntax(err)
		return nil
	}
	if len(doc.Content) != 1 {
		d.bad(&doc, "", "has no content; start with \"apiVersion: %s\"", APIVersion)
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		d.bad(root, "", "%s where fields are needed; start with \"apiVersion: %s\"", describe(root), APIVersion)
		return nil
	}
	return root
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntax reports an error of the YAML reader, which gives a line but no column.
func (d *decoder) syntax(err error) {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil && n > 0 {
			line = n
		}
	}
	d.bad(&yaml.Node{Line: line, Column: 1}, "", "is not YAML: %s", text)
}

// mapping calls the decoder of each field of n and returns the names that n has.
func (d *decoder) mapping(n *yaml.Node, at string, fields map[string]func(n *yaml.Node, at string)) map[string]bool {
	seen := map[string]bool{}
	if n.Kind != yaml.MappingNode {
		d.bad(n, at, "%s where fields are needed (%s)", describe(n), strings.Join(sortedKeys(fields), ", "))
		return seen
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := key.Value
		if at != "" {
			path = at + "." + key.Value
		}
		decode, known := fields[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !known:
			d.bad(key, path, "is not a field%s", suggest(key.Value, sortedKeys(fields)))
		case seen[key.Value]:
			d.bad(key, path, "stands here a second time; keep one")
		default:
			seen[key.Value] = true
			decode(value, path)
		}
	}
	return seen
}

func (d *decoder) list(n *yaml.Node, at string, item func(n *yaml.Node, at string)) {
	if n.Kind != yaml.SequenceNode {
		d.bad(n, at, "%s where a list is needed; write \"- ...\"", describe(n))
		return
	}
	for i, c := range n.Content {
		item(c, fmt.Sprintf("%s[%d]", at, i))
	}
}

func (d *decoder) mesh(n *yaml.Node, at string, m *Mesh) {
	d.mapping(n, at, map[string]func(*yaml.Node, string){
		"driver":   func(n *yaml.Node, at string) { m.Driver = d.oneOf(n, at, Drivers()) },
		"revision": func(n *yaml.Node, at string) { m.Revision = d.label(n, at) },
		"deferred": func(n *yaml.Node, at string) { m.Deferred = d.oneOf(n, at, []string{"true", "false"}) == "true" },
	})
}

func (d *decoder) apps(n *yaml.Node, at string) []string {
	out := []string{}
	d.list(n, at, func(n *yaml.Node, at string) {
		a := d.oneOf(n, at, Apps())
		if a != "" && slices.Contains(out, a) {
			d.bad(n, at, "%q stands in the list already; keep one", a)
		}
		out = append(out, a)
	})
	return out
}

func (d *decoder) text(n *yaml.Node, at, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.bad(n, at, "%s where %s is needed", describe(n), want)
		return "", false
	}
	return n.Value, true
}

func (d *decoder) oneOf(n *yaml.Node, at string, allowed []string) string {
	v, ok := d.text(n, at, "one of "+strings.Join(allowed, ", "))
	if !ok {
		return ""
	}
	if !slices.Contains(allowed, v) {
		if len(allowed) == 1 {
			d.bad(n, at, "%q is not known; this version has %q", v, allowed[0])
		} else {
			d.bad(n, at, "%q is not one of %s%s", v, strings.Join(allowed, ", "), didYouMean(v, allowed))
		}
		return ""
	}
	return v
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// maxLabel leaves room for the names that are made from it.
const maxLabel = 30

// CheckName returns why name cannot be the name of a lab or cluster, or nil.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty; use a DNS label such as one")
	case len(name) > maxLabel:
		return fmt.Errorf("%q has %d characters; use at most %d", name, len(name), maxLabel)
	case !dnsLabel.MatchString(name):
		return fmt.Errorf("%q is not a DNS label; use a-z, 0-9 and -, as in %q", name, asLabel(name))
	}
	return nil
}

func (d *decoder) label(n *yaml.Node, at string) string {
	v, ok := d.text(n, at, "a DNS label")
	if !ok {
		return ""
	}
	if err := CheckName(v); err != nil {
		d.bad(n, at, "%v", err)
		return ""
	}
	return v
}

func asLabel(s string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, s)
	if out = strings.Trim(out, "-"); out == "" {
		return "one"
	}
	return out
}

func (d *decoder) integer(n *yaml.Node, at string, low, high int) int {
	v, ok := d.text(n, at, fmt.Sprintf("a number from %d to %d", low, high))
	if !ok {
		return 0
	}
	i, err := strconv.Atoi(v)
	if err != nil || i < low || i > high {
		d.bad(n, at, "%q is not a whole number from %d to %d", v, low, high)
		return 0
	}
	return i
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "fields"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias (*" + n.Value + ")"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(n.Value)
}
