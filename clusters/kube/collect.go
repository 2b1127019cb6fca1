package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Collect writes what helps to understand a failure into dir: for each namespace (all when none is named) pods.yaml,
// services.yaml, events.txt and logs/POD/CONTAINER.log, with CONTAINER.previous.log after a restart. It goes on after errors,
// writes them to errors.txt and returns them joined.
func (c *Client) Collect(ctx context.Context, dir string, namespaces ...string) error {
	if len(namespaces) == 0 {
		list, err := c.Typed.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("collect: %w", err)
		}
		for _, ns := range list.Items {
			namespaces = append(namespaces, ns.Name)
		}
	}
	var errs []error
	for _, ns := range namespaces {
		if err := c.collect(ctx, filepath.Join(dir, ns), ns); err != nil {
			errs = append(errs, fmt.Errorf("collect namespace %s: %w", ns, err))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		if e := os.MkdirAll(dir, 0o755); e == nil {
			_ = os.WriteFile(filepath.Join(dir, "errors.txt"), []byte(err.Error()+"\n"), 0o644)
		}
	}
	return err
}

func (c *Client) collect(ctx context.Context, dir, ns string) error {
	pods, err := c.Typed.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	services, err := c.Typed.CoreV1().Services(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	events, err := c.Typed.CoreV1().Events(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if len(pods.Items) == 0 && len(events.Items) == 0 && len(services.Items) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, v := range map[string]any{"pods.yaml": pods, "services.yaml": services} {
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	slices.SortFunc(events.Items, func(a, b corev1.Event) int { return eventTime(&a).Compare(eventTime(&b)) })
	var text strings.Builder
	for _, e := range events.Items {
		text.WriteString(eventLine(&e) + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "events.txt"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	return c.collectLogs(ctx, dir, pods.Items)
}

// collectLogs writes the log of every container that ever ran.
func (c *Client) collectLogs(ctx context.Context, dir string, pods []corev1.Pod) error {
	type piece struct {
		pod, container, file string
		previous             bool
	}
	var pieces []piece
	for _, p := range pods {
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if s.ContainerID != "" {
				pieces = append(pieces, piece{p.Name, s.Name, s.Name + ".log", false})
			}
			if s.RestartCount > 0 {
				pieces = append(pieces, piece{p.Name, s.Name, s.Name + ".previous.log", true})
			}
		}
	}
	errs := make([]error, len(pieces))
	var g errgroup.Group
	g.SetLimit(8)
	for i, f := range pieces {
		ns := pods[0].Namespace
		g.Go(func() error {
			b, err := c.Logs(ctx, ns, f.pod, f.container, f.previous)
			if err == nil {
				err = os.MkdirAll(filepath.Join(dir, "logs", f.pod), 0o755)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "logs", f.pod, f.file), b, 0o644)
			}
			errs[i] = err
			return nil
		})
	}
	_ = g.Wait() // never fails: one log that cannot be had must not cost the others
	return errors.Join(errs...)
}
