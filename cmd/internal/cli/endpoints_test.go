package cli

import (
	"encoding/json"
	"reflect"
	"testing"
)

// TestEndpointRows: Envoy's /clusters?format=json, as istioctl shows it. Fields that are false are not in it.
func TestEndpointRows(t *testing.T) {
	var s clusterStatuses
	err := json.Unmarshal([]byte(`{"cluster_statuses":[
		{"name":"outbound|80||b","host_statuses":[
			{"address":{"socket_address":{"address":"10.0.0.2","port_value":80}},"health_status":{"failed_outlier_check":true,"eds_health_status":"HEALTHY"}},
			{"address":{"socket_address":{"address":"10.0.0.1","port_value":80}},"health_status":{"eds_health_status":"DRAINING"}}]},
		{"name":"outbound|80||a","host_statuses":[{"address":{"socket_address":{"address":"fd00::1","port_value":9080}},"health_status":{}}]},
		{"name":"BlackHoleCluster"}]}`), &s)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"10.0.0.1:80", "DRAINING", "OK", "outbound|80||b"},
		{"10.0.0.2:80", "HEALTHY", "FAILED", "outbound|80||b"},
		{"[fd00::1]:9080", "HEALTHY", "OK", "outbound|80||a"},
	}
	if got := endpointRows(s); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}
