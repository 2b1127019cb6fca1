package redirect

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// injected is what the injector passes.
func injected() Config {
	return Config{OutboundPort: 15001, InboundPort: 15006, UID: 1337, IncludeOutbound: "*", IncludeInboundPorts: "*", ExcludeInboundPorts: "15090,15021,15020"}
}

func TestText(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"injected":       func(*Config) {},
		"no-inbound":     func(c *Config) { c.IncludeInboundPorts = "" },
		"inbound-list":   func(c *Config) { c.IncludeInboundPorts = "80, 9080" },
		"outbound-cidrs": func(c *Config) { c.IncludeOutbound, c.ExcludeOutbound = "10.0.0.0/8,fd00::/8", "10.1.2.3/16" },
		"outbound-ports": func(c *Config) { c.ExcludeOutboundPorts, c.IncludeOutboundPorts = "5432,5432", "9000" },
		"nothing-at-all": func(c *Config) { c.IncludeOutbound, c.IncludeInboundPorts = "", "" },
	} {
		t.Run(name, func(t *testing.T) {
			c := injected()
			edit(&c)
			got, err := Text(c)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestBadInputNamesFlagAndValue(t *testing.T) {
	c := injected()
	c.ExcludeInboundPorts, c.IncludeOutbound, c.ExcludeOutboundPorts = "15090,x", "10.0.0.0", "0"
	_, err := Text(c)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`-d: "x" is not a port`, `-i: "10.0.0.0" is not a CIDR`, `-o: "0" is not a port`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if _, err := Text(Config{}); err == nil {
		t.Error("no ports: no error")
	}
}
