package objects

import (
	"bytes"
	"embed"
	"fmt"
)

//go:generate go test . -run TestDefinitionsAreThoseOfTheModule -update

//go:embed crds/*.yaml
var crdFiles embed.FS

// CRDs returns the custom resource definitions of the kinds served, as a stream of YAML documents.
func CRDs() []byte {
	entries, err := crdFiles.ReadDir("crds")
	if err != nil {
		panic(fmt.Sprintf("objects: embedded definitions: %v", err)) // the build put them there
	}
	var out bytes.Buffer
	for _, e := range entries {
		data, err := crdFiles.ReadFile("crds/" + e.Name())
		if err != nil {
			panic(fmt.Sprintf("objects: embedded definitions: %v", err))
		}
		out.WriteString("---\n")
		out.Write(data)
	}
	return out.Bytes()
}
