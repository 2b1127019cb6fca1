package install

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
)

const (
	tagLabel  = "istio.io/tag"
	tagPrefix = "istio-revision-tag-"
)

// Tag is another name for a revision, for namespaces to ask for: label istio.io/rev=TAG.
type Tag struct {
	Name       string   `json:"tag"`
	Revision   string   `json:"revision"`
	Namespaces []string `json:"namespaces"` // that ask for it
}

// SetTag makes the tag lead to o's revision. The revision must be installed, and the tag be no revision's name; one that leads
// elsewhere is moved only if overwrite is set. The tag "default" is for what names no revision: istio-injection=enabled.
func SetTag(ctx context.Context, cfg *rest.Config, opts Options, tag string, overwrite bool) error {
	o := opts.Default()
	if !dnsLabel.MatchString(tag) {
		return fmt.Errorf("tag %q is not a DNS label: use lower-case letters, digits and dashes", tag)
	}
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	if _, err := c.dyn.Resource(webhookResource).Get(ctx, webhookName(o), metav1.GetOptions{}); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("revision %q is not installed; there are %s", o.Revision, c.revisionNames(ctx, o))
		}
		return fmt.Errorf("revision %s: %w", o.Revision, err)
	}
	same := o
	same.Revision = tag
	switch _, err := c.dyn.Resource(webhookResource).Get(ctx, webhookName(same), metav1.GetOptions{}); {
	case err == nil:
		return fmt.Errorf("%q is the name of an installed revision; choose another name for the tag", tag)
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("tag %s: %w", tag, err)
	}
	tags, err := c.tags(ctx)
	if err != nil {
		return err
	}
	for _, t := range tags {
		if t.Name == tag && t.Revision != o.Revision && !overwrite {
			return fmt.Errorf("tag %s leads to revision %s; use --overwrite to move it", tag, t.Revision)
		}
	}
	m := meta(o, tagPrefix+tag, "Pilot", false, "app", "sidecar-injector", tagLabel, tag)
	if err := c.applyTyped(ctx, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: m, Webhooks: injectorHooks(o, tag)}); err != nil {
		return err
	}
	return c.taggedBy(ctx, o, m.Name)
}

// tellAfter is how long a wait may take that nobody is told of.
const tellAfter = 2 * time.Second

// taggedBy waits until the control plane of o's revision has made the webhook of a tag trusted, and says so if that takes long.
func (c *client) taggedBy(ctx context.Context, o Options, webhook string) error {
	const what = "trusted (caBundle set by istiod)"
	brief, cancel := context.WithTimeout(ctx, tellAfter)
	defer cancel()
	if err := c.until(brief, webhookResource, "", webhook, what, trusted); err == nil || brief.Err() == nil || ctx.Err() != nil {
		return err
	}
	o.Remark("tag", fmt.Sprintf("waiting for %s in %s, the control plane of revision %s, to make it trusted", istiod(o), o.Namespace, o.Revision))
	return c.until(ctx, webhookResource, "", webhook, what, trusted)
}

// Tags lists the tags there are, by name.
func Tags(ctx context.Context, cfg *rest.Config) ([]Tag, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	return c.tags(ctx)
}

func (c *client) tags(ctx context.Context) ([]Tag, error) {
	list, err := c.dyn.Resource(webhookResource).List(ctx, metav1.ListOptions{LabelSelector: tagLabel})
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	spaces, err := c.core.Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	out := []Tag{}
	for _, w := range list.Items {
		t := Tag{Name: w.GetLabels()[tagLabel], Revision: w.GetLabels()[revLabel], Namespaces: []string{}}
		for _, ns := range spaces.Items {
			if ns.Labels[revLabel] == t.Name || t.Name == "default" && ns.Labels["istio-injection"] == "enabled" {
				t.Namespaces = append(t.Namespaces, ns.Name)
			}
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Tag) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// RemoveTag removes a tag. While namespaces ask for it, it refuses unless force is set.
func RemoveTag(ctx context.Context, cfg *rest.Config, tag string, force bool) error {
	c, err := newClient(cfg)
	if err != nil {
		return err
	}
	tags, err := c.tags(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(tags, func(t Tag) bool { return t.Name == tag })
	if i < 0 {
		var names []string
		for _, t := range tags {
			names = append(names, t.Name)
		}
		if len(names) == 0 {
			return fmt.Errorf("there is no tag %q, nor any other", tag)
		}
		return fmt.Errorf("there is no tag %q; there are %s", tag, strings.Join(names, ", "))
	}
	if used := tags[i].Namespaces; len(used) > 0 && !force {
		return fmt.Errorf("tag %s is asked for by namespaces %s, whose new pods would get no sidecar; label them otherwise, or use --force", tag, strings.Join(used, ", "))
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(removable[0])
	u.SetName(tagPrefix + tag)
	if err := c.delete(ctx, u); err != nil {
		return err
	}
	return c.untilGone(ctx, u)
}

// revisionNames lists the installed revisions for a message.
func (c *client) revisionNames(ctx context.Context, o Options) string {
	list, err := c.dyn.Resource(deploymentResource).Namespace(o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil || len(list.Items) == 0 {
		return "none"
	}
	var names []string
	for _, d := range list.Items {
		names = append(names, d.GetLabels()[revLabel])
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }
