package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local"
	"github.com/meshproof/meshproof/scenarios/lab"
)

func providerNames() []string { return lab.Providers() }

// folders of this user, by the XDG rules.
func (a *app) state() string {
	if a.stateDir != "" {
		return a.stateDir
	}
	return filepath.Join(a.xdg("XDG_STATE_HOME", ".local/state"), "meshproof")
}

func (a *app) cache() string {
	if a.cacheDir != "" {
		return a.cacheDir
	}
	return filepath.Join(a.xdg("XDG_CACHE_HOME", ".cache"), "meshproof")
}

func (a *app) xdg(name, fallback string) string {
	if dir := a.Env(name); filepath.IsAbs(dir) {
		return dir
	}
	home := a.Env("HOME")
	if home == "" {
		home = "/"
	}
	return filepath.Join(home, fallback)
}

// nodeSource is where the module of the node binaries lies: as told, else in the working directory, else beside the folder
// of this executable, as in a checkout with bin/meshproof.
func (a *app) nodeSource() string {
	if a.nodeBuild != "" {
		return a.nodeBuild
	}
	rel := filepath.Join("clusters", "local", "node")
	for _, base := range []string{".", filepath.Dir(filepath.Dir(a.Self))} {
		dir := filepath.Join(base, rel)
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	return rel
}

// newProvider returns the named provider; "" is the default one.
func (a *app) newProvider(name string) (clusters.Provider, error) {
	if name == "" {
		name = "local"
	}
	if name != "local" {
		near := ""
		if n := lab.Nearest(name, providerNames()); n != "" {
			near = "; did you mean \"" + n + "\"?"
		}
		return nil, usage("--cluster: %q is not a provider (%s)%s", name, strings.Join(providerNames(), ", "), near)
	}
	p, err := local.New(local.Options{
		StateDir:   filepath.Join(a.state(), "labs"),
		CacheDir:   a.cache(),
		NodeSource: a.nodeSource(),
		Prebuilt:   a.nodeBin,
	})
	return p, coded(codeUsage, err)
}
