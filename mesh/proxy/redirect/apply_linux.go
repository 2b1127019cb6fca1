package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Apply sets the rules for c in the network namespace of the calling thread, in one transaction, in place of those that an
// earlier call set. It needs CAP_NET_ADMIN.
func Apply(c Config) error {
	chains, err := plan(c)
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("redirect: netlink: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(table) // or deleting one that is not there would fail the transaction
	conn.DelTable(table)
	conn.AddTable(table)
	for _, ch := range chains {
		out := &nftables.Chain{Name: ch.name, Table: table}
		switch ch.hook {
		case "prerouting":
			out.Type, out.Hooknum, out.Priority = nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest
		case "output":
			out.Type, out.Hooknum, out.Priority = nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest
		}
		conn.AddChain(out)
		for _, r := range ch.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: r.exprs()})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("redirect: set nftables rules (needs CAP_NET_ADMIN and nf_tables with nat): %w", err)
	}
	return nil
}

func (r rule) exprs() []expr.Any {
	var e []expr.Any
	if r.loopback {
		lo := make([]byte, unix.IFNAMSIZ)
		copy(lo, "lo")
		e = append(e, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo})
	}
	e = append(e, address(r.source, false, 12, 8)...)
	e = append(e, address(r.dest, r.notDest, 16, 24)...)
	e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}})
	if r.port != 0 {
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: op(r.notPort), Register: 1, Data: binaryutil.BigEndian.PutUint16(r.port)})
	}
	if r.owner.kind != "" {
		key := expr.MetaKeySKUID
		if r.owner.kind == "gid" {
			key = expr.MetaKeySKGID
		}
		e = append(e, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op(r.owner.not), Register: 1, Data: binary.NativeEndian.AppendUint32(nil, r.owner.id)})
	}
	switch {
	case r.jump != "":
		e = append(e, &expr.Verdict{Kind: expr.VerdictJump, Chain: r.jump})
	case r.redirectTo != 0:
		e = append(e,
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.redirectTo)},
			&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
	default:
		e = append(e, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return e
}

// address matches a prefix; off4 and off6 are where the field stands in the two headers.
func address(p netip.Prefix, not bool, off4, off6 uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	proto, off := byte(unix.NFPROTO_IPV4), off4
	if p.Addr().Is6() {
		proto, off = unix.NFPROTO_IPV6, off6
	}
	addr := p.Addr().AsSlice()
	mask := make([]byte, len(addr))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: uint32(len(addr))},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))},
		&expr.Cmp{Op: op(not), Register: 1, Data: addr},
	}
}

func op(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}
