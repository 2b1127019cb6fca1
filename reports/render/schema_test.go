package render

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/meshproof/meshproof/reports/verdict"
)

const schemaFile = "schema/report-v1.json"

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchemaHoldsGoldenFiles(t *testing.T) {
	schema := compileSchema(t)
	files, err := filepath.Glob("testdata/*.report.json")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d golden reports, error %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(doc); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Each edit makes a valid report wrong; a schema that still accepts it promises nothing.
func TestSchemaRefuses(t *testing.T) {
	schema := compileSchema(t)
	data, err := os.ReadFile("testdata/fail.report.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(r map[string]any){
		"another version": func(r map[string]any) { r["schema"] = "meshproof.dev/report/v2" },
		"no outcome":      func(r map[string]any) { delete(r, "outcome") },
		"odd outcome":     func(r map[string]any) { r["outcome"] = "green" },
		"null claims":     func(r map[string]any) { first(r, "scenarios")["claims"] = nil },
		"a date":          func(r map[string]any) { r["started"] = "yesterday" },
		"negative count":  func(r map[string]any) { first(first(r, "scenarios"), "streams")["requests"] = -1 },
		"odd unit": func(r map[string]any) {
			first(first(r, "scenarios"), "claims")["interval"].(map[string]any)["unit"] = "ms"
		},
	} {
		var r map[string]any
		if err := json.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		edit(r)
		if err := schema.Validate(r); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func first(m map[string]any, list string) map[string]any {
	return m[list].([]any)[0].(map[string]any)
}

type schemaNode struct {
	Ref         string                 `json:"$ref"`
	Description string                 `json:"description"`
	Required    []string               `json:"required"`
	Properties  map[string]*schemaNode `json:"properties"`
	Items       *schemaNode            `json:"items"`
	Additional  *schemaNode            `json:"additionalProperties"`
	Defs        map[string]*schemaNode `json:"$defs"`
}

// Go's types and the schema have the same fields, and each is described.
func TestSchemaDescribesEveryField(t *testing.T) {
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var root schemaNode
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	var walk func(path string, typ reflect.Type, n *schemaNode)
	walk = func(path string, typ reflect.Type, n *schemaNode) {
		if n == nil {
			t.Errorf("%s is not in the schema", path)
			return
		}
		described := n.Description != ""
		if name, ok := strings.CutPrefix(n.Ref, "#/$defs/"); ok {
			used[name] = true
			if n = root.Defs[name]; n == nil {
				t.Errorf("%s: no definition %q", path, name)
				return
			}
			described = described && n.Description != "" || strings.HasSuffix(path, "[]") && n.Description != ""
		}
		if !described {
			t.Errorf("%s has no description", path)
		}
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		switch {
		case typ == reflect.TypeFor[time.Time]():
		case typ.Kind() == reflect.Slice:
			walk(path+"[]", typ.Elem(), n.Items)
		case typ.Kind() == reflect.Map:
			walk(path+"[]", typ.Elem(), n.Additional)
		case typ.Kind() == reflect.Struct:
			required := map[string]bool{}
			for _, r := range n.Required {
				required[r] = true
			}
			known := map[string]bool{}
			for i := range typ.NumField() {
				name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
				known[name] = true
				walk(path+"."+name, typ.Field(i).Type, n.Properties[name])
				if optional := strings.Contains(options, "omit"); optional == required[name] {
					t.Errorf("%s.%s: required %v in the schema, omitted when empty %v", path, name, required[name], optional)
				}
			}
			for name := range n.Properties {
				if !known[name] {
					t.Errorf("%s.%s is in the schema only", path, name)
				}
			}
		}
	}
	walk("report", reflect.TypeFor[verdict.Report](), &root)
	for name := range root.Defs {
		if !used[name] {
			t.Errorf("definition %q is used by no field", name)
		}
	}
}
