// Package kubernetes checks the manifests as far as that can be done without a cluster: that they
// build, that the API knows every field, and that they agree with each other and with the
// configuration in them.
package kubernetes

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"

	"vmimport/internal/config"
)

// object is a manifest, as far as it is looked at.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string // of a ConfigMap
	Spec     struct {
		Replicas    *int
		Selector    json.RawMessage
		PodSelector *labels
		Template    struct {
			Spec     pod
			Metadata struct{ Labels map[string]string }
		}
		Ports          []struct{ TargetPort string }
		MinAvailable   any
		MaxUnavailable any
		ScaleTargetRef struct{ Kind, Name string }
		Metrics        []struct {
			External struct {
				Metric struct{ Name string }
				Target struct{ AverageValue string }
			}
		}
		Rules []struct {
			HTTP struct {
				Paths []struct {
					Backend struct {
						Service struct {
							Name string
							Port struct{ Name string }
						}
					}
				}
			}
		}
	}
}

type labels struct{ MatchLabels map[string]string }

type pod struct {
	AutomountServiceAccountToken  *bool
	TerminationGracePeriodSeconds int
	SecurityContext               struct{ RunAsNonRoot bool }
	Containers                    []container
	Volumes                       []struct {
		Name      string
		ConfigMap *struct{ Name string }
		Secret    *struct{ SecretName string }
	}
}

type container struct {
	Name, Image     string
	Args            []string
	SecurityContext struct {
		ReadOnlyRootFilesystem   bool
		AllowPrivilegeEscalation *bool
		Capabilities             struct{ Drop []string }
	}
	Env []struct {
		Name      string
		ValueFrom struct{ SecretKeyRef struct{ Name, Key string } }
	}
	Ports []struct {
		Name          string
		ContainerPort int
	}
	LivenessProbe, ReadinessProbe *struct {
		HTTPGet struct{ Path, Port string }
	}
	Resources    struct{ Limits map[string]string }
	VolumeMounts []struct{ Name, MountPath string }
}

// build returns what the example makes, by kind and name.
var build = sync.OnceValues(func() (map[string]*object, error) {
	// What another process reads the go command does not know of, and would take an earlier
	// result for today's.
	if err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = os.ReadFile(name)
		}
		return err
	}); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "run", "-C", "../../tools/kubernetes", ".", "../../etc/kubernetes/example")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list []*object
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	objects := map[string]*object{}
	for _, o := range list {
		objects[o.Kind+"/"+o.Metadata.Name] = o
	}
	return objects, nil
})

func built(t *testing.T) map[string]*object {
	t.Helper()
	objects, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// workloads are the objects that make pods.
func workloads(objects map[string]*object) map[string]*object {
	pods := maps.Clone(objects)
	maps.DeleteFunc(pods, func(_ string, o *object) bool { return len(o.Spec.Template.Spec.Containers) == 0 })
	return pods
}

func configuration(t *testing.T, objects map[string]*object) *config.Config {
	t.Helper()
	for _, o := range objects {
		if text, ok := o.Data["vmimport.yaml"]; ok {
			path := t.TempDir() + "/vmimport.yaml"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Load(path, func(name string) string {
				return map[string]string{"VMIMPORT_OPERATOR_TOKEN": "t", "VMIMPORT_REDIS_URL": "redis://:p@redis:6379/0"}[name]
			})
			if err == nil {
				err = cfg.Validate()
			}
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
	}
	t.Fatal("there is no configuration")
	return nil
}

func TestPods(t *testing.T) {
	t.Parallel()
	objects := built(t)
	pods := workloads(objects)
	if len(pods) != 3 {
		t.Fatalf("pods of %v", slices.Collect(maps.Keys(pods)))
	}
	for name, o := range pods {
		p := o.Spec.Template.Spec
		if o.Metadata.Namespace != "vmimport" || !p.SecurityContext.RunAsNonRoot || p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
			t.Errorf("%s has more rights than it needs", name)
		}
		volumes := map[string]bool{}
		for _, v := range p.Volumes {
			volumes[v.Name] = true
			if c := v.ConfigMap; c != nil && objects["ConfigMap/"+c.Name] == nil {
				t.Errorf("%s: no configuration %s", name, c.Name)
			}
			if s := v.Secret; s != nil && s.SecretName != "vmimport" {
				t.Errorf("%s: a secret %s that nobody is told to make", name, s.SecretName)
			}
		}
		for _, c := range p.Containers {
			if sc := c.SecurityContext; !sc.ReadOnlyRootFilesystem || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || !slices.Contains(sc.Capabilities.Drop, "ALL") {
				t.Errorf("%s: container %s is not confined", name, c.Name)
			}
			if _, tag, _ := strings.Cut(c.Image, ":"); tag == "" || tag == "latest" {
				t.Errorf("%s: image %s is not pinned", name, c.Image)
			}
			if c.LivenessProbe == nil || c.ReadinessProbe == nil || c.Resources.Limits["memory"] == "" {
				t.Errorf("%s: container %s has no probes, or no limit", name, c.Name)
			}
			for _, m := range c.VolumeMounts {
				if !volumes[m.Name] && o.Kind != "StatefulSet" {
					t.Errorf("%s: no volume %s", name, m.Name)
				}
			}
		}
	}
}

// TestDrain looks whether a worker has the time to give its imports back, and the API to answer.
func TestDrain(t *testing.T) {
	t.Parallel()
	objects := built(t)
	cfg := configuration(t, objects)
	worker := objects["Deployment/worker"].Spec.Template.Spec
	if grace := float64(worker.TerminationGracePeriodSeconds); grace <= cfg.Worker.DrainTimeout.Seconds()+10 {
		t.Errorf("a worker is killed after %v s, and may need %s", grace, cfg.Worker.DrainTimeout)
	}
	for program, port := range map[string]string{"api": cfg.Listen, "worker": cfg.Worker.Listen} {
		o := objects["Deployment/"+program]
		c := o.Spec.Template.Spec.Containers[0]
		if ":"+strconv.Itoa(c.Ports[0].ContainerPort) != port {
			t.Errorf("%s listens on %s, and has port %d", program, port, c.Ports[0].ContainerPort)
		}
		if c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Port != c.Ports[0].Name {
			t.Errorf("%s is asked for %+v", program, c.ReadinessProbe)
		}
		budget := objects["PodDisruptionBudget/"+program]
		if budget == nil || budget.Spec.MinAvailable == nil && budget.Spec.MaxUnavailable == nil {
			t.Fatalf("%s may be disrupted as a whole", program)
		}
		var selector labels
		if err := json.Unmarshal(budget.Spec.Selector, &selector); err != nil || !selects(selector.MatchLabels, o) {
			t.Errorf("the budget of %s is for others: %v, %v", program, selector, err)
		}
	}
}

func selects(selector map[string]string, o *object) bool {
	have := o.Spec.Template.Metadata.Labels
	for k, v := range selector {
		if have[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// TestReferences looks whether what names another object finds it.
func TestReferences(t *testing.T) {
	t.Parallel()
	objects := built(t)
	pods := workloads(objects)
	found := func(selector map[string]string) bool {
		return slices.ContainsFunc(slices.Collect(maps.Values(pods)), func(o *object) bool { return selects(selector, o) })
	}
	for name, o := range objects {
		switch o.Kind {
		case "Service":
			var selector map[string]string
			if err := json.Unmarshal(o.Spec.Selector, &selector); err != nil || !found(selector) {
				t.Errorf("%s is for nobody: %v", name, err)
			}
		case "NetworkPolicy":
			if !found(o.Spec.PodSelector.MatchLabels) {
				t.Errorf("%s is for nobody", name)
			}
		case "Ingress":
			for _, r := range o.Spec.Rules {
				for _, p := range r.HTTP.Paths {
					if objects["Service/"+p.Backend.Service.Name] == nil {
						t.Errorf("%s goes to %+v", name, p.Backend)
					}
				}
			}
		}
	}
}

func TestWorkersScaleWithTheQueue(t *testing.T) {
	t.Parallel()
	objects := built(t)
	cfg := configuration(t, objects)
	scaler := objects["HorizontalPodAutoscaler/worker"].Spec
	worker := objects["Deployment/worker"]
	if scaler.ScaleTargetRef.Kind != "Deployment" || scaler.ScaleTargetRef.Name != "worker" || worker.Spec.Replicas != nil {
		t.Errorf("the autoscaler is for %+v, which has a number of its own: %v", scaler.ScaleTargetRef, worker.Spec.Replicas)
	}
	metric := scaler.Metrics[0].External
	if metric.Target.AverageValue != strconv.Itoa(cfg.Worker.Concurrency) {
		t.Errorf("a worker for each %s tasks, of which it runs %d", metric.Target.AverageValue, cfg.Worker.Concurrency)
	}
	text, err := os.ReadFile("autoscaling/adapter.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var adapter struct {
		Rules struct {
			External []struct{ Name struct{ As string } }
		}
	}
	if err := yaml.Unmarshal(text, &adapter); err != nil || adapter.Rules.External[0].Name.As != metric.Metric.Name {
		t.Errorf("the adapter has %+v, the autoscaler asks for %s: %v", adapter, metric.Metric.Name, err)
	}
	// As docs/operations/deploy.md says what a worker needs.
	need := int64(cfg.Worker.Memory) + 50<<20 + int64(cfg.Worker.Concurrency)*40<<20
	var limit config.ByteSize
	text = []byte(worker.Spec.Template.Spec.Containers[0].Resources.Limits["memory"] + "B")
	if err := limit.UnmarshalText(text); err != nil || int64(limit) < need {
		t.Errorf("a worker may need %d bytes, and has %s: %v", need, limit, err)
	}
}

func TestRedisKeepsWhatItAccepts(t *testing.T) {
	t.Parallel()
	args := built(t)["StatefulSet/redis"].Spec.Template.Spec.Containers[0].Args
	for option, want := range map[string]string{"--appendonly": "yes", "--appendfsync": "always", "--maxmemory-policy": "noeviction"} {
		if i := slices.Index(args, option); i < 0 || args[i+1] != want {
			t.Errorf("Redis runs with %v", args)
		}
	}
}
