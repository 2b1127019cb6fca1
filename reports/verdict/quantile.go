package verdict

// QuantileRanks gives the ranks, from 1 on, of the order statistics that bound the p-quantile of n independent samples from below
// and from above, each with an error of at most alpha: the number of samples below the quantile is binomial, whatever the samples'
// law (David and Nagaraja, Order Statistics, section 7.1). low is 0, or high is n+1, where no sample is small or large enough.
func QuantileRanks(n int, p, alpha float64) (low, high int) {
	low, last := binomial{n, p}.region(2 * alpha)
	return low, last + 1
}
