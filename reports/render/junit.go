package render

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/meshproof/meshproof/reports/verdict"
)

// The elements of the common JUnit schema (testsuites, testsuite, testcase), in its order.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Time     string       `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       string          `xml:"time,attr"`
	Timestamp  string          `xml:"timestamp,attr"`
	Hostname   string          `xml:"hostname,attr"`
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Time    string        `xml:"time,attr"`
	Skipped *junitSkipped `xml:"skipped"`
	Error   *junitProblem `xml:"error"`
	Failure *junitProblem `xml:"failure"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitSkipped struct {
	Message string `xml:"message,attr"`
}

type junitProblem struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes junit.xml: a suite a scenario, a case a claim. A failed claim is a failure; an inconclusive one is an error,
// because a run that could not judge must not look green; a skipped one is skipped. A lab that could not be set up, and a
// scenario that could not be carried out, are errors of a case of their own.
func JUnit(w io.Writer, r verdict.Report) error {
	out := junitSuites{Name: "meshproof", Time: seconds(r.Finished.Sub(r.Started).Seconds())}
	if r.Error != "" {
		s := junitSuite{Name: "setup", Time: out.Time, Timestamp: r.Started.UTC().Format("2006-01-02T15:04:05"), Hostname: "localhost"}
		s.add(junitCase{Name: "the lab is set up", Class: "meshproof.setup", Time: out.Time, Error: problem(r.Error, "setup", r.Error)})
		out.add(s)
	}
	for _, sc := range r.Scenarios {
		took := seconds(sc.Finished.Sub(sc.Started).Seconds())
		s := junitSuite{Name: sc.ID, Time: took, Timestamp: sc.Started.UTC().Format("2006-01-02T15:04:05"), Hostname: "localhost",
			Properties: []junitProperty{{"mesh", clean(r.Mesh)}, {"cluster", clean(r.Cluster)}, {"profile", clean(r.Profile)},
				{"seed", fmt.Sprint(r.Seed)}, {"command", clean(r.Command)}}}
		for _, c := range sc.Claims {
			s.add(junitClaim(sc, c))
		}
		if sc.Error != "" {
			s.add(junitCase{Name: "the scenario is carried out", Class: "meshproof." + clean(sc.ID), Time: took, Error: problem(sc.Error, "scenario", sc.Error)})
		}
		out.add(s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("write junit: %w", err)
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(out); err != nil {
		return fmt.Errorf("write junit: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func junitClaim(sc verdict.Scenario, c verdict.Claim) junitCase {
	jc := junitCase{Name: clean(c.Statement), Class: "meshproof." + clean(sc.ID), Time: "0.000"}
	if c.Window != nil {
		jc.Time = seconds(c.Window.To.Sub(c.Window.From).Seconds())
	}
	jc.Out = clean(fmt.Sprintf("claim %s\nobserved %s\nbound %s", c.ID, c.Observed, c.Bound))
	text := strings.Join(append(lines(c.Reason), "observed "+c.Observed, "bound "+c.Bound), "\n")
	switch c.Outcome {
	case verdict.Pass:
	case verdict.Skip:
		jc.Skipped = &junitSkipped{Message: clean(firstLine(c.Reason))}
	case verdict.Fail:
		jc.Failure = problem(lead(c), "fail", text)
	default:
		jc.Error = problem(lead(c), "inconclusive", text)
	}
	return jc
}

func problem(message, kind, text string) *junitProblem {
	return &junitProblem{Message: clean(firstLine(message)), Type: kind, Text: clean(text)}
}

func (s *junitSuite) add(c junitCase) {
	s.Cases = append(s.Cases, c)
	s.Tests++
	switch {
	case c.Failure != nil:
		s.Failures++
	case c.Error != nil:
		s.Errors++
	case c.Skipped != nil:
		s.Skipped++
	}
}

func (s *junitSuites) add(suite junitSuite) {
	s.Suites = append(s.Suites, suite)
	s.Tests += suite.Tests
	s.Failures += suite.Failures
	s.Errors += suite.Errors
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", max(s, 0)) }

// clean drops what XML 1.0 cannot hold.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) && r != unicode.ReplacementChar && r != '\uFFFE' && r != '\uFFFF' {
			return r
		}
		return -1
	}, s)
}
