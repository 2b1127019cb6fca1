package conf

import (
	"bytes"
	"strings"
)

// MatchString reports whether s matches.
func (m *StringMatch) MatchString(s string) bool {
	if m.Kind == Regex {
		return m.Regex.MatchString(s)
	}
	v := m.Value
	if m.IgnoreCase {
		s, v = strings.ToLower(s), strings.ToLower(v)
	}
	switch m.Kind {
	case Prefix:
		return strings.HasPrefix(s, v)
	case Suffix:
		return strings.HasSuffix(s, v)
	case Contains:
		return strings.Contains(s, v)
	default:
		return s == v
	}
}

// Match reports whether b matches. It does not allocate unless case is ignored.
func (m *StringMatch) Match(b []byte) bool {
	if m.Kind == Regex {
		return m.Regex.Match(b)
	}
	if m.IgnoreCase {
		return m.MatchString(string(b))
	}
	switch v := m.Value; m.Kind {
	case Prefix:
		return len(b) >= len(v) && string(b[:len(v)]) == v
	case Suffix:
		return len(b) >= len(v) && string(b[len(b)-len(v):]) == v
	case Contains:
		return bytes.Contains(b, []byte(v))
	default:
		return string(b) == v
	}
}
