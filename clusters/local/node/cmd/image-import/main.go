// Command image-import puts image archives into a node's containerd: unpacked, in the namespace that kubelet uses, and
// pinned so that nobody collects them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"golang.org/x/sync/errgroup"
)

func main() {
	address := flag.String("address", "/run/containerd/containerd.sock", "containerd's socket")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *address, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image-import:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address string, archives []string) (err error) {
	if len(archives) == 0 {
		return errors.New("no archive given")
	}
	client, err := containerd.New(address)
	if err != nil {
		return fmt.Errorf("containerd at %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	// What is imported must not be collected before an image names it.
	ctx, release, err := client.WithLease(namespaces.WithNamespace(ctx, "k8s.io"))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range archives {
		g.Go(func() error {
			if err := load(ctx, client, a); err != nil {
				return fmt.Errorf("archive %s: %w", a, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func load(ctx context.Context, client *containerd.Client, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	labels := map[string]string{"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}
	imported, err := client.Import(ctx, f, containerd.WithImageLabels(labels), containerd.WithAllPlatforms(false),
		containerd.WithImportPlatform(platforms.Default()))
	if err != nil {
		return err
	}
	if len(imported) == 0 {
		return errors.New("holds no image")
	}
	for _, img := range imported {
		if err := containerd.NewImageWithPlatform(client, img, platforms.Default()).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack %s: %w", img.Name, err)
		}
		fmt.Println(img.Name)
	}
	return nil
}
