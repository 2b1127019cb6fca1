package multicluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproof/meshproof/reports/verdict"
)

// judgeWire judges what the capture of the link holds: all of it TLS, and between networks nobody but gateways and API servers.
func (r run) judgeWire() []verdict.Claim {
	tls := verdict.Claim{
		ID: "wire/tls", Statement: "whatever crosses the link is TLS, to its last byte", Statistic: "capture of the link, every TCP payload put in order",
		Bound: "TLS records alone, ClientHello first, no frame of another kind", Firm: true, Outcome: verdict.Pass,
		Confounder: "connections from before the capture, whose handshake was not seen; they are counted apart",
		Window:     &verdict.Window{From: r.captured, To: r.cut},
	}
	who := verdict.Claim{
		ID: "wire/addresses", Statement: "nothing crosses the link but to gateways and API servers", Statistic: "capture of the link, the called side of each connection",
		Bound: fmt.Sprintf("ports of gateways in %s, and API servers at %s", strings.Join(r.gateways, " and "), strings.Join(r.servers, " and ")),
		Firm:  true, Outcome: verdict.Pass, Window: tls.Window,
		Confounder: "a connection whose opening was not seen and whose called side was guessed by its port",
	}
	if r.wireErr != nil {
		tls.Outcome, tls.Reason = verdict.Inconclusive, r.wireErr.Error()
		who.Outcome, who.Reason = tls.Outcome, tls.Reason
		return []verdict.Claim{tls, who}
	}
	r.judgeTLS(&tls)
	if !r.separate {
		who.Outcome, who.Observed, who.Reason = verdict.Skip, serversOf(r.wire.Flows), "the clusters are on one network, where pods reach each other"
		return []verdict.Claim{tls, who}
	}
	r.judgeAddresses(&who)
	return []verdict.Claim{tls, who}
}

// meshSNI is how calls from sidecar to sidecar begin; see Istio's SNI names.
const meshSNI = "outbound_."

func (r run) judgeTLS(c *verdict.Claim) {
	bytes, whole, mesh := 0, 0, map[string]bool{}
	var wrong, unproven []string
	for _, f := range r.wire.Flows {
		bytes += f.Bytes
		if f.Unproven != "" && !r.isOlder(f) {
			unproven = append(unproven, fmt.Sprintf("%s to %s: %s", f.Client, f.Server, f.Unproven))
		}
		if f.Whole {
			whole++
		}
		if strings.HasPrefix(f.SNI, meshSNI) {
			mesh[f.SNI] = true
		}
		if f.Problem != "" {
			wrong = append(wrong, fmt.Sprintf("%s to %s: %s", f.Client, f.Server, f.Problem))
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(r.wire.Other)) {
		wrong = append(wrong, fmt.Sprintf("%d frames %s", r.wire.Other[kind], kind))
	}
	c.N = len(r.wire.Flows)
	c.Observed = fmt.Sprintf("%s frames, %d connections (%d from their ClientHello on), %s bytes, mesh calls to %s",
		verdict.Group(r.wire.Frames), len(r.wire.Flows), whole, verdict.Group(bytes), list(slices.Sorted(maps.Keys(mesh))))
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(wrong[:min(5, len(wrong))], "\n")
	case len(mesh) == 0:
		// Without a call of the mesh on the link the rest shows nothing of the mesh.
		c.Outcome, c.Reason = verdict.Fail, "no call from sidecar to sidecar crossed the link while the capture ran"
		if !r.meshed {
			c.Reason += noMesh
		}
	case len(unproven) > 0:
		c.Outcome, c.Reason = verdict.Inconclusive, strings.Join(unproven[:min(5, len(unproven))], "\n")
	}
}

// isOlder tells connections that control planes and API servers have from before the capture, of which few bytes may be seen.
func (r run) isOlder(f flow) bool {
	return !f.Whole && (f.Server.Port() == 15012 || f.Server.Port() == 15017 || slices.Contains(r.servers, f.Server.String()))
}

func (r run) judgeAddresses(c *verdict.Claim) {
	c.N = len(r.wire.Flows)
	c.Observed = serversOf(r.wire.Flows)
	var wrong []string
	gateways := 0
	for _, f := range r.wire.Flows {
		switch {
		case r.isGateway(f.Server):
			gateways++
		case slices.Contains(r.servers, f.Server.String()):
		default:
			wrong = append(wrong, fmt.Sprintf("%s called %s", f.Client, f.Server))
		}
	}
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(wrong[:min(5, len(wrong))], "\n")
	case gateways == 0:
		c.Outcome, c.Reason = verdict.Fail, "no gateway was called while the capture ran"
		if !r.meshed {
			c.Reason += noMesh
		}
	}
}

// gatewayPorts are those of an east-west gateway: status, services, control plane, webhooks.
func gatewayPorts() []uint16 { return []uint16{15021, 15443, 15012, 15017} }

func (r run) isGateway(server netip.AddrPort) bool {
	if !slices.Contains(gatewayPorts(), server.Port()) {
		return false
	}
	for _, cidr := range r.gateways {
		if p, err := netip.ParsePrefix(cidr); err == nil && p.Contains(server.Addr()) {
			return true
		}
	}
	return false
}

func serversOf(flows []flow) string {
	n := map[netip.AddrPort]int{}
	for _, f := range flows {
		n[f.Server]++
	}
	var parts []string
	for _, s := range slices.SortedFunc(maps.Keys(n), netip.AddrPort.Compare) {
		parts = append(parts, fmt.Sprintf("%s %d times", s, n[s]))
	}
	return list(parts)
}

func list(parts []string) string {
	const most = 12
	switch {
	case len(parts) == 0:
		return "nobody"
	case len(parts) > most:
		return strings.Join(parts[:most], ", ") + fmt.Sprintf(" and %d more", len(parts)-most)
	}
	return strings.Join(parts, ", ")
}

// callers are who may call what stands in the second cluster, by service account.
func callers() map[string][]string {
	return map[string][]string{cartApp: {frontendApp, "checkoutservice"}, recommendApp: {frontendApp}}
}

// judgeIdentity judges whom the proxies in the second cluster let in: only calls of mutual TLS, from the accounts that the shop's
// services run under, and from the first cluster at least one.
func (r run) judgeIdentity() verdict.Claim {
	c := verdict.Claim{
		ID: "identity", Statement: fmt.Sprintf("calls from %s to %s are of mutual TLS between the right identities", r.first, r.second),
		Statistic: "istio_requests_total of the proxies that were called", Bound: "mutual_tls alone; SPIFFE names of the callers' and the called's accounts",
		Confounder: "a proxy that tells of another identity than it checked", Firm: true, Outcome: verdict.Pass,
	}
	if r.servedErr != nil {
		c.Outcome, c.Reason = verdict.Inconclusive, r.servedErr.Error()
		return c
	}
	var seen, wrong []string
	crossed := 0.0
	for _, s := range r.served {
		for _, k := range s.Calls {
			c.N += int(k.Count)
			if k.Cluster == r.first {
				crossed += k.Count
			}
			from, ok := account(k.From)
			to, _ := account(k.To)
			seen = append(seen, fmt.Sprintf("%s to %s %s", short(k.From), short(k.To), verdict.Group(int(k.Count))))
			if k.Policy != "mutual_tls" || !ok || to != s.App || !slices.Contains(callers()[s.App], from) {
				wrong = append(wrong, fmt.Sprintf("%s of %s let in %s calls of %q to %q, policy %s", s.Pod, s.Cluster, verdict.Group(int(k.Count)), k.From, k.To, k.Policy))
			}
		}
	}
	slices.Sort(seen)
	c.Observed = list(slices.Compact(seen))
	switch {
	case len(wrong) > 0:
		c.Outcome, c.Reason = verdict.Fail, strings.Join(wrong, "\n")
	case crossed == 0:
		c.Outcome, c.Reason = verdict.Fail, fmt.Sprintf("no call from %s was let in by any proxy of %s", r.first, r.second)
		if !r.meshed {
			c.Reason += noMesh
		}
	}
	return c
}

// account is the service account of a SPIFFE name; false if there is none.
func account(spiffe string) (string, bool) {
	_, sa, ok := strings.Cut(spiffe, "/sa/")
	return sa, ok && strings.HasPrefix(spiffe, "spiffe://")
}

func short(spiffe string) string {
	if sa, ok := account(spiffe); ok {
		return sa
	}
	return spiffe
}
