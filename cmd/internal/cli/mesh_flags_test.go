package cli

import "testing"

// Without a kubeconfig, a context names a cluster of the lab.
func TestContextIsACluster(t *testing.T) {
	for _, test := range []struct {
		flags meshFlags
		env   string
		want  meshFlags
	}{
		{meshFlags{context: "remote"}, "", meshFlags{cluster: "remote"}},
		{meshFlags{context: "remote", cluster: "remote"}, "", meshFlags{cluster: "remote"}},
		{meshFlags{context: "remote", lab: "one"}, "theirs", meshFlags{cluster: "remote", lab: "one"}},
		{meshFlags{context: "remote"}, "theirs", meshFlags{context: "remote"}},
		{meshFlags{context: "remote", kubeconfig: "theirs"}, "", meshFlags{context: "remote", kubeconfig: "theirs"}},
	} {
		got := test.flags
		if err := got.check(test.env); err != nil || got != test.want {
			t.Errorf("%+v with KUBECONFIG=%q: %+v, %v, want %+v", test.flags, test.env, got, err, test.want)
		}
	}
}
