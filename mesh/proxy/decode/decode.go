// Package decode turns xDS resources into runtime configuration. It is the only judge of what the proxy can do: a field
// that would change behaviour and is not built is an error that names it; one that is harmless to leave out is listed
// where the message is read. Nothing here panics, whatever the bytes.
package decode

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// only refuses every populated field of m that is not named. Each decoder calls it first, so that a field which it does
// not read cannot be lost in silence.
func only(m proto.Message, names ...string) error {
	var err error
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !slices.Contains(names, string(fd.Name())) {
			err = fmt.Errorf("%s is not supported", fd.Name())
			return false
		}
		return true
	})
	return err
}

// open unpacks a typed config into m.
func open(a *anypb.Any, m proto.Message) error {
	if a == nil {
		return fmt.Errorf("typed_config is missing; want %s", m.ProtoReflect().Descriptor().FullName())
	}
	if err := a.UnmarshalTo(m); err != nil {
		return fmt.Errorf("typed_config: %w", err)
	}
	return nil
}

// typeName is the message name of a type URL.
func typeName(a *anypb.Any) string {
	u := a.GetTypeUrl()
	return u[strings.LastIndexByte(u, '/')+1:]
}

// duration reads a duration that may be absent.
func duration(d *durationpb.Duration, absent time.Duration) (time.Duration, error) {
	if d == nil {
		return absent, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, err
	}
	v := d.AsDuration()
	if v < 0 {
		return 0, fmt.Errorf("duration %v is negative", v)
	}
	return v, nil
}

func port(n uint32) (uint16, error) {
	if n > math.MaxUint16 {
		return 0, fmt.Errorf("port %d is out of range", n)
	}
	return uint16(n), nil
}

// socketAddress reads an address with a numeric IP.
func socketAddress(a *corev3.Address) (netip.AddrPort, error) {
	host, p, err := hostPort(a)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket_address: %w", err)
	}
	return netip.AddrPortFrom(ip.Unmap(), p), nil
}

func hostPort(a *corev3.Address) (string, uint16, error) {
	sa := a.GetSocketAddress()
	if sa == nil {
		return "", 0, fmt.Errorf("address: only socket_address is supported")
	}
	if err := only(sa, "protocol", "address", "port_value", "ipv4_compat"); err != nil {
		return "", 0, fmt.Errorf("socket_address: %w", err)
	}
	if sa.Protocol != corev3.SocketAddress_TCP {
		return "", 0, fmt.Errorf("socket_address: protocol %s is not supported", sa.Protocol)
	}
	p, err := port(sa.GetPortValue())
	if err != nil {
		return "", 0, fmt.Errorf("socket_address: %w", err)
	}
	if sa.Address == "" {
		return "", 0, fmt.Errorf("socket_address: address is empty")
	}
	return sa.Address, p, nil
}

func prefixes(list []*corev3.CidrRange) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, r := range list {
		a, err := netip.ParseAddr(r.GetAddressPrefix())
		if err != nil {
			return nil, fmt.Errorf("prefix range: %w", err)
		}
		bits := 0
		if r.PrefixLen != nil {
			bits = int(min(r.PrefixLen.Value, 1000))
		}
		p, err := a.Prefix(bits)
		if err != nil {
			return nil, fmt.Errorf("prefix range %s/%d: %w", a, bits, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func bytesOf(d *corev3.DataSource) (inline []byte, file string, err error) {
	switch s := d.GetSpecifier().(type) {
	case nil:
		return nil, "", nil
	case *corev3.DataSource_InlineBytes:
		return s.InlineBytes, "", nil
	case *corev3.DataSource_InlineString:
		return []byte(s.InlineString), "", nil
	case *corev3.DataSource_Filename:
		return nil, s.Filename, nil
	}
	return nil, "", fmt.Errorf("data source: only inline data and files are supported")
}

func metadata(m *corev3.Metadata, filter string) map[string]*structpb.Value {
	return m.GetFilterMetadata()[filter].GetFields()
}

func stringsOf(f map[string]*structpb.Value) map[string]string {
	if len(f) == 0 {
		return nil
	}
	out := make(map[string]string, len(f))
	for k, v := range f {
		if s, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			out[k] = s.StringValue
		}
	}
	return out
}
