package httpgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshproof/meshproof/loadgen"
)

// The headers in which fixture apps say who answered.
const (
	headerApp     = "X-Meshproof-App"
	headerVersion = "X-Meshproof-Version"
	headerPod     = "X-Meshproof-Pod"
	headerCluster = "X-Meshproof-Cluster"
	headerVia     = "X-Meshproof-Via"
	headerFailed  = "X-Meshproof-Failed"
)

const (
	headerSeq  = "X-Vegeta-Seq" // in which vegeta numbers its requests; never sent
	maxBody    = 1 << 20        // of a body kept to verify it
	maxErrText = 300
)

var errTimeout = errors.New("no whole answer in time")

// exchanger is the RoundTripper that vegeta's client calls: it does the whole exchange, body included, and files a Result
// under the sequence number. What it returns to vegeta is always an empty answer.
type exchanger struct {
	profile   loadgen.Profile
	verify    func(*http.Response, []byte) error
	pages     []page // what requests ask for; one if all are alike
	transport *http.Transport
	fresh     *http.Transport // a connection for each request: how a session that has no cookie yet arrives
	sessions  *sessions       // or nil
	run       context.Context // ends when the run is canceled
	start     time.Time       // all times are this one plus a monotonic difference, so that they stay exact as text

	dials  sync.WaitGroup
	undial context.CancelFunc

	mu      sync.Mutex
	results map[uint64]loadgen.Result
}

// page is one kind of request.
type page struct {
	profile   loadgen.Profile
	prototype *http.Request // shared by all its requests, never changed
}

func newPage(p loadgen.Profile) (page, error) {
	prototype, err := http.NewRequest(p.Method, p.URL, nil)
	if err != nil {
		return page{}, err
	}
	prototype.Host = p.Host
	for name, values := range p.Header {
		prototype.Header[http.CanonicalHeaderKey(name)] = values
	}
	if _, ok := prototype.Header["User-Agent"]; !ok {
		prototype.Header.Set("User-Agent", "meshproof-load")
	}
	return page{profile: p, prototype: prototype}, nil
}

func newExchanger(run context.Context, p loadgen.Profile, o Options) (*exchanger, error) {
	var pages []page
	for i := range max(1, len(p.Pages)) {
		of, err := p.OfPage(i)
		if err != nil {
			return nil, fmt.Errorf("profile %q: %w", p.Name, err)
		}
		one, err := newPage(of)
		if err != nil {
			return nil, fmt.Errorf("profile %q: %w", p.Name, err)
		}
		pages = append(pages, one)
	}
	sessions, err := newSessions(p)
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.Name, err)
	}
	dialRun, undial := context.WithCancel(context.WithoutCancel(run))
	x := &exchanger{
		profile: p, verify: o.Verify, pages: pages, sessions: sessions, run: run, undial: undial,
		results: make(map[uint64]loadgen.Result),
	}
	dial := o.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	x.transport = &http.Transport{
		// The transport lets a dial outlive its request, for the next one's sake; here it ends with the run at the latest.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			x.dials.Add(1)
			defer x.dials.Done()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(dialRun, cancel)()
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return newWire(conn), nil
		},
		TLSClientConfig:     o.TLS,
		MaxIdleConnsPerHost: p.MaxWorkers, // every worker may keep its connection
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // bytes are counted as sent
		Protocols:           new(http.Protocols),
	}
	x.transport.Protocols.SetHTTP1(true)
	x.fresh = x.transport.Clone()
	x.fresh.DisableKeepAlives = true
	return x, nil
}

// close ends dials that nobody waits for and all connections. It is called after the last exchange.
func (x *exchanger) close() {
	x.undial()
	x.dials.Wait()
	x.transport.CloseIdleConnections()
	x.fresh.CloseIdleConnections()
}

// take hands over the Result of a finished exchange; Intended is still to be filled in.
func (x *exchanger) take(seq uint64) (loadgen.Result, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.results[seq]
	delete(x.results, seq)
	return r, ok
}

// now is start plus the monotonic time since.
func (x *exchanger) now() time.Time { return x.start.Add(time.Since(x.start)) }

// RoundTrip implements http.RoundTripper for vegeta's client.
func (x *exchanger) RoundTrip(req *http.Request) (*http.Response, error) {
	seq, err := strconv.ParseUint(req.Header.Get(headerSeq), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("vegeta's request number: %w", err)
	}
	asked := x.pages[x.profile.Page(seq)]
	result := loadgen.Result{Seq: seq, Stream: x.profile.Name, Sent: x.now(), Class: loadgen.OK, BytesOut: uint64(len(asked.profile.Body))}
	if err := x.exchange(asked, &result); err != nil && len(err.Error()) > 0 {
		result.Err = clip(err.Error())
	}
	x.mu.Lock()
	x.results[seq] = result
	x.mu.Unlock()
	return &http.Response{StatusCode: http.StatusNoContent, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
}

// exchange makes one request and fills in everything but Seq, Stream and the times before it. The error is the text behind a
// class other than OK.
func (x *exchanger) exchange(asked page, r *loadgen.Result) error {
	ctx, cancel := context.WithTimeoutCause(x.run, x.profile.Timeout, errTimeout)
	defer cancel()
	var way sending
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: way.got})
	req, transport := asked.request(ctx), x.transport
	if x.sessions != nil {
		req.Header, req.URL = req.Header.Clone(), cloneURL(req.URL)
		r.Session = x.sessions.of(r.Seq)
		if r.Cookie = clip(x.sessions.prepare(req, r.Session)); r.Cookie == "" {
			transport = x.fresh
		}
	}
	resp, err := transport.RoundTrip(req)
	for err != nil && ctx.Err() == nil && way.spared() {
		way = sending{}
		req = req.WithContext(ctx)
		req.Body = asked.body()
		resp, err = transport.RoundTrip(req)
	}
	if err != nil {
		r.Done = x.now()
		r.Class, err = x.classify(ctx, err, way.given)
		return err
	}
	r.Code = resp.StatusCode
	by := attribute(resp.Header, asked.profile.Attribute)
	r.App, r.Version, r.Pod, r.Cluster = by.app, by.version, by.pod, by.cluster
	if x.sessions != nil {
		r.SetCookie = x.sessions.keep(req, resp, r.Session)
	}
	body, n, err := readBody(resp.Body)
	r.Done = x.now()
	r.BytesIn = n
	if err != nil {
		r.Class, err = x.classify(ctx, err, way.given)
		return fmt.Errorf("read the body after %d bytes: %w", n, err)
	}
	if way.twice {
		r.Class = loadgen.Reset
		return errors.New("answered only when net/http sent it again on another connection")
	}
	if !asked.profile.Accepts(r.Code) {
		r.Class = loadgen.Status
		return errors.New(resp.Status)
	}
	if err := x.check(asked.profile, resp, body); err != nil {
		r.Class = loadgen.Mismatch
		return err
	}
	return nil
}

// request is a copy of the prototype that net/http cannot replay, because it has a body and no way to get it again. Methods
// that usually carry none get an empty one; named "identity", it leaves no trace in what is sent. For the others net/http
// would have to say "Content-Length: 0", which it does only of a request without a body.
func (p page) request(ctx context.Context) *http.Request {
	req := p.prototype.WithContext(ctx)
	if req.Body = p.body(); req.Body == nil {
		return req
	}
	if req.ContentLength = int64(len(p.profile.Body)); req.ContentLength == 0 {
		req.TransferEncoding = []string{"identity"}
	}
	return req
}

// body is one to send, or nil.
func (p page) body() io.ReadCloser {
	switch body := p.profile.Body; {
	case len(body) > 0:
		return io.NopCloser(bytes.NewReader(body))
	case slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions}, p.profile.Method):
		return io.NopCloser(strings.NewReader(""))
	}
	return nil
}

func cloneURL(u *url.URL) *url.URL {
	c := *u
	return &c
}

func (x *exchanger) check(p loadgen.Profile, resp *http.Response, body []byte) error {
	if want, got := p.ExpectApp, resp.Header.Get(headerApp); want != "" && got != want {
		return fmt.Errorf("answered by app %q, not %q", got, want)
	}
	if failed := resp.Header.Get(headerFailed); failed != "" {
		return fmt.Errorf("the answer lacks what a call below should have given: %s", failed)
	}
	if below := p.Attribute; below != "" {
		if attribute(resp.Header, below).app == "" {
			return fmt.Errorf("the answer was made without app %q", below)
		}
	}
	if want := p.ExpectBody; want != "" && !bytes.Contains(body, []byte(want)) {
		return fmt.Errorf("the body lacks %q", want)
	}
	if x.verify != nil {
		return x.verify(resp, body)
	}
	return nil
}

// served is who gave an answer.
type served struct{ app, version, pod, cluster string }

// attribute reads from an answer's evidence who served it; with below, who served the first call to that app under it.
func attribute(h http.Header, below string) served {
	if below == "" {
		return served{h.Get(headerApp), h.Get(headerVersion), h.Get(headerPod), h.Get(headerCluster)}
	}
	for _, list := range h.Values(headerVia) {
		for call := range strings.SplitSeq(list, ",") {
			app, rest, _ := strings.Cut(strings.TrimSpace(call), "/")
			if app == below {
				version, rest, _ := strings.Cut(rest, "/")
				pod, cluster, _ := strings.Cut(rest, "/")
				return served{app, version, pod, cluster}
			}
		}
	}
	return served{}
}

// classify says why an exchange broke. connections counts those that the request was given.
func (x *exchanger) classify(ctx context.Context, err error, connections int) (loadgen.Class, error) {
	var protocol textproto.ProtocolError
	switch {
	case x.run.Err() != nil:
		return loadgen.Canceled, err
	case connections == 0:
		// Also when time ran out while connecting: nothing was sent.
		return loadgen.Connect, err
	case errors.Is(context.Cause(ctx), errTimeout):
		return loadgen.Timeout, fmt.Errorf("%w (%s)", errTimeout, x.profile.Timeout)
	case errors.As(err, &protocol):
		return loadgen.Mismatch, err
	}
	return loadgen.Reset, err
}

// readBody reads to the end and closes. It keeps the first maxBody bytes and counts all.
func readBody(body io.ReadCloser) (kept []byte, n uint64, err error) {
	defer body.Close()
	kept, err = io.ReadAll(io.LimitReader(body, maxBody))
	n = uint64(len(kept))
	if err != nil {
		return kept, n, err
	}
	rest, err := io.Copy(io.Discard, body)
	return kept, n + uint64(rest), err
}

func clip(s string) string {
	if len(s) <= maxErrText {
		return s
	}
	return strings.ToValidUTF8(s[:maxErrText], "") + "..."
}
