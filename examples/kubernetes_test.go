package examples

import (
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// object is as much of a Kubernetes object as is checked here.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
	Data map[string]string `yaml:"data"`
	Spec yaml.Node         `yaml:"spec"`
}

type podSpec struct {
	EnableServiceLinks *bool  `yaml:"enableServiceLinks"`
	Automount          *bool  `yaml:"automountServiceAccountToken"`
	DNSPolicy          string `yaml:"dnsPolicy"`
	HostNetwork        bool   `yaml:"hostNetwork"`
	SecurityContext    struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
		FSGroup      int  `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	HostAliases []struct {
		IP        string   `yaml:"ip"`
		Hostnames []string `yaml:"hostnames"`
	} `yaml:"hostAliases"`
	InitContainers []container `yaml:"initContainers"`
	Containers     []container `yaml:"containers"`
	Volumes        []struct {
		Name      string         `yaml:"name"`
		ConfigMap map[string]any `yaml:"configMap"`
		PVC       struct {
			Claim string `yaml:"claimName"`
		} `yaml:"persistentVolumeClaim"`
		HostPath any `yaml:"hostPath"`
	} `yaml:"volumes"`
}

type container struct {
	Name string   `yaml:"name"`
	Args []string `yaml:"args"`
	Env  []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	ReadinessProbe  any `yaml:"readinessProbe"`
	LivenessProbe   any `yaml:"livenessProbe"`
	SecurityContext struct {
		Escalation   *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRoot bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	Mounts    []mount `yaml:"volumeMounts"`
	Resources struct {
		Limits struct {
			Memory string `yaml:"memory"`
		} `yaml:"limits"`
	} `yaml:"resources"`
}

type mount struct {
	Name     string `yaml:"name"`
	Path     string `yaml:"mountPath"`
	SubPath  string `yaml:"subPath"`
	ReadOnly bool   `yaml:"readOnly"`
}

func readObjects(t *testing.T) []object {
	t.Helper()
	var all []object
	d := yaml.NewDecoder(bytes.NewReader(read(t, "kubernetes/supervise.yaml")))
	for {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("kubernetes/supervise.yaml, object %d: %v", len(all)+1, err)
		}
		all = append(all, o)
	}
}

// pods returns the pod specs by the app label, and the objects that are no pods.
func pods(t *testing.T) (map[string]podSpec, []object) {
	t.Helper()
	specs := map[string]podSpec{}
	var rest []object
	for _, o := range readObjects(t) {
		switch o.Kind {
		case "Pod":
			var s podSpec
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatalf("%s: %v", o.Metadata.Name, err)
			}
			specs[o.Metadata.Labels["app"]] = s
		case "Deployment":
			var s struct {
				Template struct {
					Metadata struct {
						Labels map[string]string `yaml:"labels"`
					} `yaml:"metadata"`
					Spec podSpec `yaml:"spec"`
				} `yaml:"template"`
			}
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatalf("%s: %v", o.Metadata.Name, err)
			}
			specs[s.Template.Metadata.Labels["app"]] = s.Template.Spec
		default:
			rest = append(rest, o)
		}
	}
	return specs, rest
}

func TestKubernetesPods(t *testing.T) {
	specs, rest := pods(t)
	for app, s := range specs {
		if s.EnableServiceLinks == nil || *s.EnableServiceLinks {
			t.Errorf("%s: service links would set SUPERVISE_PORT", app)
		}
		if s.Automount == nil || *s.Automount {
			t.Errorf("%s: has the service account's token", app)
		}
		if s.HostNetwork || !s.SecurityContext.RunAsNonRoot || s.SecurityContext.RunAsUser == 0 {
			t.Errorf("%s: host network %v, security context %+v; want a user and a network of its own", app, s.HostNetwork, s.SecurityContext)
		}
		for _, v := range s.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s: volume %s is a path of the node", app, v.Name)
			}
			if v.PVC.Claim != "" && !slices.ContainsFunc(rest, func(o object) bool { return o.Kind == "PersistentVolumeClaim" && o.Metadata.Name == v.PVC.Claim }) {
				t.Errorf("%s: no claim %s", app, v.PVC.Claim)
			}
			if n, ok := v.ConfigMap["name"]; ok && !slices.ContainsFunc(rest, func(o object) bool { return o.Kind == "ConfigMap" && o.Metadata.Name == n }) {
				t.Errorf("%s: no ConfigMap %s", app, n)
			}
		}
		for _, c := range slices.Concat(s.InitContainers, s.Containers) {
			sc := c.SecurityContext
			if sc.Escalation == nil || *sc.Escalation || !slices.Equal(sc.Capabilities.Drop, []string{"ALL"}) || app != "bottle" && !sc.ReadOnlyRoot {
				t.Errorf("%s/%s: security context %+v", app, c.Name, sc)
			}
			for _, m := range c.Mounts {
				if m.SubPath != "" || path.Ext(m.Path) != "" {
					t.Errorf("%s/%s: %s is a single file or a subPath", app, c.Name, m.Path)
				}
				if m.Name == "mailbox" && c.Name != "supervise" && c.Name != "desk" {
					t.Errorf("%s/%s mounts the mailbox", app, c.Name)
				}
				if m.Name == "desk" && c.Name != "desk" {
					t.Errorf("%s/%s mounts the desk's records", app, c.Name)
				}
			}
		}
	}
	trusted := specs["supervise"]
	if trusted.SecurityContext.FSGroup == 0 {
		t.Error("no fsGroup: the volumes would belong to root")
	}
	i := slices.IndexFunc(trusted.Containers, func(c container) bool { return c.Name == "supervise" })
	if i < 0 {
		t.Fatal("no sidecar")
	}
	side := trusted.Containers[i]
	if side.LivenessProbe == nil || side.ReadinessProbe == nil {
		t.Error("the sidecar lacks a probe")
	}
	if !slices.ContainsFunc(side.Mounts, func(m mount) bool { return m.Path == mailbox && !m.ReadOnly }) {
		t.Errorf("the sidecar's mounts %v lack %s", side.Mounts, mailbox)
	}
}

// TestKubernetesNetwork: the bottle reaches two ports of the trusted pod and nothing else, and finds them without DNS.
func TestKubernetesNetwork(t *testing.T) {
	specs, rest := pods(t)
	if specs["bottle"].DNSPolicy != "None" {
		t.Errorf("the bottle's dnsPolicy is %q, want None", specs["bottle"].DNSPolicy)
	}
	ips := map[string]string{}
	policies := map[string]map[string]any{}
	for _, o := range rest {
		switch o.Kind {
		case "Service":
			var s struct {
				ClusterIP string `yaml:"clusterIP"`
			}
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatal(err)
			}
			ips[o.Metadata.Name] = s.ClusterIP
		case "NetworkPolicy":
			var s map[string]any
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatal(err)
			}
			policies[o.Metadata.Name] = s
		}
	}
	aliases := map[string]string{}
	for _, a := range specs["bottle"].HostAliases {
		for _, h := range a.Hostnames {
			aliases[h] = a.IP
		}
	}
	if diff := cmp.Diff(ips, aliases); diff != "" {
		t.Errorf("the bottle's hosts are not the services' addresses (-want +got):\n%s", diff)
	}
	both := []any{"Ingress", "Egress"}
	want := map[string]any{"podSelector": map[string]any{}, "policyTypes": both}
	if diff := cmp.Diff(want, policies["default-deny"]); diff != "" {
		t.Errorf("default-deny mismatch (-want +got):\n%s", diff)
	}
	tcp := func(port int) any { return map[string]any{"port": port, "protocol": "TCP"} }
	want = map[string]any{
		"podSelector": map[string]any{"matchLabels": map[string]any{"app": "bottle"}},
		"policyTypes": both,
		"egress": []any{map[string]any{
			"to":    []any{map[string]any{"podSelector": map[string]any{"matchLabels": map[string]any{"app": "supervise"}}}},
			"ports": []any{tcp(9100), tcp(9099)},
		}},
	}
	if diff := cmp.Diff(want, policies["bottle"]); diff != "" {
		t.Errorf("the bottle's policy mismatch (-want +got):\n%s", diff)
	}
}
