package main

import (
	"strings"
	"testing"
	"time"

	"github.com/meshproof/meshproof/mesh/proxy/listener"
)

func TestTermination(t *testing.T) {
	o := options{grace: 5 * time.Second, terminate: 20 * time.Second}
	for name, c := range map[string]struct {
		config string
		env    map[string]string
		want   listener.Drain
		err    string
	}{
		"flags":       {want: listener.Drain{Grace: 5 * time.Second, Limit: 20 * time.Second}},
		"mesh config": {config: "8s", want: listener.Drain{Grace: 8 * time.Second, Limit: 20 * time.Second}},
		"variable wins": {config: "8s", env: map[string]string{"TERMINATION_DRAIN_DURATION_SECONDS": "3"},
			want: listener.Drain{Grace: 3 * time.Second, Limit: 20 * time.Second}},
		"until no connection is left": {env: map[string]string{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "1s"},
			want: listener.Drain{Grace: time.Second, Limit: -1}},
		"bad duration": {config: "soon", err: "terminationDrainDuration"},
		"bad number":   {env: map[string]string{"TERMINATION_DRAIN_DURATION_SECONDS": "5s"}, err: "TERMINATION_DRAIN_DURATION_SECONDS"},
		"bad bool":     {env: map[string]string{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "maybe"}, err: "EXIT_ON_ZERO_ACTIVE_CONNECTIONS"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := termination(o, c.config, func(k string) string { return c.env[k] })
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one that names %s", err, c.err)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}
