package verdict

import "strings"

// Combine folds outcomes into one: fail beats inconclusive beats pass, and pass beats skip. Nothing at all is
// inconclusive: a scenario that claimed nothing has shown nothing.
func Combine(outcomes ...Outcome) Outcome {
	worst, rank := Inconclusive, 0
	for _, o := range outcomes {
		if r := severity(o); r > rank {
			worst, rank = o, r
		}
	}
	return worst
}

func severity(o Outcome) int {
	switch o {
	case Skip:
		return 1
	case Pass:
		return 2
	case Fail:
		return 4
	}
	return 3 // an outcome that nobody knows is not a pass
}

// Judge sets the outcome of a scenario from its claims. An Error makes it inconclusive unless a claim already failed: what
// could not be carried out is neither proof nor disproof. A tripped guard turns failures of other claims into
// inconclusive ones, and says so in their Reason; only a Firm claim keeps its failure. guard is the ID of that claim,
// empty for none.
func Judge(s *Scenario, guard string) {
	s.Guard = guard
	starved := ""
	for i := range s.Claims {
		if c := &s.Claims[i]; guard != "" && c.ID == guard && c.Outcome == Inconclusive {
			starved, _, _ = strings.Cut(c.Reason, "\n")
		}
	}
	var all []Outcome
	for i := range s.Claims {
		c := &s.Claims[i]
		if starved != "" && c.Outcome == Fail && !c.Firm {
			c.Outcome = Inconclusive
			c.Reason = join(c.Reason, "not counted as a failure: "+starved)
		}
		all = append(all, c.Outcome)
	}
	if s.Error != "" {
		all = append(all, Inconclusive)
	}
	s.Outcome = Combine(all...)
}

// Void says that the lab itself broke while the scenario ran: that becomes its Error, and no claim counts as a failure any more,
// not even a Firm one, since whatever was seen may be the lab's doing. Call it before Judge.
func Void(s *Scenario, why string) {
	s.Error = join("the lab broke: "+why, s.Error)
	for i := range s.Claims {
		if c := &s.Claims[i]; c.Outcome == Fail {
			c.Outcome, c.Reason = Inconclusive, join(c.Reason, "not counted as a failure: the lab broke")
		}
	}
}

// JudgeRun sets the outcome of a run from its scenarios. A lab that could not be set up is inconclusive.
func JudgeRun(r *Report) {
	var all []Outcome
	for _, s := range r.Scenarios {
		all = append(all, s.Outcome)
	}
	if r.Error != "" {
		all = append(all, Inconclusive)
	}
	r.Outcome = Combine(all...)
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "\n" + b
}
