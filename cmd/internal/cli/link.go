package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproof/meshproof/clusters"
)

func (a *app) linkCommand() *cobra.Command {
	var labName string
	c := group(&cobra.Command{
		Use:   "link",
		Short: "Cut, slow, heal or capture the link between two clusters",
		Long: `Link changes the network path between two clusters of a lab: all that nodes and pods of one send
to the other, load balancer addresses and API server included. A change holds until it is healed
or the lab is taken down, also after this command has ended.`,
		Example: "  meshproof link slow east west --delay 40ms --jitter 5ms\n  meshproof link cut east west && meshproof link heal east west\n  meshproof link capture east west --out link.pcap",
	})
	c.PersistentFlags().StringVar(&labName, "lab", "", "lab of the clusters; the only one that is up if not given")
	_ = c.RegisterFlagCompletionFunc("lab", a.completeLabs)
	c.AddCommand(a.linkCut(&labName), a.linkSlow(&labName), a.linkHeal(&labName), a.linkCapture(&labName))
	return c
}

// link opens the link that a verb names.
func (a *app) link(ctx context.Context, labName string, args []string) (clusters.Link, error) {
	l, err := a.open(ctx, labName)
	if err != nil {
		return nil, err
	}
	for _, name := range args {
		if _, err := pickCluster(l, name); err != nil {
			return nil, err
		}
	}
	k, err := l.Link(args[0], args[1])
	return k, coded(codeUsage, err)
}

// linkVerb is a verb that changes a link and says what it did.
func (a *app) linkVerb(c *cobra.Command, labName *string, do func(ctx context.Context, k clusters.Link) (did string, err error)) *cobra.Command {
	c.Args, c.ValidArgsFunction = exactArgs("CLUSTER", "CLUSTER"), a.completeClusters(labName)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		k, err := a.link(cmd.Context(), *labName, args)
		if err != nil {
			return err
		}
		did, err := do(cmd.Context(), k)
		if err != nil {
			return failed(err)
		}
		_, err = fmt.Fprintf(a.Out, "%s -- %s: %s\n", args[0], args[1], did)
		return failed(err)
	}
	return c
}

func (a *app) linkCut(labName *string) *cobra.Command {
	return a.linkVerb(&cobra.Command{
		Use: "cut CLUSTER CLUSTER", Short: "Drop every packet, as when a cable is pulled",
		Example: "  meshproof link cut east west",
	}, labName, func(ctx context.Context, k clusters.Link) (string, error) { return "cut", k.Cut(ctx) })
}

func (a *app) linkHeal(labName *string) *cobra.Command {
	return a.linkVerb(&cobra.Command{
		Use: "heal CLUSTER CLUSTER", Short: "Undo cut and slow",
		Example: "  meshproof link heal east west",
	}, labName, func(ctx context.Context, k clusters.Link) (string, error) { return "whole", k.Heal(ctx) })
}

func (a *app) linkSlow(labName *string) *cobra.Command {
	var how clusters.Impairment
	var loss, rate string
	c := a.linkVerb(&cobra.Command{
		Use: "slow CLUSTER CLUSTER", Short: "Delay, lose or throttle packets",
		Long: `Slow delays, loses or throttles packets, the same in each direction, and replaces what was set
before. Packets keep their order. With --rate a packet that would wait for more than 200ms is lost,
as in a router whose buffer is that deep.`,
		Example: "  meshproof link slow east west --delay 40ms --jitter 5ms\n  meshproof link slow east west --loss 1% --rate 10mbit",
	}, labName, func(ctx context.Context, k clusters.Link) (string, error) {
		return describeImpairment(how), k.Slow(ctx, how)
	})
	f := c.Flags()
	f.DurationVar(&how.Delay, "delay", 0, "added to each packet, as in 40ms")
	f.DurationVar(&how.Jitter, "jitter", 0, "up to this much more or less than the delay")
	f.StringVar(&loss, "loss", "", "share of packets that are lost, as in 1% or 0.01")
	f.StringVar(&rate, "rate", "", "throughput, as in 10mbit (bits per second) or 1MB (bytes per second)")
	c.PreRunE = func(*cobra.Command, []string) (err error) {
		if how.Loss, err = parseShare(loss); err != nil {
			return usage("--loss: %w", err)
		}
		if how.Rate, err = parseRate(rate); err != nil {
			return usage("--rate: %w", err)
		}
		if how == (clusters.Impairment{}) {
			return usage("%s: give --delay, --loss or --rate", c.CommandPath())
		}
		if how.Jitter > how.Delay {
			return usage("--jitter: %s is more than --delay %s, and no packet arrives before it is sent", how.Jitter, how.Delay)
		}
		return nil
	}
	return c
}

func (a *app) linkCapture(labName *string) *cobra.Command {
	var out string
	var duration time.Duration
	c := &cobra.Command{
		Use: "capture CLUSTER CLUSTER", Short: "Write every packet to a pcap file until interrupted",
		Long: `Capture writes every packet that crosses the link to a pcap file, for tcpdump -r or Wireshark,
until it is interrupted or --for is over.`,
		Example: "  meshproof link capture east west --out link.pcap --for 10s\n  meshproof link capture east west --out - | tcpdump -nr -",
		Args:    exactArgs("CLUSTER", "CLUSTER"), ValidArgsFunction: a.completeClusters(labName),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage("%s: give --out FILE.pcap, or - for the standard output", cmd.CommandPath())
			}
			k, err := a.link(cmd.Context(), *labName, args)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, duration)
				defer cancel()
			}
			return failed(a.capture(ctx, k, out, duration))
		},
	}
	c.Flags().StringVar(&out, "out", "", "pcap file; - is the standard output")
	c.Flags().DurationVar(&duration, "for", 0, "how long; until interrupted if not given")
	_ = c.MarkFlagFilename("out", "pcap")
	return c
}

func (a *app) capture(ctx context.Context, k clusters.Link, out string, duration time.Duration) (err error) {
	w := a.Out
	if out != "-" {
		f, createErr := os.Create(out)
		if createErr != nil {
			return createErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		w = f
	}
	count := &countingWriter{w: w}
	c, err := k.Capture(context.WithoutCancel(ctx), count)
	if err != nil {
		return err
	}
	if duration == 0 {
		fmt.Fprintln(a.Err, "until interrupted (Ctrl-C)")
	}
	<-ctx.Done()
	if err := c.Close(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Err, " %s %s  %d bytes\n", a.marks().ok(), out, count.n)
	return err
}

// countingWriter counts what it passes on; it is read after the writing has ended.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// parseShare takes 1% or 0.01.
func parseShare(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	number, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v < 0 || v > 1 {
		return 0, fmt.Errorf("%q is not a share; write 0%% to 100%%, or 0 to 1", s)
	}
	return v, nil
}

// rates are the endings of a rate in bytes per second; the names are tc's.
var rates = []struct {
	ending string
	factor float64
}{
	{"gbit", 1e9 / 8}, {"mbit", 1e6 / 8}, {"kbit", 1e3 / 8}, {"bit", 1.0 / 8}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

func parseRate(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	for _, r := range rates {
		number, ok := strings.CutSuffix(s, r.ending)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		if v *= r.factor; err != nil || math.IsNaN(v) || v < 1 || v > 1e12 {
			break
		}
		return uint64(v), nil
	}
	return 0, fmt.Errorf("%q is not a rate; write 10mbit (bits per second) or 1MB (bytes per second)", s)
}

func describeImpairment(how clusters.Impairment) string {
	var parts []string
	if how.Delay > 0 {
		parts = append(parts, "delay "+how.Delay.String())
	}
	if how.Jitter > 0 {
		parts = append(parts, "± "+how.Jitter.String())
	}
	if how.Loss > 0 {
		parts = append(parts, "loss "+strconv.FormatFloat(how.Loss*100, 'g', 4, 64)+"%")
	}
	if how.Rate > 0 {
		parts = append(parts, fmt.Sprintf("rate %d bytes/s", how.Rate))
	}
	return strings.Join(parts, ", ")
}

func (a *app) completeClusters(labName *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= 2 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		l, err := a.open(cmd.Context(), *labName)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, c := range l.Clusters() {
			if len(args) == 0 || c.Name() != args[0] {
				names = append(names, c.Name())
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
