package install

// Profiles are the names of the profiles, Istio's.
func Profiles() []string { return []string{"default", "demo", "preview", "minimal", "empty", "remote"} }

// controls tells whether a profile has a control plane of its own.
func controls(profile string) bool { return profile != "empty" && profile != "remote" }

// profileGateways are the gateways of a profile that nobody says more about.
func profileGateways(profile string) []Gateway {
	in, out := Gateway{Name: gatewayName}, Gateway{Name: egressName, Egress: true}
	switch profile {
	case "default", "preview":
		return []Gateway{in}
	case "demo":
		return []Gateway{in, out}
	}
	return []Gateway{}
}
