package ca

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/meshproof/meshproof/mesh/identity"
)

// Authenticator tells who is calling.
type Authenticator interface {
	Authenticate(ctx context.Context) (identity.ID, error)
}

// Signer signs certificate requests: a CA, or an Authority.
type Signer interface {
	Sign(csrPEM []byte, id identity.ID, ttl time.Duration) ([]string, error)
}

// Register adds Istio's certificate service to a gRPC server.
func Register(g *grpc.Server, c Signer, auth Authenticator, log *slog.Logger) {
	securityv1alpha1.RegisterIstioCertificateServiceServer(g, &service{ca: c, auth: auth, log: log})
}

type service struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca   Signer
	auth Authenticator
	log  *slog.Logger
}

// CreateCertificate signs the caller's key for the caller's own identity.
func (s *service) CreateCertificate(ctx context.Context, r *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	id, err := s.auth.Authenticate(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "authenticate: %v", err)
	}
	chain, err := s.ca.Sign([]byte(r.Csr), id, time.Duration(r.ValidityDuration)*time.Second)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	s.log.Info("certificate signed", "identity", id.String())
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}
