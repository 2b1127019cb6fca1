package cli

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
)

// labStatus is a row of `meshproof status`.
type labStatus struct {
	clusters.Status
	MemoryBytes uint64    `json:"memoryBytes,omitempty"` // proportional set size of all processes
	Kubeconfigs []string  `json:"kubeconfigs,omitempty"`
	Ports       []labPort `json:"ports,omitempty"`
	// Links that are cut or slowed.
	Links []clusters.LinkState `json:"links,omitempty"`
}

// labPort is one TCP port of a load balancer with the address on this host that leads to it.
type labPort struct {
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Name      string `json:"name,omitempty"`
	Port      int32  `json:"port"`
	IP        string `json:"ip"`    // in the lab
	Local     string `json:"local"` // on this host
}

// readStatus fills a row with what only an open lab tells; a broken one has its row all the same.
func readStatus(ctx context.Context, provider clusters.Provider, s clusters.Status) (labStatus, error) {
	r := labStatus{Status: s}
	if m, ok := provider.(clusters.Measured); ok {
		bytes, err := m.Memory(ctx, s.Lab)
		if err != nil {
			return r, err
		}
		r.MemoryBytes = bytes
	}
	opened, err := provider.Open(ctx, s.Lab)
	if err != nil {
		return r, nil // its row says broken, and why
	}
	if l, ok := opened.(clusters.Linked); ok {
		if r.Links, err = l.Links(ctx); err != nil {
			return r, err
		}
	}
	for _, c := range opened.Clusters() {
		r.Kubeconfigs = append(r.Kubeconfigs, c.Kubeconfig())
		b, ok := c.(clusters.Balanced)
		if !ok {
			continue
		}
		list, err := b.LoadBalancers()
		if err != nil {
			return r, err
		}
		for _, lb := range list {
			for _, p := range lb.Ports {
				if p.Local != "" {
					r.Ports = append(r.Ports, labPort{
						Cluster: c.Name(), Namespace: lb.Namespace, Service: lb.Service, Name: p.Name, Port: p.Port, IP: lb.IP, Local: p.Local,
					})
				}
			}
		}
	}
	return r, nil
}

func (a *app) statusCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:     "status",
		Short:   "List the labs on this host, their memory, and the ports of 127.0.0.1 that lead into them",
		Example: "  meshproof status\n  meshproof status -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			provider, err := a.newProvider(a.provider)
			if err != nil {
				return err
			}
			list, err := provider.List(cmd.Context())
			if err != nil {
				return failed(err)
			}
			rows := make([]labStatus, 0, len(list))
			for _, s := range list {
				r, err := readStatus(cmd.Context(), provider, s)
				if err != nil {
					return failed(err)
				}
				rows = append(rows, r)
			}
			return a.print(rows, func(w io.Writer) error { return printStatus(w, rows) })
		},
	})
}

func printStatus(w io.Writer, rows []labStatus) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "no labs; make one with: meshproof up")
		return err
	}
	var cells [][]string
	ports := false
	for _, r := range rows {
		age, memory := "-", "-"
		if !r.Created.IsZero() {
			age = time.Since(r.Created).Round(time.Second).String()
		}
		if r.MemoryBytes > 0 {
			memory = fmt.Sprintf("%d MiB", r.MemoryBytes>>20)
		}
		cells = append(cells, []string{
			r.Lab, r.Provider, r.State, strings.Join(r.Clusters, ","), age, memory, strings.Join(r.Kubeconfigs, ","), r.Detail,
		})
		ports = ports || len(r.Ports) > 0
	}
	if err := columns(w, []string{"LAB", "PROVIDER", "STATE", "CLUSTERS", "AGE", "MEMORY", "KUBECONFIG", "DETAIL"}, cells); err != nil {
		return err
	}
	var changed [][]string
	for _, r := range rows {
		for _, l := range r.Links {
			state := "cut"
			if !l.Cut && l.Slow != nil {
				state = describeImpairment(*l.Slow)
			}
			changed = append(changed, []string{r.Lab, l.A + " -- " + l.B, state})
		}
	}
	if len(changed) > 0 {
		fmt.Fprintln(w)
		if err := columns(w, []string{"LAB", "LINK", "STATE"}, changed); err != nil {
			return err
		}
	}
	if !ports {
		return nil
	}
	fmt.Fprintln(w)
	cells = nil
	for _, r := range rows {
		for _, p := range r.Ports {
			cells = append(cells, []string{r.Lab, p.Cluster, p.target(), fmt.Sprintf("%s:%d", p.IP, p.Port), p.Local})
		}
	}
	return columns(w, []string{"LAB", "CLUSTER", "SERVICE", "IN THE LAB", "ON THIS HOST"}, cells)
}

func (p labPort) target() string { return fmt.Sprintf("%s.%s:%d", p.Service, p.Namespace, p.Port) }

// printUp says how to get at a lab that is up.
func (a *app) printUp(ctx context.Context, provider clusters.Provider, l clusters.Lab) error {
	list, err := provider.List(ctx)
	if err != nil {
		return failed(err)
	}
	i := slices.IndexFunc(list, func(s clusters.Status) bool { return s.Lab == l.Name() })
	if i < 0 {
		return failed(fmt.Errorf("lab %q: %w", l.Name(), clusters.ErrNotFound))
	}
	r, err := readStatus(ctx, provider, list[i])
	if err != nil {
		return failed(err)
	}
	return a.print(r, func(w io.Writer) error {
		for i, k := range r.Kubeconfigs {
			line := "kubectl --kubeconfig " + k
			if _, err := exec.LookPath("kubectl"); err != nil {
				line = fmt.Sprintf("meshproof kubectl --lab %s --in %s", r.Lab, r.Clusters[i])
			}
			if _, err := fmt.Fprintln(w, line+" get pods -A"); err != nil {
				return err
			}
		}
		var cells [][]string
		for _, p := range r.Ports {
			cells = append(cells, []string{p.Cluster, p.target(), p.Local})
		}
		if len(cells) == 0 {
			return nil
		}
		return columns(w, []string{"CLUSTER", "SERVICE", "ON THIS HOST"}, cells)
	})
}
