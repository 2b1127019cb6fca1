package balancer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// Config is what a controller works on. All fields are required.
type Config struct {
	Client kubernetes.Interface
	Range  netip.Prefix
	Nodes  []string // names, in the order that Route counts in
	// Route leads an address to some nodes; to none it is unreachable from then on.
	Route func(ip netip.Addr, nodes []int) error
	// Publish hears of all Services with addresses, by name, whenever that changes.
	Publish func([]Balancer)
}

// retry is how soon the controller tries again what failed.
const retry = 500 * time.Millisecond

type controller struct {
	Config
	services  corelisters.ServiceLister
	endpoints discoverylisters.EndpointSliceLister
	pool      pool
	routed    map[netip.Addr][]int
	published []Balancer
	warned    map[key]string
}

// Run works until ctx ends. The API server may come and go.
func Run(ctx context.Context, cfg Config) error {
	factory := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(trim))
	c := &controller{
		Config:    cfg,
		services:  factory.Core().V1().Services().Lister(),
		endpoints: factory.Discovery().V1().EndpointSlices().Lister(),
		pool:      pool{prefix: cfg.Range, last: cfg.Range.Addr()},
		routed:    map[netip.Addr][]int{}, warned: map[key]string{},
	}
	changed := make(chan struct{}, 1)
	wake := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for _, i := range []cache.SharedIndexInformer{factory.Core().V1().Services().Informer(), factory.Discovery().V1().EndpointSlices().Informer()} {
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { wake() }, UpdateFunc: func(any, any) { wake() }, DeleteFunc: func(any) { wake() },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for _, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return ctx.Err()
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		}
		if err := c.sync(ctx); err != nil && ctx.Err() == nil {
			if !apierrors.IsConflict(err) {
				slog.Warn("load balancers", "err", err)
			}
			timer.Reset(retry)
		}
	}
}

// trim keeps of an object what the controller reads.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
	}
	return obj, nil
}

// sync brings routes, statuses and what is published in line with the Services. The first error is returned; the rest is
// done all the same.
func (c *controller) sync(ctx context.Context) (first error) {
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	all, err := c.services.List(labels.Everything())
	if err != nil {
		return err
	}
	sortServices(all)
	keep := map[key]bool{}
	for _, s := range all {
		if k := (key{s.Namespace, s.Name}); ours(s) {
			keep[k] = true
		}
	}
	c.pool.retain(keep)
	maps.DeleteFunc(c.warned, func(k key, _ string) bool { return !keep[k] })
	c.adopt(all)
	var now []Balancer
	for _, s := range all {
		k := key{s.Namespace, s.Name}
		if !keep[k] {
			note(c.release(ctx, s))
			continue
		}
		ip, err := c.pool.address(k, s.Spec.LoadBalancerIP)
		if err != nil {
			note(c.warn(ctx, s, err))
			continue
		}
		slicesOf, err := c.slicesOf(s)
		if err != nil {
			return err
		}
		now = append(now, describe(s, ip, targets(s, slicesOf, c.Nodes)))
	}
	note(c.route(now))
	for _, b := range now {
		s, err := c.services.Services(b.Namespace).Get(b.Service)
		if err != nil {
			return err
		}
		note(c.status(ctx, s, b.IP.String()))
	}
	c.publish(now)
	return first
}

// adopt remembers addresses that Services have from before.
func (c *controller) adopt(all []*corev1.Service) {
	for _, s := range all {
		for _, in := range s.Status.LoadBalancer.Ingress {
			k := key{s.Namespace, s.Name}
			if _, has := c.pool.given[k]; ours(s) && !has && s.Spec.LoadBalancerIP == "" {
				_, _ = c.pool.address(k, in.IP) // a stranger's stays a wish
			}
		}
	}
}

func (c *controller) slicesOf(s *corev1.Service) ([]*discoveryv1.EndpointSlice, error) {
	return c.endpoints.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
}

// route leads the addresses to their nodes, before anybody reads them in a status, and takes back those that are free.
func (c *controller) route(now []Balancer) (first error) {
	want := map[netip.Addr][]int{}
	for _, b := range now {
		want[b.IP] = b.Nodes
	}
	for ip := range c.routed {
		if _, still := want[ip]; still {
			continue
		}
		if err := c.Route(ip, nil); err != nil && first == nil {
			first = err
			continue
		}
		delete(c.routed, ip)
	}
	for ip, nodes := range want {
		if have, ok := c.routed[ip]; ok && slices.Equal(have, nodes) {
			continue
		}
		if err := c.Route(ip, nodes); err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		c.routed[ip] = nodes
	}
	return first
}

// status writes the address of a Service; "" removes it.
func (c *controller) status(ctx context.Context, s *corev1.Service, ip string) error {
	have := s.Status.LoadBalancer.Ingress
	if ip == "" && len(have) == 0 || len(have) == 1 && have[0].IP == ip {
		return nil
	}
	ingress := ""
	if ip != "" {
		ingress = fmt.Sprintf(`{"ip":%q,"ipMode":"VIP"}`, ip)
	}
	// The version makes it a conflict if the Service has changed since.
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q},"status":{"loadBalancer":{"ingress":[%s]}}}`, s.ResourceVersion, ingress)
	_, err := c.Client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// release takes our address out of the status of a Service that is no longer of the type.
func (c *controller) release(ctx context.Context, s *corev1.Service) error {
	for _, in := range s.Status.LoadBalancer.Ingress {
		ip, err := netip.ParseAddr(in.IP)
		if err == nil && c.Range.Contains(ip) && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			return c.status(ctx, s, "")
		}
	}
	return nil
}

// warn tells in an event why a Service has no address, once.
func (c *controller) warn(ctx context.Context, s *corev1.Service, why error) error {
	k := key{s.Namespace, s.Name}
	if c.warned[k] == why.Error() {
		return nil
	}
	now := metav1.Now()
	_, err := c.Client.CoreV1().Events(s.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: s.Name + ".", Namespace: s.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID},
		Type:           corev1.EventTypeWarning, Reason: "NoLoadBalancerAddress", Message: why.Error(),
		Source: corev1.EventSource{Component: "meshproof-load-balancer"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err == nil {
		c.warned[k] = why.Error()
	}
	return err
}

func (c *controller) publish(now []Balancer) {
	slices.SortFunc(now, compare)
	if c.published != nil && slices.EqualFunc(c.published, now, equal) {
		return
	}
	c.published = append([]Balancer{}, now...)
	c.Publish(slices.Clone(now))
}
