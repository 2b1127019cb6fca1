package lab

import (
	"maps"
	"slices"
	"strings"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// suggest ends an "is not a field" with the nearest name, or with all of them.
func suggest(got string, known []string) string {
	if near := Nearest(got, known); near != "" {
		return "; did you mean \"" + near + "\"?"
	}
	return "; there are " + strings.Join(known, ", ")
}

func didYouMean(got string, known []string) string {
	if near := Nearest(got, known); near != "" {
		return "; did you mean \"" + near + "\"?"
	}
	return ""
}

// Nearest returns the word of known that got was probably meant to be, or "".
func Nearest(got string, known []string) string {
	best, bestDistance := "", 1+max(1, min(3, len(got)/2))
	for _, k := range known {
		if d := distance(strings.ToLower(got), strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is Damerau-Levenshtein: insertions, deletions, substitutions and swaps of neighbours. Long words are cut, since
// only near ones matter.
func distance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
