// Package objects reads Istio's traffic objects: decoding with file, line and column, defaults, and validation that says
// what is wrong, where, and how to mend it. What this mesh does not honour is named, never passed over.
package objects

import "fmt"

// Severity says what a problem does to its object.
type Severity string

// An object with an Error is not in force as it stands; a Warning changes nothing.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Problem is one thing wrong with an object.
type Problem struct {
	Severity Severity `json:"severity"`
	Field    string   `json:"field"` // path in the object, spec.http[0].route[1].weight
	Message  string   `json:"message"`
	Fix      string   `json:"fix,omitempty"`
}

func (p Problem) String() string {
	s := fmt.Sprintf("%s: %s: %s", p.Severity, p.Field, p.Message)
	if p.Fix != "" {
		s += "; " + p.Fix
	}
	return s
}

// HasErrors tells whether any of the problems is an Error.
func HasErrors(ps []Problem) bool {
	for _, p := range ps {
		if p.Severity == Error {
			return true
		}
	}
	return false
}
