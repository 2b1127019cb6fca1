package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// DialOptions say how to reach the control plane.
type DialOptions struct {
	Address string // host:port
	// RootFile holds the trust anchors in PEM; it is read at each handshake. Empty means plaintext.
	RootFile string
	// TokenFile holds a bearer token, read at each call: the kubelet renews it. Empty means none.
	TokenFile string
	// ClusterID is sent as the ClusterID header when set.
	ClusterID string
}

// Dial returns a connection that connects when it is first used, and again whenever it was lost.
func Dial(o DialOptions) (*grpc.ClientConn, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("control plane address %q: %w", o.Address, err)
	}
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = 200*time.Millisecond, 5*time.Second
	if o.TokenFile != "" && o.RootFile == "" {
		return nil, errors.New("control plane: a bearer token needs TLS; set the file with the trust anchors")
	}
	opts := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256 << 20)),
	}
	if o.RootFile != "" {
		opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			ServerName: host, MinVersion: tls.VersionTLS12,
			InsecureSkipVerify: true, // VerifyConnection does it, with roots that are read anew
			VerifyConnection:   func(cs tls.ConnectionState) error { return verifyServer(cs, o.RootFile, host) },
		})))
	} else {
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if o.TokenFile != "" || o.ClusterID != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(token{o.TokenFile, o.ClusterID}))
	}
	conn, err := grpc.NewClient("dns:///"+o.Address, opts...)
	if err != nil {
		return nil, fmt.Errorf("control plane %s: %w", o.Address, err)
	}
	return conn, nil
}

func verifyServer(cs tls.ConnectionState, rootFile, host string) error {
	pem, err := os.ReadFile(rootFile)
	if err != nil {
		return fmt.Errorf("control plane trust anchors: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("control plane trust anchors: no certificate in %s", rootFile)
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("control plane gave no certificate")
	}
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host})
	return err
}

// token is credentials.PerRPCCredentials.
type token struct {
	file, cluster string
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := map[string]string{}
	if t.cluster != "" {
		md["clusterid"] = t.cluster
	}
	if t.file != "" {
		b, err := os.ReadFile(t.file)
		if err != nil {
			return nil, fmt.Errorf("bearer token: %w", err)
		}
		md["authorization"] = "Bearer " + strings.TrimSpace(string(b))
	}
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: a token never goes over plaintext.
func (t token) RequireTransportSecurity() bool { return t.file != "" }
