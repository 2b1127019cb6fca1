package inject

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxReview bounds a request: the API server's own limit for objects is 3 MiB.
const maxReview = 8 << 20

// Handler serves the mutating webhook.
func Handler(cfg Config, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
		if err != nil {
			http.Error(w, "read admission review: "+err.Error(), http.StatusBadRequest)
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil {
			http.Error(w, "decode admission review: "+err.Error(), http.StatusBadRequest)
			return
		}
		if review.Request == nil {
			http.Error(w, "admission review without a request", http.StatusBadRequest)
			return
		}
		cfg, err := cfg.at(r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = admit(review.Request, cfg, log)
		review.Response.UID = review.Request.UID
		review.Request = nil
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(review); err != nil {
			log.Warn("answer admission review", "error", err)
		}
	})
}

// at returns what holds for the pods of another cluster, whose injector configuration names the cluster in the path, as Istio has
// it: /inject/cluster/NAME/net/NETWORK.
func (c Config) at(path string) (Config, error) {
	p := strings.Split(strings.Trim(strings.TrimPrefix(path, "/inject"), "/"), "/")
	if len(p) == 1 && p[0] == "" {
		return c, nil
	}
	for i := 0; i+1 < len(p); i += 2 {
		value := strings.ReplaceAll(p[i+1], "--slash--", "/")
		switch p[i] {
		case "cluster":
			c.ClusterID, c.Network = value, ""
		case "net":
			c.Network = value
		default:
			return c, fmt.Errorf("path %s: %q is not known; give /inject/cluster/NAME/net/NETWORK", path, p[i])
		}
	}
	if len(p)%2 != 0 {
		return c, fmt.Errorf("path %s: %q has no value", path, p[len(p)-1])
	}
	return c, nil
}

func admit(req *admissionv1.AdmissionRequest, cfg Config, log *slog.Logger) *admissionv1.AdmissionResponse {
	refuse := func(err error) *admissionv1.AdmissionResponse {
		log.Warn("pod refused", "namespace", req.Namespace, "name", req.Name, "error", err)
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{
			Status: metav1.StatusFailure, Message: "sidecar injection: " + err.Error(), Code: http.StatusUnprocessableEntity,
		}}
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return refuse(fmt.Errorf("decode pod: %w", err))
	}
	res, err := Patch(&pod, req.Namespace, cfg)
	if err != nil {
		return refuse(err)
	}
	out := &admissionv1.AdmissionResponse{Allowed: true, Warnings: res.Warnings}
	if res.Patch == nil {
		log.Info("pod not injected", "namespace", req.Namespace, "pod", pod.GenerateName+pod.Name, "reason", res.Reason)
		return out
	}
	typ := admissionv1.PatchTypeJSONPatch
	out.Patch, out.PatchType = res.Patch, &typ
	return out
}
