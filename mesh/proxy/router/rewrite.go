package router

import (
	"bytes"
	"strconv"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
	"github.com/meshproof/meshproof/mesh/proxy/filter"
	"github.com/meshproof/meshproof/mesh/proxy/http1"
	"github.com/meshproof/meshproof/mesh/proxy/telemetry"
)

// levels are the header operations that apply, in the order in which they do.
type levels [4]*conf.HeaderOps

func (l *levels) order(t *conf.RouteTable, vh *conf.VirtualHost, r *conf.Route, w *conf.WeightedCluster) {
	*l = levels{nil, &r.Headers, &vh.Headers, &t.Headers}
	if w != nil {
		l[0] = &w.Headers
	}
	if t.SpecificWins {
		l[0], l[1], l[2], l[3] = l[3], l[2], l[1], l[0]
	}
}

func (l *levels) request(s *filter.Stream) {
	for _, ops := range l {
		if ops == nil {
			continue
		}
		for i := range ops.Add {
			apply(&s.Req.Header, &ops.Add[i], s, &s.Req)
		}
		for _, name := range ops.Remove {
			s.Req.Del(name)
		}
	}
}

func (l *levels) response(s *filter.Stream) {
	for _, ops := range l {
		if ops == nil {
			continue
		}
		for i := range ops.RespAdd {
			apply(&s.Resp.Header, &ops.RespAdd[i], s, nil)
		}
		for _, name := range ops.RespRemove {
			s.Resp.Del(name)
		}
	}
}

// apply does one addition. q is set for requests, whose host is not a field.
func apply(h *http1.Header, op *conf.HeaderOp, s *filter.Stream, q *http1.Request) {
	value := op.Value
	if op.Format != nil {
		value = h.Take(telemetry.AppendFormat(h.Scratch(), op.Format, &s.Rec, ""))
	}
	if len(value) == 0 && !op.KeepEmpty {
		return
	}
	if q != nil && (string(op.Name) == ":authority" || string(op.Name) == "host") {
		q.Host = value
		return
	}
	switch op.Mode {
	case conf.Append:
		h.Add(op.Name, value)
	case conf.AddIfAbsent:
		if !h.Has(string(op.Name)) {
			h.Add(op.Name, value)
		}
	case conf.Overwrite:
		h.Set(op.Name, value)
	case conf.OverwriteIfExists:
		if h.Has(string(op.Name)) {
			h.Set(op.Name, value)
		}
	}
}

// rewrite changes path and host as the route says.
func rewrite(s *filter.Stream, r *conf.Route, w *conf.WeightedCluster) {
	f, q := r.Forward, &s.Req
	if f.PrefixRewrite != nil || f.RegexRewrite != nil {
		path := q.Target
		rest := []byte(nil)
		if i := bytes.IndexByte(path, '?'); i >= 0 {
			path, rest = path[:i], path[i:]
		}
		var next []byte
		if f.PrefixRewrite != nil {
			next = swapPrefix(path, r, f.PrefixRewrite)
		} else {
			next = f.RegexRewrite.Regex.ReplaceAll(path, f.RegexRewrite.Subst)
		}
		s.Rec.OriginalPath = q.Target
		q.Set([]byte("x-envoy-original-path"), q.Target)
		b := append(q.Scratch(), next...)
		q.Target = q.Take(append(b, rest...))
	}
	host := f.HostRewrite
	if w != nil && w.HostRewrite != nil {
		host = w.HostRewrite
	}
	switch {
	case f.HostHeader != nil:
		host = q.Get(string(f.HostHeader))
	case f.HostPathRegex != nil:
		path, _, _ := bytes.Cut(q.Target, []byte("?"))
		host = f.HostPathRegex.Regex.ReplaceAll(path, f.HostPathRegex.Subst)
	}
	if len(host) > 0 {
		setHost(s, f, host)
	}
}

func setHost(s *filter.Stream, f *conf.Forward, host []byte) {
	if f.AppendXFHost {
		s.Req.Add([]byte("x-forwarded-host"), s.Req.Host)
	}
	s.Req.Host = host
}

// swapPrefix puts with in place of what the route matched.
func swapPrefix(path []byte, r *conf.Route, with []byte) []byte {
	switch r.Match.Path {
	case conf.PathPrefix, conf.PathSeparatedPrefix, conf.PathAny: // any path has the prefix "/"
		n := min(len(r.Match.Value), len(path))
		rest := path[n:]
		if r.Match.Path == conf.PathSeparatedPrefix {
			// "/a" -> "/" of "/a/b" is "/b", not "//b"
			with = bytes.TrimSuffix(with, []byte("/"))
			if len(with)+len(rest) == 0 {
				return []byte("/")
			}
		}
		return append(append(make([]byte, 0, len(with)+len(rest)), with...), rest...)
	default: // exact and regex: the whole path was matched
		return with
	}
}

// redirect answers with a location, and what l does to the answer.
func redirect(s *filter.Stream, r *conf.Route, l *levels) {
	d, q := r.Redirect, &s.Req
	scheme := string(s.Scheme)
	was := scheme
	switch {
	case d.HTTPS:
		scheme = "https"
	case d.Scheme != "":
		scheme = d.Scheme
	}
	host, port := splitPort(q.Host)
	if d.Host != nil {
		host = d.Host
	}
	switch {
	case d.Port != 0:
		port = strconv.AppendUint(nil, uint64(d.Port), 10)
	case scheme != was && (scheme == "https" && string(port) == "80" || scheme == "http" && string(port) == "443"):
		port = nil
	}
	path, query, hasQuery := bytes.Cut(q.Target, []byte("?"))
	switch {
	case d.Path != nil:
		path = d.Path
		if bytes.IndexByte(path, '?') >= 0 {
			hasQuery = false
		}
	case d.Prefix != nil:
		path = swapPrefix(path, r, d.Prefix)
	case d.Regex != nil:
		path = d.Regex.Regex.ReplaceAll(path, d.Regex.Subst)
	}
	loc := append([]byte(scheme), "://"...)
	loc = append(loc, host...)
	if len(port) > 0 {
		loc = append(append(loc, ':'), port...)
	}
	loc = append(loc, path...)
	if hasQuery && !d.StripQuery {
		loc = append(append(loc, '?'), query...)
	}
	s.Resp.Reset()
	s.Resp.Add([]byte("location"), loc)
	l.response(s)
	s.ReplyWith(d.Code, nil, "", "direct_response")
}

func splitPort(host []byte) (name, port []byte) {
	i := bytes.LastIndexByte(host, ':')
	if i < 0 || bytes.IndexByte(host[i:], ']') >= 0 {
		return host, nil
	}
	return host[:i], host[i+1:]
}
