package workload

import (
	"context"
	"fmt"
	"slices"

	"github.com/meshproof/meshproof/fixtures"
)

// The namespaces that apps are deployed to.
const (
	BookinfoNamespace = "bookinfo"
	HelloNamespace    = "hello"
	LoadNamespace     = "load"
)

// App is something that Deploy can deploy.
type App struct {
	Name      string
	Namespace string
	Manifest  fixtures.Manifest
}

// Apps returns the named apps and the load agent, which every lab has.
func Apps(names ...string) ([]App, error) {
	known := []App{
		{"bookinfo", BookinfoNamespace, fixtures.Bookinfo},
		{"hello", HelloNamespace, fixtures.Hello},
		{"loadagent", LoadNamespace, fixtures.LoadAgent},
	}
	var out []App
	for _, a := range known {
		if a.Name == "loadagent" || slices.Contains(names, a.Name) {
			out = append(out, a)
		}
	}
	if len(out) != len(names)+1 {
		return nil, fmt.Errorf("apps %q: there are bookinfo and hello", names)
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
