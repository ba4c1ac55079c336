// Package compose checks the files that containers are built and started from,
// as far as that can be done without an engine: that they name what is there,
// and agree with each other.
package compose

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
)

const root = "../.."

// project is docker-compose.yml, as far as it is looked at.
type project struct {
	Services map[string]service
	Networks map[string]*struct{ Internal bool }
	Volumes  map[string]any
	Configs  map[string]struct{ File string }
	Secrets  map[string]struct{ File string }
}

type service struct {
	Image string
	Build *struct {
		Context, Target string
	}
	Command         []string
	ContainerName   string `yaml:"container_name"`
	Ports, Networks []string
	Volumes         []string
	EnvFile         string `yaml:"env_file"`
	Configs         []struct{ Source, Target string }
	Secrets         []string
	StopGracePeriod time.Duration  `yaml:"stop_grace_period"`
	DependsOn       map[string]any `yaml:"depends_on"`
	Healthcheck     *struct{ Test []string }
}

// volume returns the name of the volume that is mounted at dir, or "".
func (s *service) volume(dir string) string {
	for _, v := range s.Volumes {
		if name, target, _ := strings.Cut(v, ":"); target == dir {
			return name
		}
	}
	return ""
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func load(t *testing.T) (p project) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, root+"/docker-compose.yml")), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// makeSecrets runs the script in a directory of its own, which it returns.
func makeSecrets(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "make-secrets.sh")
	if err := os.WriteFile(script, []byte(read(t, "make-secrets.sh")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", script).CombinedOutput(); err != nil {
		t.Fatalf("make-secrets.sh: %v\n%s", err, out)
	}
	return filepath.Join(dir, "secrets")
}

// pairs reads a file of NAME=value.
func pairs(t *testing.T, name string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(read(t, name)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		m[k] = v
	}
	return m
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	dir := makeSecrets(t)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory keeps nobody out: %v, %v", info.Mode(), err)
	}
	s3, client := pairs(t, filepath.Join(dir, "s3.env")), pairs(t, filepath.Join(dir, "client.env"))
	key := strings.TrimSpace(read(t, filepath.Join(dir, "s3-secret")))
	if len(key) != 64 || s3["ROOT_SECRET_ACCESS_KEY"] != key || !strings.Contains(read(t, filepath.Join(dir, "s3.curl")), ":"+key+`"`) {
		t.Error("gateway, programs and curl do not have the same key")
	}
	tokens, err := localtokens.Load(filepath.Join(dir, "tokens.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	who, err := tokens.Authenticate(t.Context(), client["VMIMPORT_TOKEN"])
	if err != nil || who.ProjectID != client["VMIMPORT_PROJECT_ID"] || strings.Contains(who.ProjectID, "-") {
		t.Errorf("the client's token is for %+v, %v", who, err)
	}

	before := read(t, filepath.Join(dir, "tokens.yaml"))
	if out, err := exec.Command("sh", filepath.Join(dir, "..", "make-secrets.sh")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if read(t, filepath.Join(dir, "tokens.yaml")) != before {
		t.Error("a second run replaced the secrets")
	}
}

func TestProjectIsWhole(t *testing.T) {
	t.Parallel()
	p, secrets := load(t), makeSecrets(t)
	exists := func(file string) {
		t.Helper()
		name := filepath.Join(root, file)
		if rest, ok := strings.CutPrefix(file, "etc/compose/secrets/"); ok {
			name = filepath.Join(secrets, rest)
		}
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	for _, c := range p.Configs {
		exists(c.File)
	}
	for name, s := range p.Secrets {
		exists(s.File)
		if info, err := os.Stat(filepath.Join(secrets, name)); err != nil || info.Mode().Perm() != 0o444 {
			t.Errorf("secret %s cannot be read by the programs' user: %v, %v", name, info, err)
		}
	}
	used := map[string]bool{}
	for name, s := range p.Services {
		t.Run(name, func(t *testing.T) {
			if s.EnvFile != "" {
				exists(s.EnvFile)
			}
			for _, v := range s.Volumes {
				v, _, _ = strings.Cut(v, ":")
				used[v] = true
				if _, ok := p.Volumes[v]; !ok {
					t.Errorf("volume %s is not declared", v)
				}
			}
			for _, c := range s.Configs {
				if _, ok := p.Configs[c.Source]; !ok {
					t.Errorf("configuration %s is not declared", c.Source)
				}
			}
			for _, secret := range s.Secrets {
				if _, ok := p.Secrets[secret]; !ok {
					t.Errorf("secret %s is not declared", secret)
				}
			}
			for _, n := range s.Networks {
				if _, ok := p.Networks[n]; !ok {
					t.Errorf("network %s is not declared", n)
				}
			}
			for d := range s.DependsOn {
				if p.Services[d].Healthcheck == nil {
					t.Errorf("waits for %s, which has no health check", d)
				}
			}
			for _, port := range s.Ports {
				if !strings.HasPrefix(port, "127.0.0.1:") {
					t.Errorf("port %s is open to the world, without TLS", port)
				}
			}
			if (s.Image == "") == (s.Build == nil) {
				t.Error("needs either an image or a build")
			}
			if s.Image != "" {
				checkPinned(t, s.Image)
			}
		})
	}
	if len(used) != len(p.Volumes) {
		t.Errorf("volumes %v are used, %v declared", used, p.Volumes)
	}
	for n, s := range p.Services["worker"].Ports {
		t.Errorf("worker publishes port %d (%s), so there can be only one", n, s)
	}
	if p.Services["worker"].ContainerName != "" {
		t.Error("worker has a name, so there can be only one")
	}
	if !p.Networks["back"].Internal || !slices.Equal(p.Services["worker"].Networks, []string{"back"}) {
		t.Error("workers can reach the world")
	}
}

func checkPinned(t *testing.T, image string) {
	t.Helper()
	if _, tag, ok := strings.Cut(image, ":"); !ok || !regexp.MustCompile(`^v?\d+\.\d+`).MatchString(tag) {
		t.Errorf("image %s is not pinned to a version", image)
	}
}

// The configuration must be right, and its addresses and files those of the
// containers that use it.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	p, secrets := load(t), makeSecrets(t)
	operator := strings.TrimSpace(read(t, filepath.Join(secrets, "operator-token")))
	cfg, err := config.Load("vmimport.yaml", func(name string) string {
		return map[string]string{"VMIMPORT_OPERATOR_TOKEN": operator}[name] // the file is where containers have it
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	region := cfg.Regions[0]
	secret := func(service, file string) {
		t.Helper()
		if path.Dir(file) != "/run/secrets" || !slices.Contains(p.Services[service].Secrets, path.Base(file)) {
			t.Errorf("%s does not have %s", service, file)
		}
	}
	for _, name := range []string{"api", "worker", "cli"} {
		s := p.Services[name]
		secret(name, cfg.Operator.TokenFile)
		secret(name, region.Objects.S3.SecretKeyFile)
		if v := s.volume(region.Images.Directory.Path); v != "images" {
			t.Errorf("%s has its images on volume %q", name, v)
		}
	}
	secret("api", region.FJcloud.TokensFile)
	secret("cli", region.FJcloud.TokensFile) // doctor reads it

	endpoint := func(text, service, port string) {
		t.Helper()
		u, err := url.Parse(text)
		if err != nil || u.Hostname() != service || u.Port() != port {
			t.Errorf("%s is not port %s of %s: %v", text, port, service, err)
		}
		if networks := p.Services[service].Networks; !slices.Contains(networks, "back") {
			t.Errorf("%s is on %v, where workers are not", service, networks)
		}
	}
	endpoint(cfg.Redis.URL.Reveal(), "redis", "6379")
	s3 := region.Objects.S3
	endpoint(s3.Endpoint, "s3", strings.TrimPrefix(argument(p.Services["s3"], "--port"), ":"))
	if got := pairs(t, filepath.Join(secrets, "s3.env"))["ROOT_ACCESS_KEY_ID"]; got != s3.AccessKey || s3.Region != argument(p.Services["s3"], "--region") {
		t.Errorf("key %s for %+v", got, s3)
	}
	if client := pairs(t, filepath.Join(secrets, "client.env")); client["VMIMPORT_REGION"] != region.ID {
		t.Errorf("the client is of region %s", client["VMIMPORT_REGION"])
	}
	if grace := p.Services["worker"].StopGracePeriod; grace <= cfg.Worker.DrainTimeout {
		t.Errorf("a worker is killed after %s, and may need %s", grace, cfg.Worker.DrainTimeout)
	}
	for option, want := range map[string]string{"--appendonly": "yes", "--appendfsync": "always", "--maxmemory-policy": "noeviction"} {
		if got := argument(p.Services["redis"], option); got != want {
			t.Errorf("Redis runs with %s %s, which loses accepted imports", option, got)
		}
	}
}

// argument returns what follows an option of the service's command.
func argument(s service, option string) string {
	i := slices.Index(s.Command, option)
	if i < 0 || i+1 == len(s.Command) {
		return ""
	}
	return s.Command[i+1]
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := read(t, root+"/Dockerfile")
	stages := map[string]string{} // what each is made from
	for _, m := range regexp.MustCompile(`(?m)^FROM (?:--platform=\S+ )?(\S+) AS (\S+)$`).FindAllStringSubmatch(text, -1) {
		stages[m[2]] = m[1]
		if _, own := stages[m[1]]; !own && m[1] != "scratch" {
			checkPinned(t, m[1])
		}
	}
	for name, s := range load(t).Services {
		if s.Build == nil {
			continue
		}
		program := s.Build.Target
		if _, err := os.Stat(filepath.Join(root, "cmd", program, "main.go")); err != nil || stages[program] != "base" {
			t.Errorf("%s: target %q: from %q, %v", name, program, stages[program], err)
		}
		if want := fmt.Sprintf("COPY --from=build /src/bin/%[1]s /usr/local/bin/\n", program); !strings.Contains(text, want) {
			t.Errorf("%s: no line %s", name, want)
		}
	}
	if stages["base"] != "scratch" || !strings.Contains(text, "\nUSER 65532:65532\n") {
		t.Error("the images have more in them than they need, or run as root")
	}
}

// What git ignores must not get into the build, or the version says that the
// sources were changed; nor may the secrets.
func TestBuildContextIsTheRepository(t *testing.T) {
	t.Parallel()
	var want, got []string
	for dir, file := range map[string]string{"": root + "/.gitignore", "etc/compose/": ".gitignore"} {
		for line := range strings.Lines(read(t, file)) {
			pattern, anchored := strings.CutPrefix(strings.TrimSpace(line), "/")
			if !anchored {
				pattern = "**/" + pattern
			}
			want = append(want, dir+strings.TrimSuffix(pattern, "/"))
		}
	}
	for line := range strings.Lines(read(t, root+"/.dockerignore")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			got = append(got, line)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf(".dockerignore has %q, git ignores %q", got, want)
	}
}
