package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kyaml "sigs.k8s.io/yaml"
)

// Manifest is YAML of one or more documents. Name is what errors call it, a file name for example.
type Manifest struct {
	Name string
	YAML []byte
}

// document is one object of a manifest, with its YAML nodes to find lines in.
type document struct {
	manifest string
	line     int // of its first key
	node     *yaml.Node
	object   *unstructured.Unstructured
}

// parse splits a manifest into its objects; empty documents are left out and Lists are taken apart.
func parse(m Manifest) ([]document, error) {
	var docs []document
	dec := yaml.NewDecoder(bytes.NewReader(m.YAML))
	for {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, syntaxError(m.Name, err)
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue
		}
		more, err := fromNode(m.Name, node.Content[0])
		if err != nil {
			return nil, err
		}
		docs = append(docs, more...)
	}
}

func fromNode(name string, node *yaml.Node) ([]document, error) {
	at := fmt.Sprintf("%s:%d", name, node.Line)
	if node.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: want an object with apiVersion and kind", at)
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	js, err := kyaml.YAMLToJSONStrict(text) // duplicate keys are mistakes
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	obj := &unstructured.Unstructured{}
	if err := obj.UnmarshalJSON(js); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	if obj.IsList() {
		var docs []document
		items := child(node, "items")
		if items == nil {
			return nil, nil
		}
		for _, item := range items.Content {
			more, err := fromNode(name, item)
			if err != nil {
				return nil, err
			}
			docs = append(docs, more...)
		}
		return docs, nil
	}
	switch {
	case obj.GetAPIVersion() == "":
		return nil, fmt.Errorf("%s: apiVersion is missing", at)
	case obj.GetName() == "":
		return nil, fmt.Errorf("%s: %s: metadata.name is missing", at, obj.GetKind())
	}
	return []document{{manifest: name, line: node.Line, node: node, object: obj}}, nil
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

func syntaxError(name string, err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s:%s: %s", name, m[1], m[2])
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (d document) String() string {
	name := d.object.GetName()
	if ns := d.object.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return d.object.GetKind() + " " + name
}

// at is file:line of a field as the API server writes paths: spec.rules[0].name, data[some.key]. Where the path leads out of
// the document, the nearest line above it is taken.
func (d document) at(field string) string {
	return fmt.Sprintf("%s:%d", d.manifest, fieldLine(d.node, d.line, field))
}

func fieldLine(node *yaml.Node, line int, field string) int {
	for field != "" && node != nil {
		var key string
		if strings.HasPrefix(field, "[") {
			key, field, _ = strings.Cut(field[1:], "]")
		} else {
			end := strings.IndexAny(field, ".[")
			if end < 0 {
				end = len(field)
			}
			key, field = field[:end], field[end:]
		}
		field = strings.TrimPrefix(field, ".")
		if node.Kind == yaml.SequenceNode {
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(node.Content) {
				return line
			}
			node = node.Content[i]
			line = node.Line
			continue
		}
		k, v := entry(node, key)
		if k == nil {
			return line
		}
		node, line = v, k.Line
	}
	return line
}

func entry(node *yaml.Node, key string) (k, v *yaml.Node) {
	if node.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i], node.Content[i+1]
		}
	}
	return nil, nil
}

func child(node *yaml.Node, key string) *yaml.Node {
	_, v := entry(node, key)
	return v
}
