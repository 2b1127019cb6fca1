// Command update copies the definitions of the kinds that this mesh serves out of the istio.io/api module. Run it through
// go generate in mesh/objects.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/meshproof/meshproof/mesh/objects/crds/extract"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: update DIRECTORY")
		os.Exit(2)
	}
	if err := update(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "update:", err)
		os.Exit(1)
	}
}

func update(dir string) error {
	files, err := extract.Files()
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
