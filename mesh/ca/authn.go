package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/meshproof/meshproof/mesh/identity"
)

// Audience of the tokens that proxies show.
const Audience = "istio-ca"

// clusterHeader is where a proxy says which cluster its token is from: security/pkg/nodeagent of istio/istio.
const clusterHeader = "clusterid"

// Peers authenticates callers: by a certificate of the mesh if they show one, else by a service account token for Audience,
// which the API server of the caller's own cluster reviews.
type Peers struct {
	Kube        kubernetes.Interface // of the control plane's own cluster
	ClusterID   string               // of the own cluster; callers that name no cluster are taken to be there
	TrustDomain string
	// Remote returns the client of another cluster of the mesh; nil when there are none.
	Remote func(id string) (kubernetes.Interface, bool)
}

// Authenticate returns who calls.
func (p *Peers) Authenticate(ctx context.Context) (identity.ID, error) {
	if pr, ok := peer.FromContext(ctx); ok {
		if t, ok := pr.AuthInfo.(credentials.TLSInfo); ok && len(t.State.VerifiedChains) > 0 {
			id, err := identity.FromCertificate(t.State.VerifiedChains[0][0])
			if err != nil {
				return identity.ID{}, err
			}
			if id.TrustDomain != p.TrustDomain {
				return identity.ID{}, fmt.Errorf("%s is of another trust domain than %s", id, p.TrustDomain)
			}
			return id, nil
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		token, ok := strings.CutPrefix(v, "Bearer ")
		if !ok {
			continue
		}
		kube, err := p.cluster(md.Get(clusterHeader))
		if err != nil {
			return identity.ID{}, err
		}
		return p.review(ctx, kube, token)
	}
	return identity.ID{}, errors.New("neither a client certificate nor a bearer token")
}

// cluster returns the client of the cluster that a caller says it is in.
func (p *Peers) cluster(header []string) (kubernetes.Interface, error) {
	if len(header) == 0 || header[0] == "" || header[0] == p.ClusterID {
		return p.Kube, nil
	}
	if p.Remote != nil {
		if kube, ok := p.Remote(header[0]); ok {
			return kube, nil
		}
	}
	return nil, fmt.Errorf("cluster %q is not part of this mesh: there is no remote secret for it", header[0])
}

func (p *Peers) review(ctx context.Context, kube kubernetes.Interface, token string) (identity.ID, error) {
	r, err := kube.AuthenticationV1().TokenReviews().Create(ctx, &authv1.TokenReview{
		Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return identity.ID{}, fmt.Errorf("review token: %w", err)
	}
	if !r.Status.Authenticated {
		return identity.ID{}, fmt.Errorf("token refused by the API server: %s", r.Status.Error)
	}
	if !slices.Contains(r.Status.Audiences, Audience) {
		return identity.ID{}, fmt.Errorf("token is not for audience %s", Audience)
	}
	return identity.ParseServiceAccount(p.TrustDomain, r.Status.User.Username)
}
