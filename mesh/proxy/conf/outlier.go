package conf

import "time"

// Outlier is a cluster's outlier detection, with defaults filled in. Source: envoy.config.cluster.v3.OutlierDetection.
type Outlier struct {
	Interval     time.Duration // between sweeps
	BaseEjection time.Duration // times the host's back-off
	MaxEjection  time.Duration
	MaxJitter    time.Duration
	MaxPercent   uint32 // of hosts that may be ejected
	AlwaysOne    bool   // eject one host even where MaxPercent does not allow it
	// Split counts errors of this side (no connection, no answer) apart from those that the upstream answered.
	Split bool

	// Errors in a row that eject a host. Local counts only with Split.
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal uint32

	// Success rates are compared over hosts with at least Volume requests in the last interval, if there are at least Hosts of
	// them: less than the mean minus Stdev thousandths of the standard deviation ejects.
	SuccessRateHosts, SuccessRateVolume, SuccessRateStdev uint32
	// A share of failures of at least FailureThreshold percent ejects, on the same terms.
	FailureThreshold, FailureHosts, FailureVolume uint32

	// Enforcing is the percentage of detections that eject, by type.
	Enforcing [EjectionTypes]uint32
}

// EjectionType is why a host is ejected. The values are those of envoy.data.cluster.v3.OutlierEjectionType.
type EjectionType uint8

// The types of ejections.
const (
	Eject5xx EjectionType = iota
	EjectGateway
	EjectSuccessRate
	EjectLocal
	EjectSuccessRateLocal
	EjectFailurePercentage
	EjectFailurePercentageLocal
	EjectionTypes = 7 // how many there are
)

var ejectionNames = [EjectionTypes]string{"CONSECUTIVE_5XX", "CONSECUTIVE_GATEWAY_FAILURE", "SUCCESS_RATE", "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
	"SUCCESS_RATE_LOCAL_ORIGIN", "FAILURE_PERCENTAGE", "FAILURE_PERCENTAGE_LOCAL_ORIGIN"}

// String is the name in the proto.
func (t EjectionType) String() string { return ejectionNames[t] }

// DefaultOutlier is Envoy's, for a cluster that asks for outlier detection and says no more.
var DefaultOutlier = Outlier{
	Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxPercent: 10,
	Consecutive5xx: 5, ConsecutiveGateway: 5, ConsecutiveLocal: 5,
	SuccessRateHosts: 5, SuccessRateVolume: 100, SuccessRateStdev: 1900,
	FailureThreshold: 85, FailureHosts: 5, FailureVolume: 50,
	Enforcing: [EjectionTypes]uint32{Eject5xx: 100, EjectSuccessRate: 100, EjectLocal: 100, EjectSuccessRateLocal: 100},
}
