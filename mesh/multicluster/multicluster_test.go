package multicluster

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/kubernetes/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server stands in for the API server of a remote cluster; it can be away and come back under the same address.
type server struct {
	t    *testing.T
	addr string
	srv  *httptest.Server
}

func newServer(t *testing.T) *server {
	s := &server{t: t, addr: "127.0.0.1:0"}
	s.up()
	s.addr = s.srv.Listener.Addr().String()
	t.Cleanup(func() { s.down() })
	return s
}

func (s *server) up() {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "who are you", http.StatusUnauthorized)
		}
	}))
	_ = s.srv.Listener.Close()
	s.srv.Listener = l
	s.srv.StartTLS()
}

func (s *server) down() {
	s.srv.CloseClientConnections()
	s.srv.Close()
}

func (s *server) secret(cluster string) *corev1.Secret {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.srv.Certificate().Raw})
	out, err := Secret(cluster, "istio-system", "https://"+s.addr, ca, "secret")
	if err != nil {
		s.t.Fatal(err)
	}
	// What an API server does.
	out.Data = map[string][]byte{}
	for k, v := range out.StringData {
		out.Data[k] = []byte(v)
	}
	out.StringData = nil
	return out
}

func TestSet(t *testing.T) {
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	east := newServer(t)
	kube := fake.NewClientset(east.secret("east"), east.secret("own"))
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan string, 100)
	set := New(Options{
		Kube: kube, Namespace: "istio-system", Own: "own", UserAgent: "test", Log: slog.New(slog.DiscardHandler),
		Serve: func(ctx context.Context, c Cluster, synced func()) error {
			events <- "serve " + c.ID
			synced()
			<-ctx.Done()
			events <- "end " + c.ID
			return nil
		},
		Gone: func(id string) { events <- "gone " + id },
	})
	set.every = 10 * time.Millisecond
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := set.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	want := func(what string) {
		t.Helper()
		if got := <-events; got != what {
			t.Fatalf("%q happened, want %q", got, what)
		}
	}
	want("serve east")
	<-set.Settled()
	if _, ok := set.Kube("own"); ok {
		t.Error("the own cluster is a remote one")
	}
	if _, ok := set.Kube("east"); !ok {
		t.Error("no client for east")
	}

	// What was known of a cluster that cannot be reached stays; it is served anew when it is back.
	cert := east.srv.TLS.Certificates[0]
	east.down()
	until(t, "unreachable", func() bool {
		st := set.Status()
		return len(st) == 1 && !st[0].Reachable && st[0].Error != "" && st[0].Synced
	})
	east.up()
	if string(east.srv.TLS.Certificates[0].Certificate[0]) != string(cert.Certificate[0]) {
		t.Fatal("the server came back with another certificate: the test cannot work")
	}
	want("end east")
	want("serve east")
	until(t, "reachable", func() bool { st := set.Status(); return st[0].Reachable && st[0].Error == "" })

	west := newServer(t)
	if _, err := kube.CoreV1().Secrets("istio-system").Create(ctx, west.secret("west"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("serve west")
	// Another kubeconfig for the same cluster is not the end of what is known of it.
	moved := newServer(t).secret("west")
	if _, err := kube.CoreV1().Secrets("istio-system").Update(ctx, moved, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("end west")
	want("serve west")
	if err := kube.CoreV1().Secrets("istio-system").Delete(ctx, SecretPrefix+"west", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	want("end west")
	want("gone west")
	if _, ok := set.Kube("west"); ok {
		t.Error("a client for a cluster that is gone")
	}
	cancel()
	wg.Wait()
	want("end east")
	select {
	case e := <-events:
		t.Errorf("%q after the end", e)
	default:
	}
}

// until looks again and again, for at most ten seconds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not %s", what)
		case <-tick.C:
		}
	}
}

// A cluster that cannot be read must not hold the start up for ever.
func TestSettledWithoutACluster(t *testing.T) {
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	for _, tt := range []struct {
		name    string
		secrets bool
	}{{"no secrets", false}, {"one that is never read", true}} {
		t.Run(tt.name, func(t *testing.T) {
			kube := fake.NewClientset()
			if tt.secrets {
				kube = fake.NewClientset(newServer(t).secret("east"))
			}
			ctx, cancel := context.WithCancel(t.Context())
			set := New(Options{
				Kube: kube, Namespace: "istio-system", Own: "own", Log: slog.New(slog.DiscardHandler),
				Serve: func(ctx context.Context, _ Cluster, _ func()) error { <-ctx.Done(); return nil }, Gone: func(string) {},
			})
			set.patience = 20 * time.Millisecond
			var wg sync.WaitGroup
			wg.Go(func() { _ = set.Run(ctx) })
			<-set.Settled()
			cancel()
			wg.Wait()
		})
	}
}

func TestKubeconfigRefused(t *testing.T) {
	const head = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- {name: c, context: {cluster: c, user: u}}\n"
	const cluster = "clusters:\n- {name: c, cluster: {server: 'https://10.0.0.1:6443'}}\n"
	for _, tt := range []struct{ config, want string }{
		{head + cluster + "users:\n- {name: u, user: {token: x}}\n", ""},
		{head + cluster + "users:\n- {name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, interactiveMode: Never}}}\n", "users[u].user.exec is refused"},
		{head + cluster + "users:\n- {name: u, user: {tokenFile: /etc/passwd}}\n", "users[u].user.tokenFile is refused"},
		{head + cluster + "users:\n- {name: u, user: {client-certificate: /c, client-key: /k}}\n", "users[u].user.client-certificate is refused"},
		{head + cluster + "users:\n- {name: u, user: {auth-provider: {name: gcp}}}\n", "users[u].user.auth-provider is refused"},
		{head + "clusters:\n- {name: c, cluster: {server: 'https://a', certificate-authority: /ca}}\n", "clusters[c].cluster.certificate-authority is refused"},
		{head + "clusters:\n- {name: c, cluster: {server: 'https://a', insecure-skip-tls-verify: true}}\n", "insecure-skip-tls-verify is refused"},
		{"nonsense: [", "kubeconfig: "},
		{"", "kubeconfig: "},
	} {
		_, err := restConfig([]byte(tt.config))
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s\nrefused: %v", tt.config, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s\nerror %v, want %q", tt.config, err, tt.want)
		}
	}
}

func FuzzKubeconfig(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- {name: c, context: {cluster: c, user: u}}\nclusters:\n- {name: c, cluster: {server: 'https://10.0.0.1:6443'}}\nusers:\n- {name: u, user: {token: x}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := restConfig(data)
		if err != nil {
			return
		}
		if cfg.ExecProvider != nil || cfg.AuthProvider != nil || cfg.BearerTokenFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" || cfg.CAFile != "" || cfg.Insecure {
			t.Errorf("accepted: %+v", cfg)
		}
	})
}

func TestControlled(t *testing.T) {
	clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, false)
	ns := func(value string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Annotations: map[string]string{ControlledAnnotation: value}}}
	}
	for _, tt := range []struct {
		value string
		want  bool
	}{{"*", true}, {"control", true}, {"other, control", true}, {"other", false}, {"", false}} {
		kube := fake.NewClientset(ns(tt.value))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Controlled(ctx, kube, "istio-system", "control") }()
		if !tt.want {
			// It waits until it is asked to.
			until(t, "watching", func() bool {
				for _, a := range kube.Actions() {
					if a.GetVerb() == "watch" {
						return true
					}
				}
				return false
			})
			if _, err := kube.CoreV1().Namespaces().Update(ctx, ns("control"), metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Errorf("%q: %v", tt.value, err)
		}
		cancel()
	}
}
