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

// Peers authenticates callers: by a certificate of the mesh if they show one, else by a service account token for Audience,
// which the API server reviews.
type Peers struct {
	Kube        kubernetes.Interface
	TrustDomain string
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
		return p.review(ctx, token)
	}
	return identity.ID{}, errors.New("neither a client certificate nor a bearer token")
}

func (p *Peers) review(ctx context.Context, token string) (identity.ID, error) {
	r, err := p.Kube.AuthenticationV1().TokenReviews().Create(ctx, &authv1.TokenReview{
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
