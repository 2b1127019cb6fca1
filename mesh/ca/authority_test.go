package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/meshproof/meshproof/mesh/identity"
)

func newRoot(t *testing.T) Files {
	t.Helper()
	f, err := NewSelfSigned("mesh", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func issue(t *testing.T, root Files, cluster string) Files {
	t.Helper()
	f, err := Issue(root, "mesh", cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What the CA of one cluster signs is trusted in the other: the chain that a workload is given leads to the common root, and the
// root comes last.
func TestIntermediatesOfOneRoot(t *testing.T) {
	root := newRoot(t)
	id := identity.ID{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: "sa"}
	for _, chain := range []string{"with root", "without root", "empty"} {
		t.Run(chain, func(t *testing.T) {
			f := issue(t, root, "remote")
			switch chain {
			case "without root":
				f.Chain = f.Cert
			case "empty":
				f.Chain = nil
			}
			c, err := New(f, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Sign(csr(t), id, 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 3 || got[1] != string(f.Cert) || got[2] != string(root.Cert) {
				t.Fatalf("the chain has %d certificates; want leaf, intermediate and root", len(got))
			}
			leaf, err := parseCert([]byte(got[0]))
			if err != nil {
				t.Fatal(err)
			}
			roots, inter := x509.NewCertPool(), x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(got[2]))
			inter.AppendCertsFromPEM([]byte(got[1]))
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	root := newRoot(t)
	kube := fake.NewClientset()
	c, err := Load(t.Context(), kube, "istio-system", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	a := NewAuthority(c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := a.Follow(ctx, kube, "istio-system", slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	seen := make(chan *CA, 10)
	wg.Go(func() {
		if err := a.Each(ctx, func(ctx context.Context, c *CA) error {
			seen <- c
			<-ctx.Done()
			return ctx.Err() // how it ends when it was told to does not matter
		}); err != nil {
			t.Error(err)
		}
	})
	if got := <-seen; got != c {
		t.Fatal("not the CA that was loaded")
	}
	first := issue(t, root, "control")
	secrets := kube.CoreV1().Secrets("istio-system")
	if _, err := secrets.Create(ctx, first.Secret("istio-system"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; !bytes.Equal(got.Roots().PEM(), root.Cert) {
		t.Fatal("the roots are not those of the Secret")
	}
	bad := first.Secret("istio-system")
	bad.Data["ca-key.pem"] = issue(t, root, "other").Key
	if _, err := secrets.Update(ctx, bad, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	second := issue(t, root, "control")
	if _, err := secrets.Update(ctx, second.Secret("istio-system"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	got := <-seen // the bad one was never in force, or it would have come first
	if want, _ := parseCert(second.Cert); !got.cert.Equal(want) {
		t.Error("not the second CA")
	}
	if err := secrets.Delete(ctx, PluggedSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if a.CA() != got {
		t.Error("the CA went with its Secret")
	}
}

func TestEachEndsWithTheFirstError(t *testing.T) {
	c, _ := newCA(t)
	wrong := errors.New("wrong")
	if err := NewAuthority(c).Each(t.Context(), func(context.Context, *CA) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
}

// A caller's token is reviewed where the caller says it lives, and nowhere else.
func TestAuthenticateInAnotherCluster(t *testing.T) {
	reviewer := func(name string) kubernetes.Interface { return fakeReviewer(name) }
	p := &Peers{Kube: reviewer("own"), ClusterID: "control", TrustDomain: "td", Remote: func(id string) (kubernetes.Interface, bool) {
		return reviewer("theirs"), id == "remote"
	}}
	for _, tt := range []struct{ header, want, err string }{
		{"", "spiffe://td/ns/own/sa/sa", ""},
		{"control", "spiffe://td/ns/own/sa/sa", ""},
		{"remote", "spiffe://td/ns/theirs/sa/sa", ""},
		{"elsewhere", "", `cluster "elsewhere" is not part of this mesh: there is no remote secret for it`},
	} {
		id, err := p.Authenticate(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer x", clusterHeader, tt.header)))
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q: error %v, want %s", tt.header, err, tt.err)
			}
			continue
		}
		if err != nil || id.String() != tt.want {
			t.Errorf("%q: %s, %v", tt.header, id, err)
		}
	}
}

// fakeReviewer is an API server that takes every token for one of a namespace of that name.
func fakeReviewer(namespace string) kubernetes.Interface {
	kube := fake.NewClientset()
	kube.PrependReactor("create", "tokenreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authv1.TokenReview)
		r.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authv1.UserInfo{Username: "system:serviceaccount:" + namespace + ":sa"}}
		return true, r, nil
	})
	return kube
}
