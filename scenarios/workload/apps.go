package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/fixtures"
)

// The namespaces that apps are deployed to.
const (
	BookinfoNamespace = "bookinfo"
	BoutiqueNamespace = "boutique"
	HelloNamespace    = "hello"
	LoadNamespace     = "load"
)

// App is something that Deploy can deploy.
type App struct {
	Name      string
	Namespace string
	Manifest  fixtures.Manifest
}

// LoadAgent is the app that sends load from inside a cluster.
const LoadAgent = "loadagent"

// known are the apps, each with the namespace that it has in a lab that people work in by hand.
func known() []App {
	return []App{
		{"bookinfo", BookinfoNamespace, fixtures.Bookinfo},
		{"boutique", BoutiqueNamespace, fixtures.Boutique},
		{"hello", HelloNamespace, fixtures.Hello},
		{LoadAgent, LoadNamespace, fixtures.LoadAgent},
	}
}

// Apps returns the named apps and, if there are any, the load agent.
func Apps(names ...string) ([]App, error) {
	if len(names) > 0 && !slices.Contains(names, LoadAgent) {
		names = append(slices.Clone(names), LoadAgent)
	}
	return Named(names...)
}

// Named returns the named apps alone.
func Named(names ...string) ([]App, error) {
	var out []App
	all := known()
	for _, name := range names {
		i := slices.IndexFunc(all, func(a App) bool { return a.Name == name })
		if i < 0 {
			var words []string
			for _, a := range all {
				words = append(words, a.Name)
			}
			return nil, fmt.Errorf("app %q: there are %s", name, strings.Join(words, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// Deploy makes the app's namespace with these labels and applies its manifest with images of this tag. It does not wait.
func (c *Client) Deploy(ctx context.Context, a App, labels map[string]string, tag string) error {
	if err := c.Namespace(ctx, a.Namespace, labels); err != nil {
		return err
	}
	data, err := a.Manifest.YAML(fixtures.Fill{Namespace: a.Namespace, Tag: tag})
	if err != nil {
		return err
	}
	_, err = c.Apply(ctx, string(a.Manifest), data)
	return err
}
