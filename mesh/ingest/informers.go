package ingest

import (
	"context"
	"fmt"

	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// factories are the informers of one cluster; istio is nil for a remote one.
type factories struct {
	kube, root informers.SharedInformerFactory
	istio      istioinformers.SharedInformerFactory
}

func kubeInformers(kube kubernetes.Interface) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTransform(strip))
}

// rootInformers see the root namespace only, whose labels name the cluster's network.
func rootInformers(kube kubernetes.Interface, namespace string) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", namespace).String()
	}))
}

// start begins to watch, with add hearing every event, and waits until everything has been listed once. It returns false when
// ctx ended before.
func (f *factories) start(ctx context.Context, cluster string, add func(event)) (bool, error) {
	watched := map[string]cache.SharedIndexInformer{
		"services":       f.kube.Core().V1().Services().Informer(),
		"endpointslices": f.kube.Discovery().V1().EndpointSlices().Informer(),
		"pods":           f.kube.Core().V1().Pods().Informer(),
		"nodes":          f.kube.Core().V1().Nodes().Informer(),
		"namespaces":     f.root.Core().V1().Namespaces().Informer(),
	}
	if f.istio != nil {
		n := f.istio.Networking().V1()
		watched["virtualservices"] = n.VirtualServices().Informer()
		watched["destinationrules"] = n.DestinationRules().Informer()
		watched["gateways"] = n.Gateways().Informer()
	}
	var synced []cache.InformerSynced
	for name, inf := range watched {
		reg, err := inf.AddEventHandler(handler(cluster, add))
		if err != nil {
			return false, fmt.Errorf("watch %s: %w", name, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	f.kube.Start(ctx.Done())
	f.root.Start(ctx.Done())
	if f.istio != nil {
		f.istio.Start(ctx.Done())
	}
	return cache.WaitForCacheSync(ctx.Done(), synced...), nil
}

// stop ends the watching and waits until it has ended.
func (f *factories) stop(cancel context.CancelFunc) {
	cancel()
	f.kube.Shutdown()
	f.root.Shutdown()
	if f.istio != nil {
		f.istio.Shutdown()
	}
}

func handler(cluster string, add func(event)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { add(event{cluster: cluster, obj: obj}) },
		UpdateFunc: func(_, obj any) { add(event{cluster: cluster, obj: obj}) },
		DeleteFunc: func(obj any) {
			if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = d.Obj
			}
			add(event{cluster: cluster, obj: obj, deleted: true})
		},
	}
}
