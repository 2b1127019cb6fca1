package identity

import "testing"

func TestParse(t *testing.T) {
	id := ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"}
	got, err := Parse(id.String())
	if err != nil || got != id {
		t.Errorf("Parse(%s) = %v, %v", id, got, err)
	}
	if id.URL().String() != id.String() {
		t.Errorf("URL is %s", id.URL())
	}
	for _, s := range []string{"", "spiffe://", "http://td/ns/n/sa/s", "spiffe://td/ns/n", "spiffe://td/ns//sa/s", "spiffe://td/ns/n/sa/s/x", "spiffe:///ns/n/sa/s", "spiffe://td/sa/s/ns/n"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v", s, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://td/ns/n/sa/s")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := Parse(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %q", s, id)
		}
	})
}

func TestParseBundle(t *testing.T) {
	for _, s := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"} {
		if _, err := ParseBundle([]byte(s)); err == nil {
			t.Errorf("%q is taken for a bundle", s)
		}
	}
}
