package decode

import (
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/meshproof/meshproof/mesh/proxy/conf"
)

func TestOutlier(t *testing.T) {
	with := func(f func(*conf.Outlier)) *conf.Outlier { o := conf.DefaultOutlier; f(&o); return &o }
	for in, want := range map[string]*conf.Outlier{
		``:                      nil,
		`"outlierDetection":{}`: with(func(*conf.Outlier) {}),
		`"outlierDetection":{"baseEjectionTime":"600s"}`: with(func(o *conf.Outlier) { o.BaseEjection, o.MaxEjection = 10*time.Minute, 10*time.Minute }),
		// What Istio sends for consecutiveGatewayErrors and splitExternalLocalOriginErrors.
		`"outlierDetection":{"consecutive5xx":0,"enforcingConsecutive5xx":0,"consecutiveGatewayFailure":2,"enforcingConsecutiveGatewayFailure":100,"enforcingSuccessRate":0,
		  "interval":"1s","baseEjectionTime":"180s","maxEjectionPercent":100,"splitExternalLocalOriginErrors":true,"consecutiveLocalOriginFailure":4,
		  "enforcingConsecutiveLocalOriginFailure":100,"enforcingLocalOriginSuccessRate":0}`: with(func(o *conf.Outlier) {
			o.Consecutive5xx, o.ConsecutiveGateway, o.ConsecutiveLocal, o.Split = 0, 2, 4, true
			o.Interval, o.BaseEjection, o.MaxPercent = time.Second, 3*time.Minute, 100
			o.Enforcing = [conf.EjectionTypes]uint32{conf.EjectGateway: 100, conf.EjectLocal: 100}
		}),
		`"outlierDetection":{"alwaysEjectOneHost":true,"maxEjectionTime":"400s","maxEjectionTimeJitter":"7s","successRateMinimumHosts":3,"successRateRequestVolume":10,"successRateStdevFactor":2000,
		  "failurePercentageThreshold":50,"failurePercentageMinimumHosts":2,"failurePercentageRequestVolume":9,"enforcingFailurePercentage":40,"enforcingFailurePercentageLocalOrigin":30}`: with(func(o *conf.Outlier) {
			o.AlwaysOne, o.MaxEjection, o.MaxJitter = true, 400*time.Second, 7*time.Second
			o.SuccessRateHosts, o.SuccessRateVolume, o.SuccessRateStdev = 3, 10, 2000
			o.FailureThreshold, o.FailureHosts, o.FailureVolume = 50, 2, 9
			o.Enforcing[conf.EjectFailurePercentage], o.Enforcing[conf.EjectFailurePercentageLocal] = 40, 30
		}),
	} {
		if in != "" {
			in = "," + in
		}
		c, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS"`+in+`}`))
		if err != nil || !reflect.DeepEqual(c.Outlier, want) {
			t.Errorf("%s: %+v, %v", in, c.Outlier, err)
		}
	}
	for in, want := range map[string]string{
		`"maxEjectionPercent":101`:                        "max_ejection_percent: 101 is over 100",
		`"enforcingConsecutiveGatewayFailure":200`:        "enforcing_consecutive_gateway_failure: 200 is over 100",
		`"interval":"0s"`:                                 "interval: must be greater than 0",
		`"baseEjectionTime":"-1s"`:                        "base_ejection_time",
		`"baseEjectionTime":"10s","maxEjectionTime":"9s"`: "max_ejection_time 9s cannot be smaller than base_ejection_time 10s",
		`"monitors":[{}]`:                                 "monitors is not supported",
	} {
		if _, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS","outlierDetection":{`+in+`}}`)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestBreakers(t *testing.T) {
	const all = conf.Unlimited
	for in, want := range map[string]conf.Breakers{
		``:                                      conf.DefaultBreakers,
		`"circuitBreakers":{}`:                  conf.DefaultBreakers,
		`"circuitBreakers":{"thresholds":[{}]}`: conf.DefaultBreakers,
		`"circuitBreakers":{"thresholds":[{"maxConnections":1,"maxPendingRequests":0,"maxRequests":2}]}`:                                                                          {Connections: 1, Pending: 0, Requests: 2, Retries: 3},
		`"circuitBreakers":{"thresholds":[{"maxConnections":4294967295,"maxPendingRequests":4294967295,"maxRequests":4294967295,"maxRetries":4294967295,"trackRemaining":true}]}`: {Connections: all, Pending: all, Requests: all, Retries: all},
		`"circuitBreakers":{"thresholds":[{"maxRetries":7},{"maxRetries":8}]}`:                                                                                                    {Connections: 1024, Pending: 1024, Requests: 1024, Retries: 7},
	} {
		if in != "" {
			in = "," + in
		}
		c, err := Cluster(read(t, &clusterv3.Cluster{}, `{"name":"c","type":"EDS"`+in+`}`))
		if err != nil || c.Breakers != want {
			t.Errorf("%s: %+v, %v", in, c.Breakers, err)
		}
	}
}
