package tree

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/meshproof/meshproof/scenarios/catalog"
)

// Select returns the scenarios whose labels match a filter in ginkgo's language (https://onsi.github.io/ginkgo/#spec-labels); all if it
// is empty. An error says what is wrong with the filter, or that nothing is left.
func Select(list []catalog.Scenario, filter string) ([]catalog.Scenario, error) {
	matches, err := types.ParseLabelFilter(filter)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", filter, plain(err))
	}
	var out []catalog.Scenario
	var labels []string
	for _, s := range list {
		labels = append(labels, s.Labels()...)
		if matches(s.Labels()) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		slices.Sort(labels)
		return nil, fmt.Errorf("%q matches no scenario; the labels are %s", filter, strings.Join(slices.Compact(labels), ", "))
	}
	return out, nil
}

// plain is the reason in an error of ginkgo's without headings, markup and links: the last line of its message.
func plain(err error) error {
	var styled types.GinkgoError
	if !errors.As(err, &styled) {
		return err
	}
	return errors.New(styled.Message[strings.LastIndex(styled.Message, "\n")+1:])
}
