package xds

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one encoded resource. It is immutable and shared between proxies and snapshots.
type Resource struct {
	Name    string
	Version string // hash of the content: equal versions mean equal bytes
	Body    *anypb.Any
}

// Encode marshals a resource. The bytes, and so the version, depend on the content alone.
func Encode(name string, m proto.Message) (*Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", m.ProtoReflect().Descriptor().Name(), name, err)
	}
	return &Resource{
		Name:    name,
		Version: strconv.FormatUint(xxhash.Sum64(b), 16),
		Body:    &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b},
	}, nil
}

// Part is a group of encoded resources, by name within each type. A proxy's configuration is a few Parts whose names
// do not overlap; most of them are shared by many proxies, so that a change is found once and not once a proxy.
type Part struct {
	byType [len(PushOrder)][]*Resource
}

// TypeIndex is the place of a type in PushOrder, or -1.
func TypeIndex(typeURL string) int { return slices.Index(PushOrder[:], typeURL) }

// NewPart takes ownership of the lists, one for each type of PushOrder, and sorts them.
func NewPart(byType [len(PushOrder)][]*Resource) *Part {
	for _, l := range byType {
		slices.SortFunc(l, func(a, b *Resource) int { return cmp.Compare(a.Name, b.Name) })
	}
	return &Part{byType: byType}
}

// Resources lists the resources of the type at that place of PushOrder, by name. Read-only.
func (p *Part) Resources(typ int) []*Resource {
	if p == nil {
		return nil
	}
	return p.byType[typ]
}

// Get returns a resource by name, or nil.
func (p *Part) Get(typ int, name string) *Resource {
	l := p.Resources(typ)
	i, ok := slices.BinarySearchFunc(l, name, func(r *Resource, n string) int { return cmp.Compare(r.Name, n) })
	if !ok {
		return nil
	}
	return l[i]
}

// Equal tells whether both hold the same resources at the same versions.
func (p *Part) Equal(q *Part) bool {
	if p == nil || q == nil {
		return p == q
	}
	for t := range p.byType {
		if !slices.EqualFunc(p.byType[t], q.byType[t], func(a, b *Resource) bool {
			return a == b || a.Name == b.Name && a.Version == b.Version
		}) {
			return false
		}
	}
	return true
}

// Delta is what changed in one type between two versions of a Part.
type Delta struct {
	Changed []*Resource // new or with another version
	Removed []string
}

// Diff compares two versions of a Part; either may be nil.
func Diff(old, new *Part, typ int) Delta {
	var d Delta
	a, b := old.Resources(typ), new.Resources(typ)
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			d.Removed = append(d.Removed, a[0].Name)
			a = a[1:]
		case len(a) == 0 || b[0].Name < a[0].Name:
			d.Changed = append(d.Changed, b[0])
			b = b[1:]
		default:
			if a[0] != b[0] && a[0].Version != b[0].Version {
				d.Changed = append(d.Changed, b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
	return d
}
