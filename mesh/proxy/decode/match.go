package decode

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func stringMatch(m *matcherv3.StringMatcher) (conf.StringMatch, error) {
	if err := only(m, "exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"); err != nil {
		return conf.StringMatch{}, err
	}
	out := conf.StringMatch{IgnoreCase: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.Kind, out.Value = conf.Exact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.Kind, out.Value = conf.Prefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		out.Kind, out.Value = conf.Suffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		out.Kind, out.Value = conf.Contains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := fullRegex(p.SafeRegex)
		if err != nil {
			return out, err
		}
		out.Kind, out.Regex = conf.Regex, re
	default:
		return out, errors.New("string match: no pattern")
	}
	return out, nil
}

// fullRegex compiles an expression that must match from end to end.
func fullRegex(m *matcherv3.RegexMatcher) (*regexp.Regexp, error) { return compile(m, `^(?:`, `)$`) }

func compile(m *matcherv3.RegexMatcher, before, after string) (*regexp.Regexp, error) {
	if m.GetRegex() == "" {
		return nil, errors.New("regex is empty")
	}
	// Compiled alone first, so that a group cannot be closed by the anchors around it.
	if _, err := regexp.Compile(m.Regex); err != nil {
		return nil, fmt.Errorf("regex %q: %w", m.Regex, err)
	}
	re, err := regexp.Compile(before + m.Regex + after)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", m.Regex, err)
	}
	return re, nil
}

func regexRewrite(m *matcherv3.RegexMatchAndSubstitute) (*conf.RegexRewrite, error) {
	if m == nil {
		return nil, nil
	}
	re, err := compile(m.Pattern, "", "")
	if err != nil {
		return nil, err
	}
	subst, err := substitution(m.Substitution, re.NumSubexp())
	if err != nil {
		return nil, err
	}
	return &conf.RegexRewrite{Regex: re, Subst: subst}, nil
}

// substitution turns RE2's \1 into Go's ${1}.
func substitution(s string, groups int) ([]byte, error) {
	var out bytes.Buffer
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			out.WriteString("$$")
		case c != '\\':
			out.WriteByte(c)
		case i+1 < len(s) && s[i+1] == '\\':
			out.WriteByte('\\')
			i++
		case i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			if int(s[i+1]-'0') > groups {
				return nil, fmt.Errorf("substitution %q names group %c, the regex has %d", s, s[i+1], groups)
			}
			fmt.Fprintf(&out, "${%c}", s[i+1])
			i++
		default:
			return nil, fmt.Errorf("substitution %q: a backslash must come before a digit or a backslash", s)
		}
	}
	return out.Bytes(), nil
}

func lower(s string) []byte { return []byte(strings.ToLower(s)) }
