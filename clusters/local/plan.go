package local

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/clusters/local/fabric"
)

const apiPort = 6443

// The addresses must be enough for every lab that may be asked for.
const _ = uint(fabric.MaxSites - clusters.MaxClusters)

// labState is lab.json: all that is known about a lab. It is written once, before anything is started.
type labState struct {
	Name     string         `json:"name"`
	Created  time.Time      `json:"created"`
	Bin      string         `json:"bin"`    // folder of node binaries
	CGroup   string         `json:"cgroup"` // below every cgroup hierarchy's root
	Clusters []clusterState `json:"clusters"`

	dir string
}

type clusterState struct {
	Name             string      `json:"name"`
	Dir              string      `json:"dir"`
	Index            int         `json:"index"` // in the lab, from 0; addresses follow from it
	Network          string      `json:"network"`
	APIAddr          string      `json:"apiAddr"` // on the host's loopback
	LoadBalancerCIDR string      `json:"loadBalancerCIDR"`
	PodCIDR          string      `json:"podCIDR"`
	ServiceCIDR      string      `json:"serviceCIDR"`
	ServiceIP        string      `json:"serviceIP"` // of the kubernetes Service
	DNSIP            string      `json:"dnsIP"`
	Nodes            []nodeState `json:"nodes"`
}

type nodeState struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	IP      string `json:"ip"`
	PodCIDR string `json:"podCIDR"`
}

func (c *clusterState) kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }
func (c *clusterState) pkiDir() string     { return filepath.Join(c.Dir, "pki") }

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$`)

func checkName(what, name string) error {
	if !dnsLabel.MatchString(name) {
		return fmt.Errorf("%s name %q: use up to 40 lower-case letters, digits and dashes, with a letter or digit at both ends", what, name)
	}
	return nil
}

// plan lays a lab out: names, folders and addresses. It touches nothing.
func plan(labDir string, spec clusters.Spec, bin string, now time.Time) (*labState, error) {
	if err := checkName("lab", spec.Lab); err != nil {
		return nil, err
	}
	if n := len(spec.Clusters); n < 1 || n > clusters.MaxClusters {
		return nil, fmt.Errorf("lab %q: %d clusters: give 1 to %d", spec.Lab, n, clusters.MaxClusters)
	}
	st := &labState{Name: spec.Lab, Created: now, Bin: bin, CGroup: cgroupName(labDir), dir: labDir}
	seen := map[string]bool{}
	nodes := 0
	for i, cs := range spec.Clusters {
		if err := checkName("cluster", cs.Name); err != nil {
			return nil, fmt.Errorf("lab %q: %w", spec.Lab, err)
		}
		if cs.Network != "" {
			if err := checkName("network", cs.Network); err != nil {
				return nil, fmt.Errorf("lab %q: cluster %q: %w", spec.Lab, cs.Name, err)
			}
		}
		if seen[cs.Name] {
			return nil, fmt.Errorf("lab %q: two clusters are named %q", spec.Lab, cs.Name)
		}
		seen[cs.Name] = true
		if cs.Nodes < 0 {
			return nil, fmt.Errorf("lab %q: cluster %q: %d nodes: give at least 1", spec.Lab, cs.Name, cs.Nodes)
		}
		c := clusterState{
			Name:             cs.Name,
			Dir:              filepath.Join(labDir, "clusters", cs.Name),
			Index:            i,
			Network:          cmp.Or(cs.Network, clusters.DefaultNetwork),
			PodCIDR:          fabric.PodCIDR(i).String(),
			ServiceCIDR:      fabric.ServiceCIDR(i).String(),
			ServiceIP:        fmt.Sprintf("10.%d.0.1", 96+i),
			DNSIP:            fmt.Sprintf("10.%d.0.10", 96+i),
			LoadBalancerCIDR: fabric.LoadBalancerCIDR(i).String(),
		}
		for j := range max(cs.Nodes, 1) {
			nodes++
			name := fmt.Sprintf("%s-%d", cs.Name, j+1)
			c.Nodes = append(c.Nodes, nodeState{
				Name:    name,
				Dir:     filepath.Join(c.Dir, "nodes", name),
				IP:      fabric.NodeIP(i, j).String(),
				PodCIDR: fmt.Sprintf("10.%d.%d.0/24", 32+i, j),
			})
		}
		st.Clusters = append(st.Clusters, c)
	}
	if nodes > clusters.MaxNodes {
		return nil, fmt.Errorf("lab %q: %d nodes: give at most %d", spec.Lab, nodes, clusters.MaxNodes)
	}
	return st, nil
}

// sameShape tells whether a lab that exists is the one that spec asks for.
func (st *labState) sameShape(spec clusters.Spec) bool {
	if len(st.Clusters) != len(spec.Clusters) {
		return false
	}
	for i, c := range spec.Clusters {
		have := st.Clusters[i]
		if have.Name != c.Name || len(have.Nodes) != max(c.Nodes, 1) || have.Network != cmp.Or(c.Network, clusters.DefaultNetwork) {
			return false
		}
	}
	return true
}

func (c *clusterState) nodeIndex(name string) int {
	return slices.IndexFunc(c.Nodes, func(n nodeState) bool { return n.Name == name })
}

// sites are the clusters as the lab's network sees them.
func (st *labState) sites() []fabric.Site {
	var out []fabric.Site
	for i := range st.Clusters {
		out = append(out, st.Clusters[i].site())
	}
	return out
}

func (c *clusterState) site() fabric.Site {
	s := fabric.Site{
		Name: c.Name, Network: c.Network, Index: c.Index,
		PodCIDR: netip.MustParsePrefix(c.PodCIDR), ServiceCIDR: netip.MustParsePrefix(c.ServiceCIDR),
	}
	for _, n := range c.Nodes {
		s.Nodes = append(s.Nodes, fabric.Node{IP: netip.MustParseAddr(n.IP), PodCIDR: netip.MustParsePrefix(n.PodCIDR)})
	}
	s.API = netip.AddrPortFrom(s.Nodes[0].IP, apiPort)
	return s
}

func (st *labState) node(name string) (*clusterState, *nodeState, error) {
	for i := range st.Clusters {
		for j := range st.Clusters[i].Nodes {
			if st.Clusters[i].Nodes[j].Name == name {
				return &st.Clusters[i], &st.Clusters[i].Nodes[j], nil
			}
		}
	}
	return nil, nil, fmt.Errorf("lab %q has no node %q", st.Name, name)
}

// loadState reads a lab's state. fs.ErrNotExist means that there is no lab, or one whose making stopped at the very start.
func loadState(labDir string) (*labState, error) {
	st := &labState{dir: labDir}
	if err := readJSON(filepath.Join(labDir, "lab.json"), st); err != nil {
		return nil, err
	}
	return st, nil
}

func (st *labState) save() error { return writeJSON(filepath.Join(st.dir, "lab.json"), st) }

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'), 0o600)
}

// writeFile writes whole files only: a reader sees the old content or the new one.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
