package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshproof/meshproof/mesh/analyze"
	"github.com/meshproof/meshproof/mesh/objects"
	"github.com/meshproof/meshproof/scenarios/workload"
)

// finding is what analyze prints with -o json and yaml: a problem of a file, with its place, or of an object of the cluster.
type finding struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Object string `json:"object,omitempty"` // Kind namespace/name
	objects.Problem
}

func (f finding) String() string {
	if f.File == "" {
		return f.Object + ": " + f.Problem.String()
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Problem)
}

func (a *app) meshAnalyze(f *meshFlags) *cobra.Command {
	var namespace string
	var useKube bool
	c := a.outputFlag(&cobra.Command{
		Use:   "analyze [FILE...]",
		Short: "Say what is wrong with objects, of files before they are applied or of the mesh",
		Long: `Analyze reads Istio's objects of files and says what is wrong with them, with line, column and what was
probably meant: unknown and unsupported fields, values that do not fit, and hosts, subsets and gateways that
neither the files nor the mesh have. Without files it does so for the objects of the mesh. Nothing is changed.
Exit code 2 if an object is in error, 0 if there are only warnings.`,
		Example: "  meshproof mesh analyze rules.yaml -n bookinfo\n  meshproof mesh analyze --use-kube=false services.yaml rules.yaml\n  meshproof mesh analyze",
		RunE: func(cmd *cobra.Command, args []string) error {
			var there []any
			if useKube {
				list, err := a.clients(cmd.Context(), f)
				if err != nil {
					return err
				}
				if there, err = inMesh(cmd.Context(), list); err != nil {
					return failed(err)
				}
			} else if len(args) == 0 {
				return usage("--use-kube=false: name the files to look at")
			}
			found := []finding{}
			in := analyze.Input{There: there, Namespace: namespace, Now: time.Now()}
			for _, name := range args {
				data, err := a.readFile(name)
				if err != nil {
					return usage("%w", err)
				}
				in.Files = append(in.Files, analyze.File{Name: name, Data: data})
			}
			for _, d := range analyze.Files(in) {
				found = append(found, finding{File: d.File, Line: d.Line, Column: d.Column, Problem: d.Problem})
			}
			if len(args) == 0 {
				for _, p := range analyze.Mesh(there) {
					found = append(found, finding{Object: fmt.Sprintf("%s %s/%s", p.Object.Kind, p.Object.Namespace, p.Object.Name), Problem: p.Problem})
				}
			}
			return a.printFindings(found)
		},
	})
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of objects of files that name none")
	c.Flags().BoolVar(&useKube, "use-kube", true, "judge files by what the mesh has, too")
	return c
}

func (a *app) printFindings(found []finding) error {
	wrong := 0
	for _, x := range found {
		if x.Severity == objects.Error {
			wrong++
		}
	}
	err := a.print(found, func(w io.Writer) error {
		m := a.marks()
		for _, x := range found {
			mark := m.warn()
			if x.Severity == objects.Error {
				mark = m.bad()
			}
			if _, err := fmt.Fprintf(w, " %s %s\n", mark, x); err != nil {
				return err
			}
		}
		if len(found) == 0 {
			_, err := fmt.Fprintf(w, " %s nothing is wrong\n", m.ok())
			return err
		}
		return nil
	})
	if err == nil && wrong > 0 {
		return usage("%d of %d problems are errors: those objects would not be in force", wrong, len(found))
	}
	return err
}

// inMesh lists what objects refer to: the Services and Pods of every cluster, and the traffic objects of the first, which is the control plane's.
func inMesh(ctx context.Context, list []*workload.Client) ([]any, error) {
	var out []any
	for i := len(list) - 1; i >= 0; i-- { // of services of one name, the first cluster's counts
		services, err := list[i].Typed.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("services: %w", err)
		}
		for j := range services.Items {
			out = append(out, &services.Items[j])
		}
	}
	for _, c := range list {
		pods, err := c.Typed.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("pods: %w", err)
		}
		for j := range pods.Items {
			out = append(out, &pods.Items[j])
		}
	}
	istio, err := istioclient.NewForConfig(list[0].Config())
	if err != nil {
		return nil, err
	}
	v1 := istio.NetworkingV1()
	// Where there are no definitions, there are no objects.
	vs, err := v1.VirtualServices(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("virtual services: %w", err)
	}
	for _, o := range vs.Items {
		out = append(out, o)
	}
	dr, err := v1.DestinationRules(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("destination rules: %w", err)
	}
	for _, o := range dr.Items {
		out = append(out, o)
	}
	gw, err := v1.Gateways(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("gateways: %w", err)
	}
	for _, o := range gw.Items {
		out = append(out, o)
	}
	return out, nil
}
