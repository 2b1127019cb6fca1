package server

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/meshproof/meshproof/mesh/model"
	"github.com/meshproof/meshproof/mesh/xds"
)

// Places of the types in xds.PushOrder.
const (
	cds = iota
	eds
	lds
	rds
	numTypes
)

// conn is one proxy's stream. Everything but status is touched by the stream's own goroutine only.
type conn struct {
	s     *Server
	id    uint64
	st    protocol
	view  model.ProxyView
	woken chan struct{} // holds a token when a new snapshot may be there

	snapshot *model.Snapshot // the one that parts come from
	parts    []*xds.Part
	types    [numTypes]typeState
	finished bool // snapshot is acknowledged

	// uncovered are new clusters whose endpoints the proxy has not asked for yet; routes wait for them.
	uncovered  map[string]bool
	coverArmed bool

	status connStatus
}

// typeState is what a proxy wants and has of one type. What it has is what it wants of synced, but for must and late: so a
// stream costs little memory however large the mesh is.
type typeState struct {
	subscribed bool
	wildcard   bool
	names      map[string]bool // asked for by name
	synced     []*xds.Part     // the Parts that were sent; nil before the first answer
	initial    map[string]string
	must       map[string]bool // names to send, changed or not
	late       []leftover      // gone from the configuration, still with the proxy, to be removed last
	again      bool            // a state-of-the-world answer is due even if nothing changed
	nonce      string          // of the response that waits for its ACK; empty for none
	last       string          // nonce of the last response
	sent       []*xds.Resource // what changed in the response that waits
	// refused are the versions in responses that were refused, by name; which of them the proxy minds, it need not say. They
	// are sent again, all of them, when one has another version: until then the answer would be the same.
	refused map[string]string
	retry   map[string]bool // names that were refused and are to be sent again
}

type leftover struct {
	name string
	res  *xds.Resource // nil if another control plane made it
}

func (t *typeState) wants(name string) bool { return t.wildcard || t.names[name] }

// connStatus is what other goroutines may read of a conn.
type connStatus struct {
	mu        sync.Mutex
	connected time.Time
	types     [numTypes]TypeStatus
	computed  uint64 // sequence of the newest snapshot whose push was begun
	acks      []ackMark
	nackSeq   uint64 // of the newest snapshot of which something is refused
}

// refuses tells whether something of the present configuration is refused. The caller holds mu.
func (s *connStatus) refuses() bool {
	return slices.ContainsFunc(s.types[:], func(t TypeStatus) bool { return t.LastError != "" })
}

// ackMark says when a proxy had acknowledged everything of a snapshot.
type ackMark struct {
	seq uint64
	at  time.Time
}

const acksKept = 128

func newConn(s *Server, st protocol, v model.ProxyView) *conn {
	c := &conn{s: s, id: s.nextID.Add(1), st: st, view: v, woken: make(chan struct{}, 1), uncovered: map[string]bool{}}
	c.status.connected = time.Now()
	for i := range c.types {
		c.types[i] = typeState{names: map[string]bool{}, must: map[string]bool{}, refused: map[string]string{}, retry: map[string]bool{}}
	}
	return c
}

func (c *conn) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// handle takes in a request: a subscription, an ACK or a NACK.
func (c *conn) handle(r *request) error {
	typ := xds.TypeIndex(r.typeURL)
	if typ < 0 {
		return nil // a type that this mesh has nothing of; the proxy goes on without
	}
	t := &c.types[typ]
	if r.nonce != "" && !c.st.incremental() && r.nonce != t.last && t.last != "" {
		return nil // answers a response that has been overtaken
	}
	if r.nonce != "" && r.nonce == t.nonce {
		t.nonce = ""
		c.answered(typ, r)
	}
	first := !t.subscribed
	t.subscribed = true
	if c.st.incremental() {
		c.subscribeDelta(typ, r, first)
	} else {
		c.subscribeAll(typ, r, first)
	}
	if len(t.refused) > 0 {
		c.status.mu.Lock()
		c.reconsider(typ) // a newer version may be on its way, or the name not wanted any more
		c.status.mu.Unlock()
	}
	if typ == eds {
		for name := range c.uncovered {
			if t.wants(name) {
				delete(c.uncovered, name)
			}
		}
	}
	return nil
}

func (c *conn) answered(typ int, r *request) {
	t := &c.types[typ]
	st := &c.status
	st.mu.Lock()
	defer st.mu.Unlock()
	ts := &st.types[typ]
	if r.isNack {
		c.s.stats.Nacks.Add(1)
		for _, x := range t.sent {
			t.refused[x.Name] = x.Version
		}
		t.sent = nil
		ts.LastError = cmp.Or(r.nack, "no reason given")
		st.nackSeq = c.snapshot.Sequence
		c.s.log.Warn("proxy refused configuration", "proxy", c.view.ID, "type", shortName(typ), "snapshot", c.snapshot.Sequence, "error", r.nack)
		return
	}
	if c.full(typ) {
		clear(t.refused)
	}
	for _, x := range t.sent {
		delete(t.refused, x.Name)
	}
	t.sent = nil
	ts.Acked, ts.AckedAt = r.nonce, time.Now()
	if len(t.refused) == 0 {
		ts.LastError = ""
	}
}

// full tells whether each response of the type is everything there is of it.
func (c *conn) full(typ int) bool { return !c.st.incremental() && (typ == cds || typ == lds) }

func (c *conn) subscribeDelta(typ int, r *request, first bool) {
	t := &c.types[typ]
	if first {
		t.initial = r.initial
		if len(r.subscribe) == 0 && (typ == cds || typ == lds) {
			t.wildcard = true // the old way to ask for everything
		}
	}
	for _, n := range r.subscribe {
		if n == "*" {
			if !t.wildcard {
				t.wildcard, t.synced = true, nil
			}
			continue
		}
		n = c.intern(typ, n)
		t.names[n] = true
		if _, has := r.initial[n]; !first || !has {
			t.must[n] = true // a name that is asked for again is sent again
		}
	}
	for _, n := range r.unsubscribe {
		if n == "*" {
			t.wildcard = false
			continue
		}
		delete(t.names, n)
		delete(t.must, n)
	}
}

func (c *conn) subscribeAll(typ int, r *request, first bool) {
	t := &c.types[typ]
	t.again = t.again || first
	wild := slices.Contains(r.names, "*") || len(r.names) == 0 && (typ == cds || typ == lds) && (first || t.wildcard && len(t.names) == 0)
	if wild && !t.wildcard {
		t.synced = nil
	}
	t.wildcard = wild
	if len(r.names) == len(t.names) && !slices.ContainsFunc(r.names, func(n string) bool { return !t.names[n] }) {
		return // an ACK repeats what is asked for
	}
	names := make(map[string]bool, len(r.names))
	for _, n := range r.names {
		if n == "*" {
			continue
		}
		if !t.names[n] {
			n = c.intern(typ, n)
			t.must[n] = true
		}
		names[n] = true
	}
	for n := range t.must {
		if !names[n] && !wild {
			delete(t.must, n)
		}
	}
	t.names = names
}

// intern returns the resource's own copy of a name, so that a thousand streams do not each hold theirs.
func (c *conn) intern(typ int, name string) string {
	if r := c.get(typ, name); r != nil {
		return r.Name
	}
	return name
}

// advance sends what can be sent now. Order: clusters and endpoints; when those are acknowledged and the proxy has asked for
// the endpoints of new clusters, listeners and routes; when those are acknowledged, what is to go.
func (c *conn) advance() error {
	if err := c.refresh(); err != nil {
		return err
	}
	if c.snapshot == nil {
		return nil
	}
	for typ := range numTypes {
		t := &c.types[typ]
		if !t.subscribed || t.nonce != "" {
			continue
		}
		// The first answer of a type waits for nothing, and what a proxy newly asks for is always answered.
		fresh := t.last == "" || len(t.must) > 0
		if !fresh && typ >= lds && c.busy(cds, eds) {
			continue
		}
		if err := c.push(typ, false); err != nil {
			return err
		}
	}
	if c.busy(cds, eds, lds, rds) {
		return nil
	}
	for _, typ := range []int{rds, lds, eds, cds} {
		if typ <= eds && len(c.types[lds].refused)+len(c.types[rds].refused) > 0 {
			break // the version that the proxy has instead may lead there
		}
		if len(c.types[typ].late) > 0 {
			if err := c.push(typ, true); err != nil {
				return err
			}
		}
	}
	if !c.finished && !c.busy(cds, eds, lds, rds) && c.whole() {
		c.finish()
	}
	return nil
}

// busy tells whether one of the types waits for an ACK, or new clusters for their endpoints to be asked for.
func (c *conn) busy(types ...int) bool {
	for _, t := range types {
		if c.types[t].nonce != "" {
			return true
		}
	}
	return len(c.uncovered) > 0
}

// refresh moves to the newest snapshot.
func (c *conn) refresh() error {
	snap := c.s.current.Load()
	if snap == nil || snap == c.snapshot {
		return nil
	}
	parts, err := c.s.opts.Source.Parts(snap, snap.View(c.view))
	if err != nil {
		c.s.log.Error("translate", "proxy", c.view.ID, "snapshot", snap.Sequence, "error", err)
		return status.Errorf(codes.Internal, "translate for %s: %v", c.view.ID, err)
	}
	c.snapshot, c.parts, c.finished = snap, parts, false
	c.status.mu.Lock()
	defer c.status.mu.Unlock()
	c.status.computed = snap.Sequence
	for typ := range c.types {
		c.reconsider(typ)
	}
	if c.status.refuses() {
		c.status.nackSeq = snap.Sequence
	}
	return nil
}

// reconsider arranges for what was refused of a type to be sent again if any of it is another now, or is not wanted any more. The
// caller holds status.mu.
func (c *conn) reconsider(typ int) {
	t := &c.types[typ]
	same := len(t.refused) > 0
	for n, version := range t.refused {
		r := c.get(typ, n)
		same = same && r != nil && r.Version == version && t.wants(n)
	}
	if same {
		return
	}
	for n := range t.refused {
		if c.get(typ, n) != nil && t.wants(n) {
			t.retry[n] = true
			t.again = t.again || c.full(typ)
		}
	}
	clear(t.refused)
	c.status.types[typ].LastError = ""
}

func (c *conn) finish() {
	c.status.mu.Lock()
	defer c.status.mu.Unlock()
	if c.status.refuses() {
		return
	}
	c.finished = true
	a := append(c.status.acks, ackMark{c.snapshot.Sequence, time.Now()})
	if len(a) > acksKept {
		a = slices.Delete(a, 0, len(a)-acksKept)
	}
	c.status.acks = a
}

// whole tells whether the proxy has asked for every type that its configuration has something of.
func (c *conn) whole() bool {
	for typ := range numTypes {
		if c.types[typ].subscribed {
			continue
		}
		for _, p := range c.parts {
			if len(p.Resources(typ)) > 0 {
				return false
			}
		}
	}
	return true
}

// push sends what changed of a type. What is gone is noted, and removed only if asked to; listeners are removed at once, for
// nothing refers to them.
func (c *conn) push(typ int, remove bool) error {
	t := &c.types[typ]
	first := t.last == ""
	changed, gone := c.changes(typ)
	var removed []string
	maps.Copy(t.must, t.retry)
	for _, n := range slices.Sorted(maps.Keys(t.must)) {
		if slices.ContainsFunc(changed, func(r *xds.Resource) bool { return r.Name == n }) {
			continue
		}
		if r := c.get(typ, n); r != nil {
			changed = append(changed, r)
		} else {
			removed = append(removed, n) // asked for by name and not there: say so
		}
	}
	t.synced, t.initial = c.parts, nil
	clear(t.must)
	clear(t.retry)
	t.late = append(slices.DeleteFunc(t.late, func(l leftover) bool {
		return c.get(typ, l.name) != nil || !t.wants(l.name) || slices.Contains(removed, l.name)
	}), gone...)

	if remove || typ == lds {
		for _, l := range t.late {
			removed = append(removed, l.name)
		}
		t.late = nil
	}
	full := c.full(typ)
	if len(changed) == 0 && !t.again && !(c.st.incremental() && first) && (len(removed) == 0 || !c.st.incremental() && !full) {
		return nil
	}
	t.again = false
	if typ == cds && !first {
		c.expectEndpoints(changed)
	}
	out := &response{typeURL: xds.PushOrder[typ], version: strconv.FormatUint(c.snapshot.Sequence, 10), resources: changed, removed: removed}
	if full {
		out.resources = c.all(typ)
	}
	t.sent = changed
	return c.send(typ, out)
}

// expectEndpoints notes new clusters that the proxy must ask the endpoints of before routes may lead to them.
func (c *conn) expectEndpoints(changed []*xds.Resource) {
	t := &c.types[eds]
	if !t.subscribed || t.wildcard {
		return
	}
	for _, r := range changed {
		if !t.names[r.Name] && c.get(eds, r.Name) != nil {
			c.uncovered[r.Name] = true
		}
	}
}

// all is the whole state of a type: what is configured and wanted, and what is to go last.
func (c *conn) all(typ int) []*xds.Resource {
	t := &c.types[typ]
	var out []*xds.Resource
	for _, p := range c.parts {
		for _, r := range p.Resources(typ) {
			if t.wants(r.Name) {
				out = append(out, r)
			}
		}
	}
	for _, l := range t.late {
		if l.res != nil {
			out = append(out, l.res)
		}
	}
	return out
}

func (c *conn) send(typ int, r *response) error {
	t := &c.types[typ]
	r.nonce = strconv.FormatUint(c.s.nextID.Add(1), 36)
	t.nonce, t.last = r.nonce, r.nonce
	n := 0
	for _, x := range r.resources {
		n += len(x.Body.Value)
	}
	c.s.stats.Responses.Add(1)
	c.s.stats.Resources.Add(uint64(len(r.resources)))
	c.s.stats.Bytes.Add(uint64(n))
	c.status.mu.Lock()
	ts := &c.status.types[typ]
	ts.Sent, ts.SentAt, ts.Snapshot = r.nonce, time.Now(), c.snapshot.Sequence
	c.status.mu.Unlock()
	return c.st.send(r)
}

// changes compares what the proxy has of a type with what it should have.
func (c *conn) changes(typ int) (changed []*xds.Resource, gone []leftover) {
	t := &c.types[typ]
	if t.synced == nil {
		for _, p := range c.parts {
			for _, r := range p.Resources(typ) {
				if t.wants(r.Name) && t.initial[r.Name] != r.Version {
					changed = append(changed, r)
				}
			}
		}
		for _, n := range slices.Sorted(maps.Keys(t.initial)) {
			if c.get(typ, n) == nil {
				gone = append(gone, leftover{name: n})
			}
		}
		return changed, gone
	}
	for i, p := range c.parts {
		d := c.s.parts.diff(t.synced[i], p, typ)
		for _, r := range d.Changed {
			if t.wants(r.Name) {
				changed = append(changed, r)
			}
		}
		for _, n := range d.Removed {
			if t.wants(n) && c.get(typ, n) == nil {
				gone = append(gone, leftover{n, t.synced[i].Get(typ, n)})
			}
		}
	}
	return changed, gone
}

func (c *conn) get(typ int, name string) *xds.Resource {
	for _, p := range c.parts {
		if r := p.Get(typ, name); r != nil {
			return r
		}
	}
	return nil
}
