package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/mesh/proxy/redirect"
)

func initCommand() *cobra.Command {
	var c redirect.Config
	var mode string
	var dry bool
	cmd := &cobra.Command{
		Use: "init", Short: "Set the redirect rules of this network namespace", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mode != "REDIRECT" {
				return fmt.Errorf("-m %s: only REDIRECT is supported", mode)
			}
			text, err := redirect.Text(c)
			if err != nil {
				return err
			}
			if dry {
				_, err := fmt.Fprint(cmd.OutOrStdout(), text)
				return err
			}
			return redirect.Apply(c)
		},
	}
	f := cmd.Flags()
	f.Uint16VarP(&c.OutboundPort, "envoy-port", "p", 15001, "port that outbound connections are redirected to")
	f.Uint16VarP(&c.InboundPort, "inbound-capture-port", "z", 15006, "port that inbound connections are redirected to")
	f.Uint32VarP(&c.UID, "proxy-uid", "u", 1337, "user and group of the proxy, whose own connections are left alone")
	f.StringVarP(&mode, "istio-inbound-interception-mode", "m", "REDIRECT", "how connections are captured; REDIRECT only")
	f.StringVarP(&c.IncludeOutbound, "istio-service-cidr", "i", "*", "destination CIDRs that are captured")
	f.StringVarP(&c.ExcludeOutbound, "istio-service-exclude-cidr", "x", "", "destination CIDRs that are not captured")
	f.StringVarP(&c.IncludeInboundPorts, "istio-inbound-ports", "b", "*", "local ports that are captured")
	f.StringVarP(&c.ExcludeInboundPorts, "istio-local-exclude-ports", "d", "", "local ports that are not captured")
	f.StringVarP(&c.ExcludeOutboundPorts, "istio-local-outbound-ports-exclude", "o", "", "destination ports that are not captured")
	f.StringVarP(&c.IncludeOutboundPorts, "istio-outbound-ports", "q", "", "destination ports that are captured whatever their address")
	f.BoolVar(&dry, "dry-run", false, "print the rules as nft does and change nothing")
	return cmd
}
