package objects

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

func walkPaths(s *fieldSet, at string, f func(string)) {
	for name, sub := range s.next {
		f(at + "." + name)
		walkPaths(sub, at+"."+name, f)
	}
}

func pathExists(kind, path string) bool {
	m := map[string]protoreflect.MessageDescriptor{
		"VirtualService":  (&networkingv1alpha3.VirtualService{}).ProtoReflect().Descriptor(),
		"DestinationRule": (&networkingv1alpha3.DestinationRule{}).ProtoReflect().Descriptor(),
		"Gateway":         (&networkingv1alpha3.Gateway{}).ProtoReflect().Descriptor(),
	}[kind]
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "spec."), ".") {
		if m == nil {
			return false
		}
		f := m.Fields().ByJSONName(part)
		if f == nil {
			return false
		}
		m = f.Message()
	}
	return true
}
