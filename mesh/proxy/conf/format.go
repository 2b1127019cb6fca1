package conf

import (
	"fmt"
	"strconv"
	"strings"
)

// formatCommands are the commands of Envoy's format strings that are built; true takes an argument.
var formatCommands = map[string]bool{
	"START_TIME": true, "REQ": true, "RESP": true, "TRAILER": true, "PROTOCOL": false, "RESPONSE_CODE": false, "RESPONSE_FLAGS": false,
	"RESPONSE_CODE_DETAILS": false, "CONNECTION_TERMINATION_DETAILS": false, "UPSTREAM_TRANSPORT_FAILURE_REASON": false,
	"BYTES_RECEIVED": false, "BYTES_SENT": false, "DURATION": false, "UPSTREAM_HOST": false, "UPSTREAM_CLUSTER": false,
	"UPSTREAM_CLUSTER_RAW": false, "UPSTREAM_LOCAL_ADDRESS": false, "DOWNSTREAM_LOCAL_ADDRESS": false, "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": false,
	"DOWNSTREAM_LOCAL_PORT": false, "DOWNSTREAM_REMOTE_ADDRESS": false, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": false,
	"DOWNSTREAM_REMOTE_PORT": false, "DOWNSTREAM_PEER_URI_SAN": false, "DOWNSTREAM_LOCAL_URI_SAN": false, "REQUESTED_SERVER_NAME": false,
	"ROUTE_NAME": false, "HOSTNAME": false, "RESPONSE_DURATION": false,
}

// ParseFormat reads a format string. Commands that are not built are an error that names them.
func ParseFormat(text string) (*Format, error) {
	f := &Format{Text: text}
	literal := func(s string) {
		if s == "" {
			return
		}
		if n := len(f.Parts); n > 0 && f.Parts[n-1].Command == "" {
			f.Parts[n-1].Literal = append(f.Parts[n-1].Literal, s...)
			return
		}
		f.Parts = append(f.Parts, FormatPart{Literal: []byte(s)})
	}
	rest := text
	for {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			literal(rest)
			return f, nil
		}
		literal(rest[:i])
		rest = rest[i+1:]
		if strings.HasPrefix(rest, "%") {
			literal("%")
			rest = rest[1:]
			continue
		}
		p, n, err := parseCommand(rest)
		if err != nil {
			return nil, fmt.Errorf("format %q: %w", text, err)
		}
		f.Parts = append(f.Parts, p)
		rest = rest[n:]
	}
}

// parseCommand reads NAME[(ARG)][:MAX]% and returns how many bytes it took.
func parseCommand(s string) (p FormatPart, n int, err error) {
	end := 0
	for end < len(s) && (s[end] >= 'A' && s[end] <= 'Z' || s[end] == '_' || s[end] >= '0' && s[end] <= '9') {
		end++
	}
	p.Command = s[:end]
	takes, ok := formatCommands[p.Command]
	if !ok {
		return p, 0, fmt.Errorf("command %%%s%% is not supported", p.Command)
	}
	n = end
	if n < len(s) && s[n] == '(' {
		close := strings.IndexByte(s[n:], ')')
		if close < 0 || !takes {
			return p, 0, fmt.Errorf("bad argument of %%%s%%", p.Command)
		}
		p.Arg = s[n+1 : n+close]
		n += close + 1
		if p.Command != "START_TIME" {
			p.Arg, p.Alt, _ = strings.Cut(p.Arg, "?")
			p.Arg, p.Alt = strings.ToLower(p.Arg), strings.ToLower(p.Alt)
		}
	}
	if n < len(s) && s[n] == ':' {
		d := n + 1
		for d < len(s) && s[d] >= '0' && s[d] <= '9' {
			d++
		}
		if p.Max, err = strconv.Atoi(s[n+1 : d]); err != nil {
			return p, 0, fmt.Errorf("bad length of %%%s%%", p.Command)
		}
		n = d
	}
	if n >= len(s) || s[n] != '%' {
		return p, 0, fmt.Errorf("%%%s has no end", p.Command)
	}
	return p, n + 1, nil
}
