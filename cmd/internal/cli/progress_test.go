package cli

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproof/meshproof/clusters"
)

// screen is what a terminal shows of text that moves up and clears below.
func screen(text string) []string {
	var lines []string
	row := 0
	control := regexp.MustCompile(`\x1b\[(\d+)A\x1b\[J|\n`)
	put := func(s string) {
		for len(lines) <= row {
			lines = append(lines, "")
		}
		lines[row] += s
	}
	for text != "" {
		at := control.FindStringSubmatchIndex(text)
		if at == nil {
			put(text)
			break
		}
		if at[0] > 0 {
			put(text[:at[0]])
		}
		if at[2] >= 0 {
			n, _ := strconv.Atoi(text[at[2]:at[3]])
			row -= n
			lines = lines[:row]
		} else {
			put("")
			row++
		}
		text = text[at[1]:]
	}
	return lines
}

func play(p *progress) {
	p.event(clusters.Event{Phase: "cluster", Detail: "starting"})
	time.Sleep(time.Second)
	p.event(clusters.Event{Phase: "images", Detail: "packing"})
	p.event(clusters.Event{Phase: "images", Detail: "4 packed", Done: true}) // before the phase above it
	time.Sleep(time.Second)
	p.event(clusters.Event{Phase: "cluster", Detail: "ready", Done: true})
	p.event(clusters.Event{Phase: "mesh", Detail: "installing"})
	p.event(clusters.Event{Phase: "mesh", Detail: "installing"})
	time.Sleep(time.Second)
}

func TestProgressOnATerminal(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{Streams: Streams{Err: &out, Terminal: true, Width: 60, Env: func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }}}
		p := a.progress()
		play(p)
		p.fail()
		p.close()
		p.close()
		want := []string{
			" ✓ cluster    ready                                    2.0s",
			" ✓ images     4 packed                                 0.0s",
			" ✗ mesh       installing                               1.0s",
		}
		got := screen(out.String())
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("the screen shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, l := range got {
			if len([]rune(l)) >= 60 {
				t.Errorf("%q does not fit", l)
			}
		}
	})
}

func TestProgressElsewhere(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{Streams: Streams{Err: &out, Env: func(string) string { return "" }}}
		p := a.progress()
		play(p)
		p.fail()
		p.close()
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.TrimSpace(line[9:])) // after the time of day
		}
		want := []string{
			"+0.0s   cluster    starting",
			"+1.0s   images     packing",
			"+1.0s   images     4 packed  0.0s",
			"+2.0s   cluster    ready  2.0s",
			"+2.0s   mesh       installing",
			"+3.0s   mesh       failed: installing",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestProgressElsewhereShowsACountNowAndThen(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := (&app{Streams: Streams{Err: &out, Env: func(string) string { return "" }}}).progress()
		for i := range 40 {
			p.event(clusters.Event{Phase: "build", Count: true, Detail: fmt.Sprintf("compiled %d", i)})
			time.Sleep(time.Second)
		}
		p.event(clusters.Event{Phase: "build", Count: true, Detail: "built", Done: true})
		p.close()
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Join(strings.Fields(line)[3:], " "))
		}
		if want := "compiled 0;compiled 15;compiled 30;built 40.0s"; strings.Join(got, ";") != want {
			t.Errorf("printed %q, want %q", strings.Join(got, ";"), want)
		}
	})
}
