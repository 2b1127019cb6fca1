package env

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// BuildFolder is where the binaries with a version stamp lie: bin for the product's own version, and bin/NAME for VERSION-NAME,
// a build that differs from it in nothing but the stamp. ok is false when there is none.
func BuildFolder(bin, version, stamp string) (folder string, ok bool) {
	folder = bin
	if stamp != version {
		name, ours := strings.CutPrefix(stamp, version+"-")
		if !ours || name == "" || strings.ContainsAny(name, "/.") {
			return "", false
		}
		folder = filepath.Join(bin, name)
	}
	_, err := os.Stat(filepath.Join(folder, "meshd"))
	return folder, err == nil
}

// LoadBuild brings meshd and meshproxy of another build to every node of the lab, and returns the tag of their images.
func (e *Env) LoadBuild(ctx context.Context, name string) (tag string, err error) {
	tag = e.Version + "-" + name
	folder, ok := BuildFolder(e.bin, e.Version, tag)
	if !ok {
		return "", fmt.Errorf("there is no build %q in %s; make it with: make build", name, filepath.Join(e.bin, name))
	}
	archives, err := Archives(ctx, folder, e.cache, tag, []string{"meshd", "meshproxy"})
	if err != nil {
		return "", err
	}
	return tag, e.load(ctx, archives)
}
