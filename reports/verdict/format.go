package verdict

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Group writes an integer with a comma between thousands.
func Group(n int) string {
	s := strconv.Itoa(n)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if neg {
		return "-" + s
	}
	return s
}

// Seconds writes a duration given in seconds with a unit that a person would choose, at three digits.
func Seconds(s float64) string {
	a := math.Abs(s)
	switch {
	case a == 0:
		return "0 s"
	case a < 1e-3:
		return digits(s*1e6) + " µs"
	case a < 1:
		return digits(s*1e3) + " ms"
	case a < 120:
		return digits(s) + " s"
	}
	return fmt.Sprintf("%d min %02d s", int(s)/60, int(s)%60)
}

// digits writes x with three significant digits but never less than its integer part.
func digits(x float64) string {
	switch a := math.Abs(x); {
	case a >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

func percent(share float64, decimals int) string {
	return strconv.FormatFloat(share*100, 'f', decimals, 64) + "%"
}

// trim writes a number as short as it reads back, without the noise of binary fractions.
func trim(x float64) string {
	s := strconv.FormatFloat(x, 'g', 6, 64)
	return strings.Replace(s, "e-0", "e-", 1)
}

func ratio(count, n int) float64 {
	if n == 0 {
		return 0
	}
	return float64(count) / float64(n)
}

// lossBound is the share that zero of n excludes at level alpha, as text.
func lossBound(alpha float64, n int) string {
	return strconv.FormatFloat(100*LossBound(alpha, n), 'g', 2, 64) + "%"
}

// normalQuantile is the inverse of the standard normal distribution.
func normalQuantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
