package hcm

import (
	"bytes"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
)

// normalize rewrites the path as RFC 3986 section 6 and the options say. A code other than 0 refuses the request.
func normalize(s *filter.Stream) (code int, details string) {
	q, h := &s.Req, s.HTTP
	t := q.Target
	if len(t) == 0 || t[0] != '/' {
		return 0, ""
	}
	path, rest := t, []byte(nil)
	if i := bytes.IndexAny(t, "?#"); i >= 0 {
		path, rest = t[:i], t[i:]
	}
	clean := true
	for i, c := range path {
		if c == '%' || c == '\\' || c == '/' && i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
			clean = false
			break
		}
	}
	if clean {
		return 0, ""
	}
	p, escaped := unescape(path, h)
	if escaped {
		switch h.EscapedSlashes {
		case conf.SlashesReject:
			return 400, "path_normalization_failed"
		case conf.SlashesRedirect:
			s.Resp.Reset()
			s.Resp.Add([]byte("location"), append(p, rest...))
			return 307, "path_normalization_failed"
		}
	}
	if h.NormalizePath {
		p = dots(p)
	}
	if h.MergeSlashes {
		p = merge(p)
	}
	b := append(q.Scratch(), p...)
	q.Target = q.Take(append(b, rest...))
	return 0, ""
}

// unescape decodes unreserved characters and upper-cases the other escapes; slashes as the options say.
func unescape(p []byte, h *conf.HTTP) (out []byte, slash bool) {
	out = make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '\\' && h.NormalizePath {
			c = '/'
		}
		if c != '%' || i+2 >= len(p) {
			out = append(out, c)
			continue
		}
		hi, lo := unhex(p[i+1]), unhex(p[i+2])
		if hi < 0 || lo < 0 {
			out = append(out, c)
			continue
		}
		v := byte(hi<<4 | lo)
		i += 2
		switch {
		case (v == '/' || v == '\\') && h.EscapedSlashes != conf.SlashesKeep:
			slash = true
			out = append(out, '/')
		case h.NormalizePath && (v >= 'a' && v <= 'z' || v >= 'A' && v <= 'Z' || v >= '0' && v <= '9' || v == '-' || v == '.' || v == '_' || v == '~'):
			out = append(out, v)
		default:
			const upper = "0123456789ABCDEF"
			out = append(out, '%', upper[v>>4], upper[v&15])
		}
	}
	return out, slash
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// dots removes "." and ".." segments (RFC 3986 section 5.2.4).
func dots(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); {
		end := bytes.IndexByte(p[i+1:], '/')
		if end < 0 {
			end = len(p)
		} else {
			end += i + 1
		}
		seg := p[i:end] // with its leading slash
		last := end == len(p)
		switch string(seg) {
		case "/.":
			if last {
				out = append(out, '/')
			}
		case "/..":
			out = out[:max(bytes.LastIndexByte(out, '/'), 0)]
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, seg...)
		}
		i = end
	}
	if len(out) == 0 {
		return []byte("/")
	}
	return out
}

func merge(p []byte) []byte {
	out := p[:0]
	for i, c := range p {
		if c == '/' && i > 0 && p[i-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	return out
}
