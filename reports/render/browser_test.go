package render

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdpage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

var shots = flag.String("shots", "", "folder to which the browser test writes pictures of the page")

// browser starts headless Chromium, or skips the test, and returns a context for chromedp that ends after 30 seconds.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium in PATH (chromium, chromium-browser, google-chrome, chrome): the page's script is not exercised")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 900), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return ctx
}

// complaints collects what a page must not do: throw, log errors, ask the network for anything but the file.
type complaints struct {
	mu   sync.Mutex
	list []string
}

func (c *complaints) watch(ctx context.Context, file string) {
	chromedp.ListenTarget(ctx, func(event any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			c.list = append(c.list, "exception: "+e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				for _, a := range e.Args {
					c.list = append(c.list, fmt.Sprintf("console %s: %s %s", e.Type, a.Value, a.Description))
				}
			}
		case *log.EventEntryAdded:
			c.list = append(c.list, fmt.Sprintf("log %s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
		case *network.EventRequestWillBeSent:
			if u, _, _ := strings.Cut(e.Request.URL, "#"); u != file {
				c.list = append(c.list, "request for "+e.Request.URL)
			}
		}
	})
}

func (c *complaints) check(t *testing.T, after string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.list {
		t.Errorf("after %s: %s", after, l)
	}
	c.list = nil
}

// view is what the first timeline shows, as fractions of the whole, and what it says.
type view struct {
	From, To float64
	Box      string // of a band
	Time     string
	Now      []string
	Cursor   bool
	Pick     bool
	Chosen   string
	Flags    int // in view
	Width    float64
	Scroll   float64 // how far the page is wider than the window
}

const viewJS = `(() => { const t = document.querySelector(".timeline"); return {
	From: +t.dataset.from, To: +t.dataset.to, Box: t.querySelector(".band").getAttribute("viewBox"), Time: t.querySelector(".time").textContent,
	Now: [...t.querySelectorAll(".stream h3")].map(e => e.textContent), Cursor: !t.querySelector(".cursor").hidden, Pick: !t.querySelector(".pick").hidden,
	Chosen: document.querySelector("tr.chosen")?.id || "", Flags: [...t.querySelectorAll(".flag")].filter(f => f.getAttribute("visibility") !== "hidden").length,
	Width: t.querySelector(".band").getBoundingClientRect().width, Scroll: document.documentElement.scrollWidth - innerWidth } })()`

func TestPageInBrowser(t *testing.T) {
	ctx := browser(t)
	path := filepath.Join(t.TempDir(), "report.html")
	var b bytes.Buffer
	if err := HTML(&b, sample(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	file := (&url.URL{Scheme: "file", Path: path}).String()
	var bad complaints
	bad.watch(ctx, file)
	run := func(what string, actions ...chromedp.Action) view {
		t.Helper()
		var v view
		if err := chromedp.Run(ctx, append(actions, chromedp.Evaluate(viewJS, &v))...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		bad.check(t, what)
		return v
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 0.02 }

	v := run("open", network.Enable(), log.Enable(), chromedp.Navigate(file), chromedp.WaitVisible(".timeline.live", chromedp.ByQuery))
	picture(ctx, t, "1280-light")
	if v.From != 0 || v.To != 1 || v.Flags < 4 || v.Scroll > 0 {
		t.Errorf("opened as %+v", v)
	}
	var names []string
	run("band names", chromedp.Evaluate(`[...document.querySelectorAll("#scenario-1 .stream:nth-child(2) .bandname")].filter(e => e.getBoundingClientRect().height > 5).map(e => e.textContent)`, &names))
	if got := strings.Join(names, ", "); got != "latency, requests/s, share of versions" {
		t.Errorf("names of bands that show: %q", got)
	}

	// at is a point of the first band, as a fraction of what it shows.
	at := func(f float64, kind input.MouseType, buttons int64) chromedp.Action {
		return chromedp.ActionFunc(func(ctx context.Context) error {
			var xy []float64
			js := fmt.Sprintf(`(() => { const r = document.querySelector(".band").getBoundingClientRect(); return [r.left + %v * r.width, r.top + r.height / 2] })()`, f)
			if err := chromedp.Evaluate(js, &xy).Do(ctx); err != nil {
				return err
			}
			e := input.DispatchMouseEvent(kind, xy[0], xy[1]).WithButtons(buttons)
			if kind != input.MouseMoved || buttons != 0 {
				e = e.WithButton(input.Left).WithClickCount(1)
			}
			return e.Do(ctx)
		})
	}
	v = run("hover", chromedp.ScrollIntoView(".band", chromedp.ByQuery), at(.3, input.MouseMoved, 0))
	if !v.Cursor || !strings.HasSuffix(strings.Split(v.Time, ",")[0], " s") || !strings.Contains(v.Now[0], "requests") || !strings.Contains(v.Now[0], "p99") || !strings.Contains(v.Now[1], "%") {
		t.Errorf("hover reads %+v", v)
	}
	picture(ctx, t, "1280-hover")
	v = run("drag", at(.25, input.MousePressed, 1), at(.4, input.MouseMoved, 1), at(.5, input.MouseMoved, 1), at(.5, input.MouseReleased, 0))
	if !near(v.From, .25) || !near(v.To, .5) || !strings.HasPrefix(v.Box, "25") {
		t.Errorf("a drag from 25%% to 50%% shows %+v", v)
	}
	picture(ctx, t, "1280-zoom")
	v = run("drag in a zoomed view", at(0, input.MousePressed, 1), at(.5, input.MouseMoved, 1), at(.5, input.MouseReleased, 0))
	if !near(v.From, .25) || !near(v.To, .375) {
		t.Errorf("a second drag shows %+v", v)
	}
	v = run("show everything", chromedp.Click(".reset", chromedp.ByQuery))
	if v.From != 0 || v.To != 1 || v.Cursor {
		t.Errorf("reset shows %+v", v)
	}

	keys := func(k string) chromedp.Action { return chromedp.KeyEvent(k) }
	v = run("keys", chromedp.Focus(".timeline", chromedp.ByQuery), keys("+"), keys("+"))
	if !near(v.To-v.From, .25) {
		t.Errorf("two pluses show %+v", v)
	}
	before := v.Time
	v = run("arrow", keys(kb.ArrowRight))
	if v.Time == before || !v.Cursor || !strings.Contains(v.Now[0], "requests") {
		t.Errorf("an arrow reads %+v", v)
	}
	for range 200 {
		v = run("arrow", keys(kb.ArrowRight))
		if v.To > .9 {
			break
		}
	}
	if v.To <= .9 || !v.Cursor {
		t.Errorf("arrows do not move a zoomed view: %+v", v)
	}
	if v = run("minus", keys("-"), keys("-")); !near(v.To-v.From, 1) {
		t.Errorf("two minuses show %+v", v)
	}
	if v = run("escape", keys("+"), keys(kb.Escape)); v.From != 0 || v.To != 1 {
		t.Errorf("escape shows %+v", v)
	}

	// The window of a claim lies within what is shown, and takes most of it.
	row := `tr[id="claim-share/east-west/10/90"]`
	var window []float64
	v = run("claim", chromedp.Click(row+" button", chromedp.ByQuery), chromedp.Evaluate(`(d => [+d.from, +d.to])(document.querySelector('`+row+`').dataset)`, &window))
	if v.From > window[0] || v.To < window[1] || v.To-v.From > 2*(window[1]-window[0]) || !v.Pick || v.Chosen != "claim-share/east-west/10/90" || !strings.Contains(v.Now[1], "hello v29") {
		t.Errorf("the claim of %v shows %+v", window, v)
	}
	picture(ctx, t, "1280-claim")
	if v = run("claim again", chromedp.Click(row+" button", chromedp.ByQuery)); v.From != 0 || v.To != 1 || v.Chosen != "" {
		t.Errorf("a second click shows %+v", v)
	}

	run("dark", emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}))
	picture(ctx, t, "1280-dark")
	v = run("phone", emulation.SetEmulatedMedia(), chromedp.EmulateViewport(390, 844))
	if v.Scroll > 0 || v.Width < 250 {
		t.Errorf("at 390 pixels the page is %v wider than the window, a band %v wide", v.Scroll, v.Width)
	}
	picture(ctx, t, "390")
	v = run("paper", emulation.SetEmulatedMedia().WithMedia("print"), chromedp.EmulateViewport(740, 1050))
	if v.Scroll > 0 {
		t.Errorf("printed, the page is %v wider than the paper", v.Scroll)
	}
	picture(ctx, t, "print")

	var figures int
	err := chromedp.Run(ctx, emulation.SetEmulatedMedia(), chromedp.EmulateViewport(1280, 900), emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(file), chromedp.WaitVisible(".band", chromedp.ByQuery),
		chromedp.Evaluate(`[...document.querySelectorAll(".band, .claims tr, .flag")].filter(e => e.getBoundingClientRect().height > 5).length`, &figures))
	if err != nil {
		t.Fatal(err)
	}
	if figures < 30 {
		t.Errorf("without JavaScript %d bands, claims and flags show", figures)
	}
	picture(ctx, t, "no-script")
	bad.check(t, "without JavaScript")
}

// picture keeps the whole page as a picture, if asked to.
func picture(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	if *shots == "" {
		return
	}
	err := chromedp.Run(ctx, chromedp.ActionFunc(func(ctx context.Context) error {
		data, err := cdpage.CaptureScreenshot().Do(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*shots, name+".png"), data, 0o600)
	}))
	if err != nil {
		t.Error(err)
	}
}
