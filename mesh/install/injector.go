package install

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// injector is the revision's webhook configuration. The caBundle is meshd's to set; until then calls fail, and with them the
// creation of pods that want a sidecar.
func injector(o Options) *admissionv1.MutatingWebhookConfiguration {
	return &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: meta(o, webhookName(o), "Pilot", false, "app", "sidecar-injector"), Webhooks: injectorHooks(o, o.Revision),
	}
}

// injectorHooks lead to o's control plane: for pods and namespaces that ask for the word, a revision or a tag, and for those
// that ask for injection without naming one, if the word is default.
func injectorHooks(o Options, word string) []admissionv1.MutatingWebhook {
	type req = metav1.LabelSelectorRequirement
	in := func(key string, values ...string) req {
		return req{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
	}
	notIn := func(key string, values ...string) req {
		return req{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values}
	}
	absent := func(key string) req { return req{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist} }
	hook := func(name string, namespace, object []req) admissionv1.MutatingWebhook {
		return admissionv1.MutatingWebhook{
			Name: name + ".sidecar-injector.istio.io",
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{
				Name: istiod(o), Namespace: o.Namespace, Path: new("/inject"), Port: new(int32(443)),
			}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: new(admissionv1.AllScopes)},
			}},
			FailurePolicy:           new(admissionv1.Fail),
			MatchPolicy:             new(admissionv1.Equivalent),
			ReinvocationPolicy:      new(admissionv1.NeverReinvocationPolicy),
			SideEffects:             new(admissionv1.SideEffectClassNone),
			TimeoutSeconds:          new(int32(10)),
			AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: namespace},
			ObjectSelector:          &metav1.LabelSelector{MatchExpressions: object},
		}
	}
	const enable, inject = "istio-injection", "sidecar.istio.io/inject"
	hooks := []admissionv1.MutatingWebhook{
		hook("rev.namespace", []req{in(revLabel, word), absent(enable)}, []req{notIn(inject, "false")}),
		hook("rev.object", []req{absent(revLabel), absent(enable)}, []req{notIn(inject, "false"), in(revLabel, word)}),
	}
	if word == "default" {
		hooks = append(hooks,
			hook("namespace", []req{in(enable, "enabled")}, []req{notIn(inject, "false")}),
			hook("object", []req{absent(enable), absent(revLabel)}, []req{in(inject, "true"), absent(revLabel)}))
	}
	return hooks
}
