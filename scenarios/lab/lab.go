// Package lab is the Lab file: which clusters, which mesh, which apps. Decoding is strict; every error has its place in the
// file, the field's path and the fix.
package lab

import (
	"fmt"
	"slices"

	"github.com/meshproof/meshproof/clusters"
	"github.com/meshproof/meshproof/fixtures/labs"
)

// APIVersion and Kind are the first two fields of every Lab file of this version.
const (
	APIVersion = "meshproof.dev/v1"
	Kind       = "Lab"
)

// Lab is a decoded, defaulted and valid Lab file.
type Lab struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Name       string    `json:"name"`     // DNS label, at most 30 characters; unique on a host
	Provider   string    `json:"provider"` // one of Providers
	Profile    Profile   `json:"profile"`
	Networks   []string  `json:"networks"` // names that clusters may be on; one of them, network1, when the file lists none
	Clusters   []Cluster `json:"clusters"`
	Mesh       Mesh      `json:"mesh"`
	Apps       []string  `json:"apps"` // of Apps
}

// Cluster is one cluster of a lab.
type Cluster struct {
	Name  string `json:"name"`  // DNS label, at most 30 characters
	Nodes int    `json:"nodes"` // 1 to 9
	// Network is one of the lab's; its first when the file names none.
	Network string `json:"network"`
	// Primary names the cluster whose control plane serves this one; empty when it has one of its own.
	Primary string `json:"primary,omitempty"`
}

// Mesh says what is installed, and how it is called.
type Mesh struct {
	Driver   string `json:"driver"`   // one of Drivers
	Revision string `json:"revision"` // DNS label; "default" is the revision without a name
	// Deferred leaves the installation to the scenario.
	Deferred bool `json:"deferred,omitempty"`
}

// Profile is how long and how sharply scenarios look.
type Profile string

// The profiles. Quick is for people who wait; nightly catches smaller deviations; soak repeats nightly's load for hours.
const (
	Quick   Profile = "quick"
	Nightly Profile = "nightly"
	Soak    Profile = "soak"
)

// Profiles lists the profiles.
func Profiles() []string { return []string{string(Quick), string(Nightly), string(Soak)} }

// Providers lists the cluster providers that a Lab may name.
func Providers() []string { return []string{"local"} }

// Drivers lists the mesh drivers that a Lab may name.
func Drivers() []string { return []string{"bundled", "none"} }

// Apps lists the apps that a Lab may deploy.
func Apps() []string { return []string{"bookinfo", "boutique", "hello"} }

// DefaultName is the embedded lab file that is used when none is named.
const DefaultName = "one"

// Default returns the lab that is used when no file is given.
func Default() *Lab {
	l, err := Embedded(DefaultName)
	if err != nil {
		panic(err) // embedded, and covered by a test
	}
	return l
}

// Embedded returns the lab of the embedded file of that name.
func Embedded(name string) (*Lab, error) {
	data, err := labs.File(name)
	if err != nil {
		return nil, err
	}
	return Parse("fixtures/labs/"+name+".yaml", data)
}

// Clone returns a copy that shares nothing with l.
func (l *Lab) Clone() *Lab {
	c := *l
	c.Networks = slices.Clone(l.Networks)
	c.Clusters = slices.Clone(l.Clusters)
	c.Apps = slices.Clone(l.Apps)
	return &c
}

// Spec is the part of the lab that a cluster provider makes.
func (l *Lab) Spec() clusters.Spec {
	s := clusters.Spec{Lab: l.Name}
	for _, c := range l.Clusters {
		s.Clusters = append(s.Clusters, clusters.ClusterSpec{Name: c.Name, Nodes: c.Nodes, Network: c.Network})
	}
	return s
}

// Nodes is the number of nodes of all clusters.
func (l *Lab) Nodes() int {
	n := 0
	for _, c := range l.Clusters {
		n += c.Nodes
	}
	return n
}

// Problem is one thing that is wrong in a Lab file.
type Problem struct {
	File      string // as the caller named it
	Line, Col int    // from 1
	Field     string // path: clusters[1].nodes; empty for the file as a whole
	Text      string // what is wrong and how to cure it
}

func (p Problem) String() string {
	place := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Col)
	if p.Field != "" {
		place += p.Field + ": "
	}
	return place + p.Text
}

// FileErrors is everything that is wrong in a Lab file, in the order of the file.
type FileErrors []Problem

func (ps FileErrors) Error() string {
	s := ""
	for i, p := range ps {
		if i > 0 {
			s += "\n"
		}
		s += p.String()
	}
	return s
}
